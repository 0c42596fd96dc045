"""Where work says what it does: nowhere, or to Python's logging and one line on the terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
LOG = logging.getLogger("gossamer")
LATE, EVERY = 1.0, 0.2  # seconds before a bar is shown, and between two drawings of it
WIDTH = 24  # characters of a bar


class Progress(Protocol):
    """Where a job says what it does. The command line has its own; library calls have `Logged`."""

    def say(self, message: str) -> None:
        """One line of plain text."""

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        """Go through the items under a progress bar."""

    def busy(self, label: str) -> AbstractContextManager[None]:
        """Work of unknown length."""


class Silent:
    """Says nothing. In a context it stands for "not chosen": library calls take `Logged` in its place."""

    def say(self, message: str) -> None: ...

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        yield from items

    def busy(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()


class Quiet(Silent):
    """Says nothing, by choice: `verbose=False`, or the command line's `--quiet`."""


@dataclass(frozen=True)
class LabelledProgress:
    """Progress of a part of a job: the label of the part stands before every line and bar."""

    progress: Progress
    label: str

    def say(self, message: str) -> None:
        self.progress.say(f"{self.label}: {message}")

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        return self.progress.bar(items, label=f"{self.label}: {label}", total=total)

    def busy(self, label: str) -> AbstractContextManager[None]:
        return self.progress.busy(f"{self.label}: {label}")


class Logged:
    """Progress of library calls: messages go to the logger "gossamer" at level INFO, and where standard error is a
    terminal, one line shows what is under way.

    Example:
        >>> import logging, sys
        >>> handler = logging.StreamHandler(sys.stdout)
        >>> logger = logging.getLogger("gossamer")
        >>> logger.addHandler(handler); logger.setLevel(logging.INFO)
        >>> Logged().say("original: top-1 93.20 % on validation")
        original: top-1 93.20 % on validation
        >>> logger.removeHandler(handler); logger.setLevel(logging.NOTSET)
    """

    def say(self, message: str) -> None:
        _clear()
        LOG.info(message)

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        total = len(items) if total is None and isinstance(items, Sized) else total
        began = drawn = time.monotonic()
        try:
            for done, item in enumerate(items):
                now = time.monotonic()
                if now - began > LATE and now - drawn > EVERY:
                    drawn = now
                    _draw(bar_line(label, done, total, now - began))
                yield item
        finally:
            _clear()

    @contextmanager
    def busy(self, label: str) -> Iterator[None]:
        _draw(f"{label} ...")
        try:
            yield
        finally:
            _clear()


def bar_line(label: str, done: int, total: int | None, seconds: float) -> str:
    """What a bar looks like.

    Example:
        >>> bar_line("training: epoch 1 of 2", 30, 40, 6.0)
        'training: epoch 1 of 2 [##################......] 30/40, 6 s so far, 2 s left'
    """
    if not total:
        return f"{label}: {done}, {seconds:.0f} s so far"
    filled = min(WIDTH, WIDTH * done // total)
    left = f", {seconds / done * (total - done):.0f} s left" if done else ""
    return f"{label} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}, {seconds:.0f} s so far{left}"


def _draw(line: str) -> None:
    """In the place of the line before it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line[:118]}\x1b[K")
        sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
