"""A task that is learned in a second, for the tests of training."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.train import Training


def batches(samples: int, seed: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Images (size, 2, 6, 6) whose class is the quadrant that is brightest."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (samples,), generator=generator)
    x = torch.randn(samples, 2, 6, 6, generator=generator)
    for n, quadrant in enumerate(y.tolist()):
        x[n, :, 3 * (quadrant // 2) :, 3 * (quadrant % 2) :][:, :3, :3] += 1.0
    return list(zip(x.split(size), y.split(size)))


def task(**changes: Any) -> Task:
    toy = Task(
        name="quadrants",
        train=batches(128, seed=0),
        validation=batches(64, seed=1),
        test=Forbidden(),
        calibration=batches(32, seed=0),
        example_inputs=(torch.zeros(1, 2, 6, 6),),
    )
    return replace(toy, **changes)


class Forbidden:
    """Test data, which training never looks at."""

    def __iter__(self) -> Any:
        raise AssertionError("the test data were touched")

    def __len__(self) -> int:
        raise AssertionError("the test data were touched")


def net(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * 16, 4),
        )


def linear(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 4))


def training(**changes: Any) -> Training:
    return replace(Training(epochs=3, lr=0.05, precision="32-true", evaluate_every=1), **changes)


def on_cpu(**changes: Any) -> Context:
    return replace(Context(accelerator="cpu"), **changes)


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether all weights and buffers are equal to the bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def distance(first: nn.Module, second: nn.Module) -> float:
    """The largest difference between two weights or buffers."""
    a, b = first.state_dict(), second.state_dict()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


class Stop(Exception):
    """A training that is cut off by the test."""


class Ending:
    """A loader that cuts the training off before batch `at` of epoch `epoch`."""

    def __init__(self, items: Iterable[Any], *, epoch: int, at: int, error: type[BaseException] = Stop) -> None:
        self.items, self.end, self.error = list(items), (epoch, at), error
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        for index, item in enumerate(self.items):
            if (self.epoch, index) == self.end:
                raise self.error
            yield item


def checkpoint_every_step(monkeypatch: Any) -> None:
    monkeypatch.setattr("gossamer.train.loop.CHECK_STEPS", 1)
    monkeypatch.setattr("gossamer.train.loop.CHECKPOINT_SECONDS", 0.0)


def folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
