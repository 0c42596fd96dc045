"""Peak memory of a deployed network, measured in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from gossamer.deploy.pt2 import load_pt2
from gossamer.deploy.runner import open_runner
from gossamer.errors import GossamerError
from gossamer.measure.memory import peak_growth
from gossamer.record import Record

RUNS = 3


def peak_memory(
    runtime: str,
    path: Path | str,
    inputs: tuple[Tensor, ...],
    *,
    threads: int = 2,
    precision: str = "float32",
    subject: str = "result",
) -> Record:
    """Bytes by which a process that has the runtime loaded grows while it opens the network and runs it 3 times.

    path: an `.onnx`, or a `.pt2` for the torch runtimes. The inputs are zeros of the same shapes; they count, too.
    """
    job = {
        "runtime": runtime,
        "path": str(path),
        "threads": threads,
        "precision": precision,
        "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs],
    }
    command = [sys.executable, "-c", "from gossamer.deploy.memory import main; main()", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GossamerError(f"measuring the memory of {path} on {runtime} failed: {last}")
    conditions = {"runtime": runtime, "threads": threads, "batch": len(inputs[0]), "dtype": precision, "device": "cpu"}
    value = float(done.stdout.split()[-1])
    return Record(subject=subject, what="peak_memory", value=value, unit="bytes", n=1, conditions=conditions)


def measure(job: str) -> int:
    """What the fresh process does."""
    what = json.loads(job)
    shapes = [(shape, getattr(torch, dtype)) for shape, dtype in what["inputs"]]
    if what["runtime"] == "openvino":
        import openvino  # noqa: F401  loaded before: the library is not the network
    else:
        import onnxruntime  # noqa: F401

    def work() -> None:
        path = Path(what["path"])
        source = load_pt2(path) if path.suffix == ".pt2" else path
        runner = open_runner(what["runtime"], source, threads=what["threads"], precision=what["precision"])
        prepared = runner.prepare(tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in shapes))
        for _ in range(RUNS):
            runner.raw(prepared)

    return peak_growth(work)


def main() -> None:
    """The fresh process: a JSON object as argument, one number to standard output."""
    sys.stdout.write(f"{measure(sys.argv[1])}\n")
