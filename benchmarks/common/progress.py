"""Progress of a benchmark as plain lines."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Lines:
    """Progress as lines with the time since the start."""

    began: float = field(default_factory=time.monotonic)

    def say(self, message: str) -> None:
        print(f"[{time.monotonic() - self.began:7.0f} s] {message}", file=sys.stderr, flush=True)

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        yield from items

    def busy(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()
