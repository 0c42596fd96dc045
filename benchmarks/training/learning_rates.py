"""Defaults of every method that trains, against the best of a grid of rates set by hand.

    python -m benchmarks.training.learning_rates --models lenet5 resnet14 --data digits fashion-mnist

A network is trained, then each method is called with its defaults and, for comparison, with each rate of a grid;
everything else is equal. The hand's rate is the best on validation data; test data are only reported. Trainings are
short: what explodes shows at once. Rows are kept as they come, so that a run that was stopped goes on.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.tables import write_table
from gossamer.constraints.apply import materialize
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.data.batches import Batches
from gossamer.errors import GossamerError
from gossamer.measure import evaluate
from gossamer.methods import catalogue
from gossamer.methods._training import Trained
from gossamer.models import build_for
from gossamer.runtime.runners import open_runner
from gossamer.train import Training, fit

# What a method cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "prune.gradual": {"sparsity": 0.8},
    "prune.iterative": {"sparsity": 0.8},
    "prune.movement": {"sparsity": 0.8},
    "prune.rigl": {"sparsity": 0.8, "start": "magnitude"},
    "quantize.rate": {"compression_ratio": 10},
}
SGD, ADAM = (0.1, 0.03, 0.01, 0.003), (0.01, 0.003, 0.001, 0.0003)
BY_ADAM = ("quantize.rate", "share.soft")
WITHIN = 2.0  # points of the hand's result


def methods() -> list[str]:
    """Names of all methods that train."""
    return [name for name, cls in catalogue().items() if issubclass(cls, Trained)]


def shortened(task: Task, samples: int, batch_size: int) -> Task:
    """The task with so many training samples at most, in batches of this size."""
    train = task.train
    assert isinstance(train, Batches)
    index = train.index[torch.randperm(len(train.index), generator=torch.Generator().manual_seed(0))[:samples]]
    small = Batches(
        train.images,
        train.labels,
        index=index,
        batch_size=batch_size,
        normalisation=train.normalisation,
        augmentation=train.augmentation,
        shuffle=True,
        drop_last=True,
        seed=train.seed,
    )
    return replace(task, train=small)


def dense(name: str, task: Task, seed: int, steps: int) -> nn.Module:
    """The network that the methods are given, trained for a while."""
    torch.manual_seed(seed)
    model = build_for(name, task)
    epochs = math.ceil(steps / len(task.train))
    return fit(model, task, Training(epochs=epochs, lr=None, clip=5.0), Context(seed=seed, accelerator="cpu")).model


def result(method: str, model: nn.Module, task: Task, seed: int, steps: int, lr: float | None) -> dict[str, Any]:
    """Accuracy of a method's result in percent, at a rate or at its default; None where it gave up."""
    epochs = math.ceil(steps / len(task.train))
    kind: Any = catalogue()[method]
    step = kind(epochs=epochs, **({} if lr is None else {"lr": lr}), **NEEDED.get(method, {}))
    context = Context(seed=seed, accelerator="cpu", original=model)
    student = fresh(model, seed) if method.startswith("distill.") and method != "distill.recover" else model
    try:
        made = open_runner("torch", materialize(step.apply(student, task, context)).eval(), threads=1)
    except GossamerError as error:
        return {"lr": lr, "validation": None, "test": None, "error": str(error)}
    scores = {split: evaluate(made, task, split).shown for split in ("validation", "test")}
    return {"lr": lr, **scores}


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """The same network with other weights."""
    from gossamer.methods.distill._student import reinitialized

    return reinitialized(model, seed + 1, method="benchmark")


def row(method: str, network: nn.Module, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """One method on one network and data set: its default and the grid."""
    grid = ADAM if method in BY_ADAM else SGD
    tries = [result(method, network, task, options.seed, options.steps, lr) for lr in (None, *grid)]
    by_hand = max(tries[1:], key=lambda one: -math.inf if one["validation"] is None else one["validation"])
    return {"data": task.name, "method": method, "default": tries[0], "by hand": by_hand, "grid": tries[1:]}


def execute(options: argparse.Namespace) -> dict[str, Any]:
    """Every row that is not in the file yet."""
    found: dict[str, Any] = {"rows": []}
    if options.out.exists():
        found = json.loads(options.out.read_text())
    known = {(one["model"], one["data"], one["method"]) for one in found["rows"]}
    names = ("steps", "samples", "batch_size", "seed", "dense_steps")
    found["conditions"] = {name: getattr(options, name) for name in names}
    found["measured"] = with_run(found, run_conditions([options.seed], torch.get_num_threads()))
    for data in options.data:
        task = shortened(load_task(data, download=False), options.samples, options.batch_size)
        for model in options.models:
            wanted = [m for m in options.methods if (model, data, m) not in known]
            made = dense(model, task, options.seed, options.dense_steps) if wanted else nn.Identity()
            for method in wanted:
                found["rows"].append({"model": model, **row(method, made, task, options)})
                write_text(options.out, json.dumps(found, indent=1))
                print(line(found["rows"][-1]), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    default, by_hand = row["default"]["test"], row["by hand"]["test"]
    at = f"| {row['model']} | {row['data']} | {row['method']}"
    if default is None or by_hand is None:
        return f"{at} | {shown(default)} | {shown(by_hand)} | |"
    return f"{at} | {default:.2f} | {by_hand:.2f} ({row['by hand']['lr']:g}) | {by_hand - default:+.2f} |"


def shown(accuracy: float | None) -> str:
    """A cell of the table."""
    return "gave up" if accuracy is None else f"{accuracy:.2f}"


def render(found: dict[str, Any]) -> str:
    """The table, and how many defaults are as good as the hand."""
    at = found["conditions"]
    rows = [one for one in found["rows"] if one["by hand"]["test"] is not None]
    both = [(one["default"]["test"], one["by hand"]["test"]) for one in rows]
    near = [default for default, by_hand in both if default is not None and by_hand - default <= WITHIN]
    head = "| network | data | method | default, test % | best of the grid, test % (rate) | behind, points |"
    return "\n".join(
        [
            f"{len(near)} of {len(rows)} defaults are within {WITHIN:g} points of the best rate of the grid "
            f"({at['steps']} steps, batch {at['batch_size']}, at most {at['samples']} training samples, one seed).",
            "",
            head,
            "|---|---|---|---|---|---|",
            *map(line, rows),
            "",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet5", "resnet14"])
    parser.add_argument("--data", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--methods", nargs="+", default=methods())
    parser.add_argument("--steps", type=int, default=200, help="of every training")
    parser.add_argument("--dense-steps", type=int, default=400, help="of the network that the methods get")
    parser.add_argument("--samples", type=int, default=5000, help="training samples, at most")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "defaults.json")
    parser.add_argument("--table", action="store_true", help="only the table, from the file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    found = json.loads(options.out.read_text()) if options.table else execute(options)
    text = render(found)
    write_table(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
