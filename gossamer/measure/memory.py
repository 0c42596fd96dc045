"""How much memory a piece of work needs at its peak.

A network is measured in a fresh process: what an allocator kept from earlier work is used again without being seen.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from gossamer.core.batches import as_inputs
from gossamer.errors import GossamerError


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
    # -P, and the search path of this process: a file of the current folder is not taken for a library, and the process
    # has the same gossamer where it was imported from a folder that a notebook put into `sys.path`.
    command = [sys.executable, "-P", "-m", "gossamer.runtime.memory", json.dumps(job)]
    searched = os.pathsep.join(str(Path(one or ".").resolve()) for one in sys.path)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": searched}
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GossamerError(f"measuring the memory of {path} on {runtime} failed: {last}")
    return int(done.stdout.split()[-1])
