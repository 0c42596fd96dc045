"""Networks on the runtimes that users deploy on, all with the same face."""

import os
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.batches import as_inputs
from gossamer.core.copies import copy_network
from gossamer.core.goal import RUNTIMES
from gossamer.core.kinds import checked_arguments
from gossamer.core.outputs import tensors
from gossamer.core.processors import available, usual_threads
from gossamer.core.runner import Runner
from gossamer.errors import BadInput, MissingExtra, no_file, require, unknown
from gossamer.runtime.metadata import STRUCTURE, read_structure
from gossamer.runtime.sessions import FLOATS, OPENVINO_FLOATS, compile_openvino, import_openvino, open_session
from gossamer.runtime.threads import torch_threads

PRECISIONS = {
    "torch": ("float32",),
    "torch.compile": ("float32",),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "int8", "bfloat16", "default"),
    "binary": ("float32",),
}


@checked_arguments
def open_runner(
    runtime: str, source: Path | str | nn.Module, *, threads: int | None = None, precision: str = "float32"
) -> Runner:
    """A network ready to run.

    Args:
        runtime: "torch", "torch.compile", "onnxruntime", "openvino" or "binary".
        source: a module for the torch runtimes, a module or the path of a `.gsr` for "binary", the path of an `.onnx`
            for the others.
        threads: at most as many as this process has cores, which is what the runner then says; None: 2.
        precision: "float32" really computes in float32 (OpenVINO would take bfloat16 by itself where the processor has
            it; ask for "default" or "bfloat16" to let it). "int8" names what is in the file; its other parts run in
            float32.

    Returns:
        The network as a callable on torch tensors.

    Raises:
        BadInput: a runtime, precision or source that do not go together.
        MissingExtra: the runtime is not installed.
        CorruptFile: the file is no network of the runtime's format, or one that the runtime refuses.

    Example:
        >>> import torch
        >>> runner = open_runner("torch", torch.nn.Linear(8, 4), threads=1)
        >>> runner(torch.ones(2, 8)).shape
        torch.Size([2, 4])
    """
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    if precision not in PRECISIONS[runtime]:
        raise BadInput(f"runtime {runtime!r} has no precision {precision!r}; it has {', '.join(PRECISIONS[runtime])}")
    if threads is not None and threads < 1:
        raise BadInput(f"threads = {threads}: must be at least 1")
    threads = usual_threads() if threads is None else min(threads, available())
    if runtime in ("torch", "torch.compile"):
        if not isinstance(source, nn.Module):
            raise BadInput(f"runtime {runtime!r} runs a torch module, got {source}; export is not needed for it")
        return TorchRunner(source, threads=threads, compiled=runtime == "torch.compile")
    if runtime == "binary":
        opened: Runner = require("gossamer.runtime.binary.runner").BinaryRunner(
            _network_or_file(source), threads=threads
        )
        return opened
    if isinstance(source, nn.Module):
        raise BadInput(f"runtime {runtime!r} runs an .onnx file, got a module; export_onnx() writes one")
    path = _file(source)
    require("gossamer.runtime.onnx_read").check_onnx(path)
    kind = OnnxRuntimeRunner if runtime == "onnxruntime" else OpenVinoRunner
    return kind(path, threads=threads, precision=precision)


def _file(source: Path | str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise no_file(path)
    return path


def _network_or_file(source: Path | str | nn.Module) -> Path | nn.Module:
    if isinstance(source, nn.Module):
        return source
    if Path(source).suffix == ".onnx":
        raise BadInput(f"runtime 'binary' runs a .gsr file or a module, got {source}; save() writes a .gsr")
    return _file(source)


class TorchRunner(Runner):
    """A copy of the module in eval mode, without gradients; `compiled` with the default backend of torch.compile."""

    def __init__(self, model: nn.Module, *, threads: int, compiled: bool = False) -> None:
        self.runtime, self.version = "torch.compile" if compiled else "torch", torch.__version__
        self.precision, self.threads = "float32", threads
        self.model: Any = copy_network(model).eval()
        self.device = next((str(p.device.type) for p in self.model.parameters()), "cpu")
        if compiled:
            compiler = os.environ.get("CXX", "g++")
            if self.device == "cpu" and shutil.which(compiler.split()[0]) is None:
                raise MissingExtra(
                    f"torch.compile needs a C++ compiler and {compiler!r} is not installed; "
                    "install it with: apt-get install g++, or use the runtime 'torch'"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.model = torch.compile(self.model)

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.to(self.device) for x in inputs)

    def raw(self, prepared: Any) -> Any:
        with torch_threads(self.threads), torch.inference_mode(), warnings.catch_warnings():
            if self.runtime == "torch.compile":
                warnings.simplefilter("ignore")
            output = self.model(*prepared)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return output

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return tuple(leaf.clone() for leaf in tensors(raw))

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives, in its own structure."""
        return tree_map_only(Tensor, Tensor.clone, self.raw(self.prepare(as_inputs(inputs, self.runtime))))


def in_precision(x: Tensor, kind: str | None) -> Tensor:
    """An input on the CPU; numbers of another precision than the file's, which is float32 for exports, are rounded."""
    x = x.detach().cpu().contiguous()
    return x.to(getattr(torch, kind)) if kind is not None and x.is_floating_point() else x


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session on the CPU."""

    def __init__(
        self, path: Path, *, threads: int, precision: str, profile: bool = False, prepack: bool = True
    ) -> None:
        ort = require("onnxruntime")
        self.runtime, self.version = "onnxruntime", ort.__version__
        self.precision, self.threads = precision, threads
        self.session = open_session(path, threads=threads, profile=profile, prepack=prepack)
        self.kinds = {i.name: FLOATS.get(i.type) for i in self.session.get_inputs()}
        noted = self.session.get_modelmeta().custom_metadata_map.get(STRUCTURE, "null")
        self.structure = read_structure(noted, len(self.session.get_outputs()), path)

    def prepare(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        _refuse_count(list(self.kinds), inputs)
        return {name: in_precision(x, kind).numpy() for (name, kind), x in zip(self.kinds.items(), inputs, strict=True)}

    def raw(self, prepared: Any) -> Any:
        return self.session.run(None, prepared)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(y) for y in raw)


def _refuse_count(names: list[str], inputs: tuple[Tensor, ...]) -> None:
    if len(names) != len(inputs):
        raise BadInput(f"the network takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} were given")


class OpenVinoRunner(Runner):
    """An OpenVINO model compiled for the CPU, latency hint."""

    def __init__(self, path: Path, *, threads: int, precision: str, profile: bool = False) -> None:
        openvino = import_openvino()
        self.runtime, self.version, self.threads = "openvino", metadata.version("openvino"), threads
        model, compiled = compile_openvino(path, threads=threads, precision=precision, profile=profile)
        if model.has_rt_info(["framework", STRUCTURE]):
            noted = model.get_rt_info(["framework", STRUCTURE]).astype(str)
            self.structure = read_structure(noted, len(model.outputs), path)
        if precision == "default":
            chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            precision = f"{ {'bf16': 'bfloat16', 'f32': 'float32', 'f16': 'float16'}.get(chosen, chosen) } (default)"
        self.precision = precision
        self.inputs = compiled.inputs
        self.request = compiled.create_infer_request()
        self.tensor = openvino.Tensor

    def prepare(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        _refuse_count([port.get_any_name() for port in self.inputs], inputs)
        kinds = [OPENVINO_FLOATS.get(port.get_element_type().get_type_name()) for port in self.inputs]
        return [
            self.tensor(in_precision(x, kind).numpy(), shared_memory=True)
            for x, kind in zip(inputs, kinds, strict=True)
        ]

    def raw(self, prepared: Any) -> Any:
        return self.request.infer(prepared, share_inputs=True, share_outputs=True)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(raw[i].copy()) for i in range(len(raw)))
