"""Net2Net on Fashion-MNIST: how soon does a network that grew out of a trained one get to where a fresh one gets?

LeNet-5 of half the width is trained, grown (twice as wide, which is LeNet-5; or an identity layer behind each ReLU),
and trained on for half the epochs that a network of the grown shape is trained from scratch, at the same peak of the
learning rate: a tenth of it, which the paper advises, moves the copies apart too slowly for so few epochs.
`table(seed)` gives test top-1, in percent.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.methods import catalogue
from gossamer.methods.distill._student import reinitialized
from gossamer.train import Training, fit

EPOCHS, LR = 10, 0.02
GROWTHS: dict[str, dict[str, Any]] = {"wider": {"factor": 2.0}, "deeper": {"names": ("1", "4", "8")}}


@cache
def task(seed: int) -> Task:
    """Fashion-MNIST without augmentation; the seed is that of the order of training samples."""
    return load_task("fashion-mnist", seed=seed, augment=False)


def network() -> nn.Sequential:
    """LeNet-5 of half the width."""
    convolutions = [nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 25, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(400, 250), nn.ReLU(), nn.Linear(250, 10))


def trained(model: nn.Module, seed: int, epochs: int, lr: float) -> nn.Module:
    """In place: SGD with a cosine schedule, the weights that are best on validation data."""
    return fit(model, task(seed), Training(epochs=epochs, lr=lr), Context(seed=seed, accelerator="cpu")).model


def top1(model: nn.Module, seed: int) -> float:
    """Percent, on the test split."""
    with torch.no_grad():
        return 100 * task(seed).metric.score(model.eval(), task(seed).test)


def table(seed: int) -> dict[str, float]:
    """The small network, then for each growth: as it grew, trained on for half the epochs, and a fresh one."""
    torch.manual_seed(seed)
    small = trained(network(), seed, EPOCHS, LR)
    rows = {f"small, {EPOCHS} epochs": top1(small, seed)}
    for name, options in GROWTHS.items():
        grown = catalogue()[f"distill.{name}"](**options)(
            small, task(seed), Context(seed=seed, accelerator="cpu")
        ).model
        scratch = reinitialized(grown, seed, method="benchmark")
        rows[f"{name}, as it grew"] = top1(grown, seed)
        rows[f"{name}, {EPOCHS // 2} epochs more"] = top1(trained(grown, seed, EPOCHS // 2, LR), seed)
        rows[f"{name}, from scratch, {EPOCHS} epochs"] = top1(trained(scratch, seed, EPOCHS, LR), seed)
    return rows
