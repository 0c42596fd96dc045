"""Channels emptied while training, against channels cut and then trained: equal multiply-adds, equal passes, one loop.

    python -m benchmarks.sparse.training --networks resnet20 --speedups 4 8 --seeds 0 1 2

Every row starts from the same trained network and has the same number of passes over the same part of the data, with
that network as teacher, the schedule and the rate that `--lr` says. "cut" is `prune.channels` with the widths of equal
shares, and `distill.recover`. Torch-Pruning's group norm pruner regularizes for half of the passes, growing every pass,
cuts, and trains for the other half; its regularization is added in front of each step. Accuracy is of the test images.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.sparse.reconstruction import accuracy, network
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data.load import load_task
from gossamer.methods._training import Limited
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.group_lasso import NeuronCount
from gossamer.methods.prune.growing import GrowingRegularization
from gossamer.methods.prune.half_space import HalfSpaceProjection
from gossamer.methods.prune.slimming import Slimming
from gossamer.methods.prune.thinet import ThiNet
from gossamer.modules.cost import total_macs
from gossamer.modules.element_groups import channel_groups

DATA = "fashion-mnist"
TORCH_PRUNING = "Torch-Pruning, group norm"
REGULARIZED = 0.5  # of its passes


def cut(model: nn.Module, task: Task, context: Context, speedup: float, options: argparse.Namespace) -> nn.Module:
    """The usual way: cut, then train."""
    groups = channel_groups(model, task.example_inputs)
    widths = ThiNet(speedup=speedup).kept_counts(model, groups, task)
    smaller = ChannelPruning(widths=widths)(model, task, context).model
    return RecoveryDistillation(epochs=options.epochs, lr=options.lr)(smaller, task, context).model


def emptied(kind: Any) -> Callable[..., nn.Module]:
    """A method of gossamer that empties channels while it trains."""

    def run(model: nn.Module, task: Task, context: Context, speedup: float, options: argparse.Namespace) -> nn.Module:
        smaller: nn.Module = kind(speedup=speedup, epochs=options.epochs, lr=options.lr)(model, task, context).model
        return smaller

    return run


def by_torch_pruning(
    model: nn.Module, task: Task, context: Context, speedup: float, options: argparse.Namespace
) -> nn.Module:
    """Torch-Pruning's pruner inside gossamer's training."""
    import torch_pruning as tp

    model, (example,) = deepcopy(model), task.example_inputs
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    common: dict[str, Any] = {"global_pruning": True, "pruning_ratio": 1.0, "max_pruning_ratio": 0.9}
    pruner = tp.pruner.GroupNormPruner(
        model, example, importance=importance, iterative_steps=400, ignored_layers=[last], **common
    )
    steps = 0

    def regularize(*_: Any) -> None:
        nonlocal steps
        pruner.regularize(model)
        steps += 1
        if steps % len(task.train) == 0:
            pruner.update_regularizer()

    passes = max(1, round(REGULARIZED * options.epochs))
    hook = register_optimizer_step_pre_hook(regularize)
    try:
        RecoveryDistillation(epochs=passes, lr=options.lr).train(model, task, context, part=" regularized", keep="last")
    finally:
        hook.remove()
    wanted = tp.utils.count_ops_and_params(model, example)[0] / speedup
    while tp.utils.count_ops_and_params(model, example)[0] > wanted:
        pruner.step()
    return RecoveryDistillation(epochs=options.epochs - passes, lr=options.lr)(model, task, context).model


ROWS: dict[str, Callable[..., nn.Module]] = {
    "cut": cut,
    "prune.growing": emptied(GrowingRegularization),
    "prune.group_lasso": emptied(NeuronCount),
    "prune.half_space": emptied(HalfSpaceProjection),
    "prune.slimming": emptied(Slimming),
    TORCH_PRUNING: by_torch_pruning,
}


def measure(model: nn.Module, label: str, task: Task, seed: int, speedup: float, options: Any) -> dict[str, Any]:
    """One row: time, size and accuracy."""
    began = time.monotonic()
    context = Context(seed=seed, original=model, progress=Lines())
    smaller = ROWS[label](model, task, context, speedup, options)
    return {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "macs": total_macs(smaller, task.example_inputs),
        "params": sum(p.numel() for p in smaller.parameters()),
        "test": accuracy(smaller, task),
    }


def execute(options: argparse.Namespace) -> Mapping[str, Any]:
    """All points; those in the file are kept."""
    out: Path = options.out
    document: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"points": {}}
    document["measured"] = with_run(document, run_conditions(options.seeds, options.threads))
    for seed in options.seeds:
        whole = load_task(DATA, seed=seed)
        task = replace(whole, train=Limited(whole.train, options.batches))
        for name in options.networks:
            model = network(name, task, options.weights)
            document["points"].setdefault(
                f"{name}: whole", {"test": accuracy(model, task), "macs": total_macs(model, task.example_inputs)}
            )
            for speedup in options.speedups:
                for label in options.rows:
                    key = f"{name}, {speedup:g}x, {options.epochs} x {options.batches} steps, seed {seed}: {label}"
                    if key in document["points"]:
                        continue
                    document["points"][key] = measure(model, label, task, seed, speedup, options)
                    print(key, document["points"][key], flush=True)
                    write_text(out, json.dumps(document, indent=1))
    return document


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--weights", type=Path, help="of a network that is not shipped")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--speedups", type=float, nargs="+", default=[4.0, 8.0], help="multiply-adds before over after")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, default=150, help="of every pass")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "sparse-training.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    execute(options)


if __name__ == "__main__":
    main()
