"""How much memory a piece of work needs at its peak.

A network is measured in a fresh process, which runs this file: what an allocator kept from earlier work is used again
without being seen. The fresh process answers with one number on its standard output.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.core.batches import as_inputs
from gossamer.errors import GossamerError
from gossamer.runtime.pt2.file import load_pt2
from gossamer.runtime.runners import import_openvino, open_checked, open_runner

STATUS = Path("/proc/self/status")
RUNS = 3


def peak_memory(
    path: Path | str,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    runtime: str = "onnxruntime",
    threads: int = 2,
    precision: str = "float32",
) -> int:
    """Bytes by which a fresh process that has the runtime loaded grows while it opens a network and runs it 3 times.

    Args:
        path: an `.onnx`, or a `.pt2` for the torch runtimes.
        inputs: one batch, a tensor or a tuple of them. Their shapes and dtypes count, the values are zeros; they are
            part of the growth.
        runtime: a name of `RUNTIMES`.
        threads: of one run.
        precision: what is in the file.

    Returns:
        Bytes.

    Raises:
        GossamerError: the process failed; the message has its last line.

    Example:
        >>> import tempfile, gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx")
        ...     peak_memory(file, task.example_inputs) > 0
        True
    """
    job = {
        "runtime": runtime,
        "path": str(path),
        "threads": threads,
        "precision": precision,
        "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in as_inputs(inputs, "peak_memory")],
    }
    # runpy warns because the package has imported this module already; nothing here depends on which copy runs.
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", __name__, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GossamerError(f"measuring the memory of {path} on {runtime} failed: {last}")
    return int(done.stdout.split()[-1])


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


def _measure(job: str) -> int:
    """Bytes by which this process grows while it opens a network and runs it; job: as `peak_memory` writes it."""
    what = json.loads(job)
    shapes = [(shape, getattr(torch, dtype)) for shape, dtype in what["inputs"]]
    if what["runtime"] == "openvino":
        import_openvino()  # loaded before: the library is not the network
    else:
        import onnxruntime  # noqa: F401

    def work() -> None:
        path = Path(what["path"])
        conditions = {"threads": what["threads"], "precision": what["precision"]}
        if path.suffix == ".pt2":
            runner = open_runner(what["runtime"], load_pt2(path), **conditions)
        else:
            runner = open_checked(what["runtime"], path, **conditions)
        prepared = runner.prepare(tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in shapes))
        for _ in range(RUNS):
            runner.raw(prepared)

    return peak_growth(work)


if __name__ == "__main__":
    sys.stdout.write(f"{_measure(sys.argv[1])}\n")
