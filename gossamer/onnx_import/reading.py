"""Reading an ONNX file into a network."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from gossamer.errors import BadInput, CorruptFile, first_line, no_file
from gossamer.onnx_import.network import GraphBuilder, OnnxNetwork
from gossamer.onnx_import.registry import Function
from gossamer.onnx_import.values import MOST_ELEMENTS, TYPES, AtMost, bounded
from gossamer.runtime.metadata import PREPROCESSING, STRUCTURE, Interface
from gossamer.runtime.onnx_read import read_onnx

OLDEST = 7  # opset: before it, arithmetic broadcast otherwise


def import_onnx(path: Path | str) -> OnnxNetwork:
    """A network out of an ONNX file, in eval mode.

    Args:
        path: of the file; tensors in other files are read from its folder.

    Returns:
        The network. Its outputs are one tensor, or a tuple of all outputs of the file.

    Raises:
        CorruptFile: the file cannot be read.
        BadInput: an operator, or one of its forms, cannot be imported; the node is named.

    Example:
        >>> import tempfile, torch, gossamer
        >>> from gossamer.onnx_import import import_onnx
        >>> from gossamer.runtime.onnx_export import export_onnx
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_onnx(model, task.example_inputs, Path(folder) / "model.onnx")
        ...     again = import_onnx(file)
        >>> torch.allclose(again(*task.example_inputs), model(*task.example_inputs), atol=1e-5)
        True
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path)
    model = read_onnx(path)
    opsets = {"": OLDEST} | {("" if one.domain == "ai.onnx" else one.domain): one.version for one in model.opset_import}
    opset = opsets[""]
    if opset < OLDEST:
        raise BadInput(
            f"{path}: opset {opset} is older than {OLDEST}; export it again, or convert it with onnx.version_converter"
        )
    if model.functions:
        raise BadInput(f"{path}: functions inside the file are not known; inline them with onnx.inliner")
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in given]
    network = GraphBuilder(model.graph, opsets, partial(_array, path=path), {}).build(OnnxNetwork)
    network.shapes, network.dtypes = tuple(map(_shape, inputs)), tuple(_dtype(one, path) for one in inputs)
    network.interface = _interface(model, inputs)
    network.eval()
    _free_sizes(network)
    return network


def _interface(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> Interface:
    """What an export of the network has again. Sizes that the file calls by one name stay one size."""
    free = dict[int, dict[int, str]]()
    for i, value in enumerate(inputs):
        for d, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                free.setdefault(i, {})[d] = dim.dim_param if dim.dim_param.isidentifier() else ""
    metadata = {p.key: p.value for p in model.metadata_props if p.key not in (STRUCTURE, PREPROCESSING)}
    return Interface(tuple(v.name for v in inputs), tuple(v.name for v in model.graph.output), free, metadata)


def example_inputs(network: OnnxNetwork, sizes: Mapping[int, tuple[int, ...]] | None = None) -> tuple[Tensor, ...]:
    """Inputs of the shapes that the file names, random numbers with a fixed seed.

    Args:
        network: an imported one.
        sizes: shapes by the number of the input, where the file leaves sizes free.

    Raises:
        BadInput: a size besides the batch is free and not given.

    Returns:
        One tensor for each input.

    Example:
        >>> import tempfile, gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network = import_onnx(gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx"))
        >>> example_inputs(network)[0].shape[1:] == task.example_inputs[0].shape[1:]
        True
    """
    generator = torch.Generator().manual_seed(0)
    given = [(sizes or {}).get(number, _with_batch(shape)) for number, shape in enumerate(network.shapes)]
    for name, shape in zip(network.inputs, given):
        if any(n is None for n in shape):
            shown = "x".join("?" if n is None else str(n) for n in shape)
            raise BadInput(f"input {name[:80]!r} has the shape {shown}; say which sizes it is to have")
    bounded(sum(math.prod(n for n in shape if n is not None) for shape in given))
    return tuple(_noise(shape, dtype, generator) for shape, dtype in zip(given, network.dtypes))


def _with_batch(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return (1, *shape[1:]) if shape[:1] == (None,) else shape


def _noise(shape: tuple[Any, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.rand(shape, generator=generator).to(dtype)


def _array(tensor: onnx.TensorProto, path: Path) -> np.ndarray[Any, Any]:
    if tensor.data_type not in TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise BadInput(f"{path}: tensor {tensor.name[:80]!r} is of type {kind}, which cannot be imported")
    try:
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor, base_dir=str(path.parent))
    except Exception as error:
        raise CorruptFile(f"{path}: tensor {tensor.name[:80]!r} cannot be read: {first_line(error)}") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.dim_value > 0 else None for size in sizes)


def _dtype(value: onnx.ValueInfoProto, path: Path) -> torch.dtype:
    kind = value.type.tensor_type.elem_type
    if kind not in TYPES:
        raise BadInput(f"{path}: input {value.name[:80]!r} is no tensor of numbers")
    return TYPES[kind]


def _free_sizes(network: OnnxNetwork) -> None:
    """Let the first sizes of constant reshapes follow the input where they equal its own: an export with a fixed batch
    has it in all of them, and channels that are kept apart are the same after a cut."""
    try:
        inputs = example_inputs(network)
    except BadInput:
        return
    seen = dict[nn.Module, Any]()

    def note(module: nn.Module, values: tuple[Any, ...]) -> None:
        seen.setdefault(module, values[0])

    reshapes = [m for m in network.modules() if isinstance(m, Function) and {"keep_zeros", "target"} <= set(m.names)]
    hooks = [module.register_forward_pre_hook(note) for module in reshapes]
    try:
        with torch.no_grad(), AtMost(MOST_ELEMENTS):
            network(*inputs)
    except Exception:  # the check says what is wrong
        return
    finally:
        for hook in hooks:
            hook.remove()
    for module, x in seen.items():
        target: list[Any] = list(module.target)  # type: ignore[arg-type]
        for i, size in enumerate(target):
            if not isinstance(x, Tensor) or i >= x.dim() or size != x.shape[i]:
                break
            target[i] = 0
        if not module.keep_zeros:
            setattr(module, "target", tuple(target))  # noqa: B010  an attribute that the module has by name
