"""A torch module as one small `.onnx` file."""

import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from gossamer import record
from gossamer.deploy.onnx_clean import PREPROCESSING, STRUCTURE, clean
from gossamer.errors import BadInput
from gossamer.network import bake
from gossamer.outputs import places, plain, tensors

LIMIT = 2**31 - 2**20  # protobuf refuses messages of 2 GiB


def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the module in eval mode and float32 as one ONNX file; gives the path.

    BatchNorm is folded, nothing but what is needed to run is stored, weighted nodes carry the name of their torch
    module. Where the network gives dicts or tuples, metadata says where the outputs stand in them (`STRUCTURE`, JSON),
    and `open_runner` gives them back. dynamic_batch: the first dimension of every input that shares it with the first
    one is free. about: how images become inputs and what the classes are, as `gossamer.task.description` tells it; it
    goes into the metadata (`PREPROCESSING`, JSON). Tensors lie in `<name>.data` beside the file only above 2 GiB. The
    module is not touched. Raises BadInput that names the operation when the module cannot be exported.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    copied = bake(model).cpu().float().eval()
    inputs = tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in example_inputs)
    shapes = None
    if dynamic_batch:
        inputs, shapes = free_batch(copied, inputs)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            program = torch.onnx.export(copied, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)
        except Exception as error:
            raise BadInput(reason(type(model).__name__, "ONNX", error, dynamic_batch)) from error
    assert program is not None
    note_structure(program, copied, inputs)
    if about:
        program.model.metadata_props[PREPROCESSING] = json.dumps(about)
    if sum(p.numel() * p.element_size() for p in copied.state_dict().values()) > LIMIT:
        program.save(str(path), external_data=True)
        return path
    write_onnx(clean(program.model_proto), path)
    return path


@torch.no_grad()
def note_structure(program: Any, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Into the metadata of an exported program: where its outputs stand, unless there is one tensor alone."""
    outputs = model(*inputs)
    structure = None if isinstance(outputs, Tensor) else places(outputs)
    if structure is not None and len(list(tensors(outputs))) == len(program.model.graph.outputs):
        program.model.metadata_props[STRUCTURE] = json.dumps(structure)


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within, the network gives tuples and dicts where it gives objects of classes that exporters may not know."""
    hook = model.register_forward_hook(lambda module, inputs, output: plain(output))
    try:
        yield
    finally:
        hook.remove()


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a checked model under a temporary name and rename it."""
    onnx.checker.check_model(model)
    record.write_bytes(path, model.SerializeToString())


def free_batch(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The inputs with a batch of at least 2 (some versions of torch take 1 as fixed) and which dimension is free, by
    the parameters of `forward`: those of `*inputs` are one tuple, which must not be empty."""
    first = next((x for x in inputs if isinstance(x, Tensor) and x.dim()), None)
    if first is None:
        return inputs, tuple(None for _ in inputs)
    shares = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == len(first) for x in inputs]
    if len(first) == 1:
        inputs = tuple(torch.cat([x, x]) if shared else x for x, shared in zip(inputs, shares))
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if shared else None for shared in shares)
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        at = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return inputs, (*shapes[:at], shapes[at:]) if shapes[at:] else shapes
    return inputs, shapes


def reason(name: str, target: str, error: BaseException, dynamic_batch: bool) -> str:
    """One line out of the exporter's report: the innermost cause."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    hint = "; if its forward fixes the batch size, pass dynamic_batch=False" if dynamic_batch else ""
    return f"{name} cannot be exported to {target}: {type(cause).__name__}: {lines[0] if lines else cause}{hint}"


@contextmanager
def silent() -> Iterator[None]:
    """No warnings, prints or log lines of the exporters inside."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
