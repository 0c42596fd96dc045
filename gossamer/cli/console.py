"""Output: results on stdout (tables, or one JSON document), everything else on stderr."""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gossamer.cli.streams import results
from gossamer.core.progress import Progress as RunProgress
from gossamer.core.progress import Quiet
from gossamer.report.text import duration

T = TypeVar("T")
LATE = 2.0  # seconds; what is done sooner gets no bar
EVERY = 15.0  # seconds between two plain lines about one piece of work
LOADING = "loading PyTorch, network and data"
TICK = 0.25  # seconds between two looks at what is under way


class Console:
    """Where a command's output goes: tables on a terminal, plain aligned lines elsewhere, one document with --json."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.progress: RunProgress = _progress(quiet)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table on stdout; nothing with --json. Columns of numbers are set to the right."""
        if self.as_json:
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        right = [all(_is_number(row[i]) for row in cells if row[i]) for i in range(len(columns))]
        if not results().isatty():
            self._plain_table(title, columns, cells, right)
            return
        table = Table(title=title or None, title_justify="left", title_style="bold")
        for name, is_right in zip(columns, right):
            table.add_column(name, justify="right" if is_right else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        Terminal(file=results(), markup=False, highlight=False).print(table)

    def line(self, text: str = "") -> None:
        """A line of the result on stdout; nothing with --json."""
        if not self.as_json:
            print(text, file=results())

    def document(self, data: object) -> None:
        """The whole result for machines on stdout; nothing without --json."""
        if self.as_json:
            print(json.dumps(_plain(data), indent=1, allow_nan=False), file=results())

    def note(self, text: str) -> None:
        """Something the user should know, on stderr, also with --quiet."""
        print(text, file=sys.stderr)

    def _plain_table(self, title: str, columns: Sequence[str], cells: list[list[str]], right: Sequence[bool]) -> None:
        widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
        if title:
            print(title, file=results())
        for row in [list(columns), *cells]:
            padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right))
            print("  ".join(padded).rstrip(), file=results())


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").lstrip("+-").rstrip("%x ms").isdigit()


def _plain(data: Any) -> Any:
    """JSON values: dataclasses as objects, paths as text, NaN and infinities (which JSON has not) as null."""
    if is_dataclass(data) and not isinstance(data, type):
        return _plain(asdict(data))
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and data - data != 0:
        return None
    return data if isinstance(data, str | int | float | bool | None) else str(data)


def _progress(quiet: bool) -> RunProgress:
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


class _LateProgress(Progress):
    """Shows a task only when it has taken longer than `LATE`."""

    def get_renderables(self) -> Iterable[RenderableType]:
        late = [task for task in self.tasks if (task.elapsed or 0) > LATE]
        if late:
            yield self.make_tasks_table(late)


class Bars:
    """Progress on a terminal."""

    def __init__(self) -> None:
        self._terminal = Terminal(file=sys.stderr, markup=False, highlight=False)
        self._bars = _LateProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._terminal,
            transient=True,
        )

    def say(self, message: str) -> None:
        self._terminal.print(message)

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        with self._task(label, _length(items, total)) as advance:
            for item in items:
                yield item
                advance()

    @contextmanager
    def busy(self, label: str) -> Iterator[None]:
        with self._task(label, None):
            yield

    @contextmanager
    def _task(self, label: str, total: int | None) -> Iterator[Any]:
        task = self._bars.add_task(label, total=total)
        self._bars.start()
        try:
            yield lambda: self._bars.advance(task)
        finally:
            self._bars.remove_task(task)
            if not self._bars.tasks:
                self._bars.stop()


@dataclass
class _Work:
    """Something under way. said: when it was last spoken of; None before the first time."""

    label: str
    total: int | None
    began: float
    done: int = 0
    said: float | None = None

    def due(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        return now - self.began > LATE if self.said is None else now - self.said > EVERY

    def line(self, now: float) -> str:
        """How far it is, how long it took, how long the rest will take."""
        spent = now - self.began
        parts = [f"{self.done}/{self.total}" if self.total else str(self.done)] if self.done else []
        parts.append(f"{duration(spent)} so far")
        if self.total and self.done:
            parts.append(f"about {duration(spent / self.done * (self.total - self.done))} left")
        return f"{self.label}: {', '.join(parts)}"


class Lines:
    """Progress where no terminal is: timestamped lines, few of them. What takes longer than `LATE` is named, and again
    every `EVERY` seconds, by a thread that lives as long as there is work."""

    def __init__(self) -> None:
        self._under_way: list[_Work] = []
        self._change = threading.Condition()
        self._stream = sys.stderr  # exporters are silenced by another one in its place, for as long as they run

    def say(self, message: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {message}", file=self._stream, flush=True)

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        with self._work(label, _length(items, total)) as work:
            for item in items:
                yield item
                work.done += 1

    @contextmanager
    def busy(self, label: str) -> Iterator[None]:
        with self._work(label, None):
            yield

    @contextmanager
    def _work(self, label: str, total: int | None) -> Iterator[_Work]:
        work = _Work(label, total, time.monotonic())
        with self._change:
            self._under_way.append(work)
            if len(self._under_way) == 1:
                threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield work
        finally:
            with self._change:
                self._under_way.remove(work)
                self._change.notify_all()
            if (spent := time.monotonic() - work.began) > LATE:
                self.say(f"{label}: {duration(spent)}")

    def _watch(self) -> None:
        """Speaks of the innermost work that was silent for too long."""
        with self._change:
            while self._under_way:
                work, now = self._under_way[-1], time.monotonic()
                if work.due(now):
                    work.said = now
                    self.say(work.line(now))
                self._change.wait(TICK)


def _length(items: Iterable[Any], total: int | None) -> int | None:
    if total is not None:
        return total
    return len(items) if isinstance(items, Sized) else None
