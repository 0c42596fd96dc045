"""Standard streams that are closed, or whose other end has gone: results that cannot be shown are an error, messages
that cannot be shown are dropped, and no job ends for one."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

import typer
from typer.core import TyperCommand

from gossamer.cli.errors import BAD_INPUT

F = TypeVar("F", bound=Callable[..., Any])

_results: ContextVar[TextIO | None] = ContextVar("results", default=None)


def results() -> TextIO:
    """Where results go."""
    return _results.get() or sys.stdout


class App(typer.Typer):
    """Commands with results alone on stdout: what libraries and the user's code print goes to stderr."""

    def command(  # of its settings, those that are used here
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[F], F]:
        return super().command(name, cls=cls or _Command, **settings)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        with _results_apart():
            return super().invoke(ctx)


@contextmanager
def _results_apart() -> Iterator[None]:
    before = _results.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.reset(before)


class Messages(io.TextIOWrapper):
    """Text for people: what cannot be written (the reader left, the disk is full) is dropped."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


def open_streams() -> None:
    """Make the three streams usable, or end the program where results could not be shown.

    A closed one becomes the null device, also for the kernel: the next file that is opened would get its number, and
    what libraries print would go into it.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115
    stderr: TextIO | None = sys.stderr
    raw = open(2, "wb") if stderr is None else stderr.buffer  # noqa: SIM115
    encoding = "utf-8" if stderr is None else stderr.encoding
    sys.stderr = Messages(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without the sign for "times" is no error
    if 1 in closed:
        sys.stdout = open(1, "w")  # noqa: SIM115
        print("error: standard output is closed, so no result could be shown; send it to a file", file=sys.stderr)
        sys.exit(BAD_INPUT)


def usable_stdout() -> None:
    """At the end: what could not be written was told; Python would tell of it again when it closes the stream."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
