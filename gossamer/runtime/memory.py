"""How far the memory of a process grows, and the process that `peak_memory` starts to measure that of a network.

The process runs this file, and answers with one number on its standard output. For an `.onnx` it imports neither torch
nor more of gossamer than opens such files.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.runtime.sessions import FLOATS, OPENVINO_FLOATS, compile_openvino, import_openvino, open_session

STATUS = Path("/proc/self/status")
RUNS = 3


def peak_growth(work: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rises above its present size while the work runs.

    Honest only in a fresh process: what the allocators kept from before is used again without being seen. On Linux
    the kernel's high-water mark is reset first; elsewhere the mark of the whole life of the process must do.
    """
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5", encoding="utf-8")
        before, field = _status("VmRSS"), "VmHWM"
    except OSError:
        before, field = _lifetime_peak(), ""
    work()
    return max(0, (_status(field) if field else _lifetime_peak()) - before)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _lifetime_peak() -> int:
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


Inputs = list[tuple[list[int], str]]  # shape and dtype of each


def measured(job: str) -> int:
    """Bytes by which this process grows while it opens a network and runs it; job: as `peak_memory` writes it."""
    what = json.loads(job)
    path, how = Path(what["path"]), {"threads": what["threads"], "precision": what["precision"]}
    if path.suffix == ".pt2":
        return peak_growth(_torch(what["runtime"], path, what["inputs"], how))
    if what["runtime"] == "openvino":
        import_openvino()  # loaded before: the library is not the network
        return peak_growth(lambda: _openvino(path, what["inputs"], how))
    import onnxruntime  # noqa: F401

    return peak_growth(lambda: _onnxruntime(path, what["inputs"], what["threads"]))


def _onnxruntime(path: Path, inputs: Inputs, threads: int) -> None:
    session = open_session(path, threads=threads)
    given = session.get_inputs()
    prepared = {one.name: _zeros(*x, FLOATS.get(one.type)) for one, x in zip(given, inputs, strict=True)}
    for _ in range(RUNS):
        session.run(None, prepared)


def _openvino(path: Path, inputs: Inputs, how: dict[str, Any]) -> None:
    _, compiled = compile_openvino(path, **how)
    kinds = [OPENVINO_FLOATS.get(port.get_element_type().get_type_name()) for port in compiled.inputs]
    tensor, request = import_openvino().Tensor, compiled.create_infer_request()
    prepared = [tensor(_zeros(*x, kind), shared_memory=True) for x, kind in zip(inputs, kinds, strict=True)]
    for _ in range(RUNS):
        request.infer(prepared, share_inputs=True, share_outputs=True)


def _torch(runtime: str, path: Path, inputs: Inputs, how: dict[str, Any]) -> Callable[[], None]:
    import torch

    from gossamer.runtime.pt2.file import load_pt2
    from gossamer.runtime.runners import open_runner

    def work() -> None:
        runner = open_runner(runtime, load_pt2(path), **how)
        prepared = runner.prepare(tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in inputs))
        for _ in range(RUNS):
            runner.raw(prepared)

    return work


def _zeros(shape: list[int], dtype: str, kind: str | None) -> Any:
    """Zeros that are written, since pages that nobody wrote take no memory. kind: what the file takes for floats."""
    return np.full(shape, 0, kind if kind is not None and "float" in dtype else dtype)


if __name__ == "__main__":
    sys.stdout.write(f"{measured(sys.argv[1])}\n")
