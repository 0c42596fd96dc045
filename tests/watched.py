"""Progress that knows what is under way, and loaders that note where they are read while nothing is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


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
