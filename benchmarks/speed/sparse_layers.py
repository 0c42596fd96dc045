"""Is a sparse or shared layer faster? Fully connected layers, dense, as a sparse matrix (CSR) and by look-up.

Layers of the shapes of LeNet-300-100, LeNet-5, AlexNet and VGG-16, at several densities, batches 1 and 64, one thread;
all ways interleaved in one process. What is not faster than the dense layer says so.

    python -m benchmarks.speed.sparse_layers
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from benchmarks.common import paths
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.record import environment, write_text
from gossamer.measure import Runner, latency
from gossamer.methods.share.product import ProductQuantization
from gossamer.methods.share.qcnn import LookUp
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner

SHAPES = {"LeNet-300-100 fc1": (784, 300), "LeNet-5 fc1": (800, 500), "AlexNet fc7": (4096, 4096)}
DENSITIES = (0.3, 0.1, 0.03)
RESULTS = paths.RESULTS / "inference.json"


class Timed(Runner):
    """A function of the prepared input as a runner."""

    def __init__(self, name: str, call: Callable[[Any], Any], prepare: Callable[[Tensor], Any]) -> None:
        self.runtime, self.version, self.precision, self.threads = name, "", "float32", 1
        self.call, self.make = call, prepare

    def prepare(self, inputs: tuple[Tensor, ...]) -> Any:
        return self.make(inputs[0])

    def raw(self, prepared: Any) -> Any:
        with torch.no_grad():
            return self.call(prepared)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return (torch.as_tensor(raw),)


def ways(layer: nn.Linear, density: float, folder: Path) -> dict[str, Runner]:
    """Every way to run the layer with this share of its weights; the look-up has its own, product-coded weights."""
    with torch.no_grad():
        keep = torch.rand(layer.weight.shape) < density
        layer.weight.mul_(keep)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    csr = weight.to_sparse_csr()
    matrix, offset = scipy.sparse.csr_matrix(weight.numpy()), bias.numpy()[:, None]
    example = torch.randn(2, layer.in_features)
    path = export_onnx(layer, (example,), folder / "layer.onnx")
    return {
        "dense, PyTorch": Timed("torch", layer, lambda x: x),
        "dense, ONNX Runtime": open_runner("onnxruntime", path, threads=1),
        "CSR, PyTorch": Timed("torch", lambda x: (csr @ x).t() + bias, lambda x: x.t().contiguous()),
        "CSR, SciPy": Timed("scipy", lambda x: matrix @ x + offset, lambda x: np.ascontiguousarray(x.t().numpy())),
    }


def shared(layer: nn.Linear) -> Runner:
    """The layer by look-up: four inputs a block, 32 codewords, as Wu et al. 2016 take for fully connected layers."""
    model = nn.Sequential(layer)
    coded = ProductQuantization(width=4, entries=32)(model, None, Context()).model  # type: ignore[arg-type]  # needs no data
    return Timed("torch", LookUp(coded[0]), lambda x: x)  # type: ignore[index]


def measure(seconds: float) -> list[dict[str, Any]]:
    folder = RESULTS.parent.parent.parent / "out"
    folder.mkdir(exist_ok=True)
    rows = []
    for name, (inputs, outputs) in SHAPES.items():
        torch.manual_seed(0)
        lookup = shared(nn.Linear(inputs, outputs))
        for density in DENSITIES:
            layer = nn.Linear(inputs, outputs)
            runners = ways(layer, density, folder) | {"look-up, 5 bits a block of 4": lookup}
            for batch in (1, 64):
                x = torch.randn(batch, inputs)
                found = latency(runners, (x,), repeats=200, warmup=5, seconds=seconds)
                rows += [
                    {"layer": name, "density": density, "batch": batch, "way": way}
                    | {"median_us": 1000 * t.median_ms, "q1_us": 1000 * t.q1_ms, "q3_us": 1000 * t.q3_ms}
                    for way, t in found.items()
                ]
    return rows


def render(document: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["way"] for row in document["rows"]))
    lines = ["# Sparse and shared layers, measured", "", document["conditions"], ""]
    lines += [
        "| layer | density | batch | " + " | ".join(names) + " | fastest |",
        "|---|---:|---:|" + "---:|" * len(names) + "---|",
    ]
    cases = dict.fromkeys((row["layer"], row["density"], row["batch"]) for row in document["rows"])
    for case in cases:
        times = {r["way"]: r["median_us"] for r in document["rows"] if (r["layer"], r["density"], r["batch"]) == case}
        cells = " | ".join(f"{times[name]:,.1f}" for name in names)
        lines.append(f"| {case[0]} | {case[1]:.0%} | {case[2]} | {cells} | {min(times, key=lambda n: times[n])} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="at most, for a layer at a density and batch")
    parser.add_argument("--table", action="store_true", help="only make the table again")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        document = {
            "format": 1,
            "command": "python -m benchmarks.speed.sparse_layers",
            "conditions": "Median microseconds of one batch, one thread, interleaved in one process.",
            "environment": environment(),
            "rows": measure(options.seconds),
        }
        write_text(RESULTS, json.dumps(document, indent=1))
    text = render(json.loads(RESULTS.read_text()))
    write_table(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
