"""A model argument as something that runs: an `.onnx` file, a result folder, or any network of `loading`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.cli.loading import Request, load_model
from gossamer.core.goal import FROM_MODULES
from gossamer.errors import BadInput, no_file
from gossamer.measure import Runner
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner

DEPLOYED = ("model.int8.onnx", "model.onnx")  # in a result folder, the one to ship first


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network on a runtime, with inputs that it takes."""

    name: str
    runner: Runner
    example_inputs: tuple[Any, ...]


def open_model(request: Request, *, runtime: str | None, threads: int) -> Opened:
    """The network on the runtime; None: ONNX Runtime for an `.onnx`, else torch. Exports where the runtime needs it;
    where it runs modules, an `.onnx` is imported, and of a result folder the module is taken."""
    path = onnx_file(request.model)
    if path is not None and runtime not in FROM_MODULES:
        if request.weights is not None:
            raise BadInput(f"{path} has its weights inside; leave --weights out")
        inputs, precision = request.inputs or onnx_inputs(path), "int8" if is_int8(path) else "float32"
        runner = open_runner(runtime or "onnxruntime", path, threads=threads, precision=precision)
        return Opened(name=request.model, runner=runner, example_inputs=inputs)
    source = load_model(request)
    if runtime is None or runtime in FROM_MODULES:
        runner = open_runner(runtime or "torch", source.model, threads=threads)
    else:
        with tempfile.TemporaryDirectory() as folder:
            exported = export_onnx(source.model, source.example_inputs, Path(folder) / "model.onnx")
            runner = open_runner(runtime, exported, threads=threads)
    return Opened(name=request.model, runner=runner, example_inputs=source.example_inputs)


def onnx_file(text: str) -> Path | None:
    """The `.onnx` that a model argument means: itself, or the one of a result folder. None for what is neither, as a
    network of the zoo whose name a folder has, too."""
    path = Path(text)
    if path.is_dir():
        return next((path / name for name in DEPLOYED if (path / name).is_file()), None)
    if path.suffix != ".onnx":
        return None
    if not path.is_file():
        raise no_file(path)
    return path


def onnx_inputs(path: Path) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that the file declares; free dimensions are 1."""
    inputs = []
    for value in _graph(path).input:
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        inputs.append(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return tuple(inputs)


def is_int8(path: Path) -> bool:
    """Whether the file computes in int8 (QDQ)."""
    return any(node.op_type == "DequantizeLinear" for node in _graph(path).node)


def _graph(path: Path) -> Any:
    from gossamer.runtime.onnx_read import read_onnx

    return read_onnx(path).graph


def with_batch(inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The inputs with so many samples, repeated or cut; what does not share the first input's batch is left."""
    size = len(inputs[0])
    rows = torch.arange(batch) % size
    return tuple(x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == size else x for x in inputs)
