"""What the fresh process does that `measure.peak_memory` starts."""

import json
import sys
from pathlib import Path

import torch

from gossamer.deploy.pt2 import load_pt2
from gossamer.deploy.runner import import_openvino, open_checked, open_runner
from gossamer.measure.memory import peak_growth

RUNS = 3


def measure(job: str) -> int:
    """Bytes by which this process grows while it opens a network and runs it 3 times."""
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


def main() -> None:
    """A JSON object as argument, one number to standard output."""
    sys.stdout.write(f"{measure(sys.argv[1])}\n")
