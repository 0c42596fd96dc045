"""Structured sparsity learning on MNIST, at the sizes that its paper reports: MLP 784-500-300-10 and LeNet-5.

    python -m benchmarks.sparse.structured --networks mlp lenet5 --seeds 0 1 2

A network is trained, then once more while `prune.ssl` empties filters and shapes until it has the parameters (MLP) or
multiply-adds (LeNet-5) of the paper's network; no strength is given. Errors are of the 10,000 test images, in percent.
The paper: Wen et al. 2016, arXiv:1608.03665, tables 1 and 2.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data.load import load_task
from gossamer.methods.prune.ssl import StructuredSparsity
from gossamer.models.zoo import build_for
from gossamer.modules.cost import total_macs
from gossamer.train import Training, fit

# What the paper's networks have left: 434-174-78-10, and 5 to 19 filters of 1 to 4 channels with whole linear layers.
MLP_PARAMS = 434 * 174 + 174 + 174 * 78 + 78 + 78 * 10 + 10
LENET_MACS = 5 * 25 * 576 + 19 * 4 * 25 * 64 + 19 * 16 * 500 + 500 * 10
PAPER = {"mlp": {"error": 1.53, "dense error": 1.43}, "lenet5": {"error": 0.8, "dense error": 0.9}}


def network(name: str, task: Task, seed: int) -> nn.Module:
    """The dense network with fresh weights."""
    torch.manual_seed(seed)
    if name == "mlp":
        hidden = (nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10))
        return nn.Sequential(nn.Flatten(), *hidden)
    return build_for("lenet5", task)


def method(name: str, epochs: int) -> StructuredSparsity:
    """The method at the size of the paper's network."""
    shared: dict[str, Any] = {"epochs": epochs, "lr": 0.05, "alpha": 1.0}
    if name == "mlp":
        return StructuredSparsity(groups=("filters", "shapes"), params=MLP_PARAMS, **shared)
    return StructuredSparsity(groups=("filters", "shapes"), macs=LENET_MACS, layers=("conv*",), **shared)


def error(model: nn.Module, task: Task) -> float:
    """Percent of the test images."""
    with torch.no_grad():
        return 100 - 100 * task.metric.score(model.eval(), task.test)


def latency_ms(model: nn.Module, task: Task, runs: int = 50) -> float:
    """The median time of a batch of one in PyTorch."""
    x, times = task.example_inputs[0][:1], []
    with torch.no_grad():
        for _ in range(runs):
            began = time.perf_counter()
            model(x)
            times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[runs // 2]


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network: dense, and after the method."""
    task = load_task("mnist", root=options.data, seed=seed, augment=False)
    dense = network(name, task, seed)
    training = Training(epochs=options.dense_epochs, lr=0.1, weight_decay=5e-4, keep="last")
    fit(dense, task, training, Context(seed=seed, progress=Lines()))
    smaller, edits = method(name, options.epochs)(dense, task, Context(seed=seed, progress=Lines()))
    return {
        "dense error": error(dense, task),
        "error": error(smaller, task),
        "dense": facts(dense, task),
        "sparse": facts(smaller, task),
        "edits": [f"{edit.target}: {edit.before} to {edit.after}" for edit in edits],
        "path": next(vars(edit.path) for edit in edits if edit.path is not None),
        "paper": PAPER[name],
    }


def facts(model: nn.Module, task: Task) -> dict[str, Any]:
    """Size, cost and time."""
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": total_macs(model, task.example_inputs),
        "latency ms, batch 1": latency_ms(model, task),
        "weights": {key: list(p.shape) for key, p in model.named_parameters() if p.ndim > 1},
    }


def execute(options: argparse.Namespace) -> Mapping[str, Any]:
    """All points; those in the file are kept."""
    out: Path = options.out
    document: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"points": {}}
    document["measured"] = with_run(document, run_conditions(options.seeds, options.threads))
    for seed in options.seeds:
        for name in options.networks:
            key = f"{name}, {options.dense_epochs} and {options.epochs} epochs, seed {seed}"
            if key not in document["points"]:
                document["points"][key] = measure(name, seed, options)
                write_text(out, json.dumps(document, indent=1))
                print(key, {k: v for k, v in document["points"][key].items() if "error" in k}, flush=True)
    return document


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mlp", "lenet5"], choices=["mlp", "lenet5"])
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=15, help="of the training under the penalty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="a folder with a folder `mnist`")
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "structured.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    execute(options)


if __name__ == "__main__":
    main()
