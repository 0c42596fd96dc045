"""No pass over data is silent: whatever reads a loader does so under a bar or a label."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import gossamer
from gossamer.core.context import Context
from gossamer.train import Training, fit


@dataclass
class Watched:
    """Progress that knows how much work is under way."""

    labels: list[str] = field(default_factory=list)

    def say(self, message: str) -> None: ...

    def bar(self, items: Iterable[Any], *, label: str, total: int | None = None) -> Iterator[Any]:
        with self.busy(label):
            yield from items

    @contextmanager
    def busy(self, label: str) -> Iterator[None]:
        self.labels.append(label)
        try:
            yield
        finally:
            self.labels.remove(label)


@dataclass
class Asking:
    """A loader that notes where it was read without a label."""

    loader: Any
    progress: Watched
    silent: list[int]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
            if not self.progress.labels:
                self.silent.append(number)
            yield batch


@pytest.mark.parametrize("lr", [0.01, None])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_and_its_validation_are_never_silent(lr: float | None, keep: Any) -> None:
    task, progress, silent = gossamer.data.tiny_task(), Watched(), list[int]()
    watched = {name: Asking(getattr(task, name), progress, silent) for name in ("train", "validation")}
    training = Training(epochs=2, lr=lr, keep=keep)
    fit(gossamer.data.tiny_network(), replace(task, **watched), training, Context(progress=progress))
    assert silent == []
