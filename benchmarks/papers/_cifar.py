"""Rows on CIFAR-10: complete, for a machine that has the data and a GPU."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from benchmarks.papers._mnist import apply, error, trained
from benchmarks.papers._row import Numbers
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.models import build_for
from gossamer.train import Training

LONG = Training(epochs=200, lr=0.1, weight_decay=5e-4)


def data(seed: int) -> Task:
    """With the usual shifts and mirrors."""
    return load_task("cifar10", seed=seed)


def network(name: str, seed: int, training: Training = LONG) -> nn.Module:
    """A network of the zoo from scratch."""
    task = data(seed)
    return trained(name, partial(build_for, name, task), training, seed, task)  # type: ignore[no-any-return]


def errors_of(names: Mapping[str, str], seed: int, training: Training) -> Numbers:
    """The error of each network of the zoo after the same training. names: ours by that of the zoo."""
    return {f"error, {title}": error(network(name, seed, training), data(seed)) for name, title in names.items()}


def steps(model: nn.Module, seed: int, *methods: tuple[str, dict[str, Any]]) -> Any:
    """Methods by their names in a recipe, one after another."""
    for method, options in methods:
        model = apply(method, model, seed, data(seed), **options)
    return model
