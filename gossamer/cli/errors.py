"""What becomes of an error: one message on stderr and an exit status."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from gossamer.cli.signals import INTERRUPTED, Ended, status_of_signal
from gossamer.core.folder import disk_trouble
from gossamer.errors import GossamerError, missing, out_of_memory

BUG, BAD_INPUT, GOAL_MISSED = 1, 2, 3
TRACEBACK = "--traceback"


class Stopped(Exception):
    """Ctrl-C in a job that can be continued; the message says how."""


class Commands(TyperGroup):
    """The group of all commands. Turns what they raise into exit statuses, and lets `--traceback` stand anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if TRACEBACK in args[:end]:
            args = [TRACEBACK, *(a for i, a in enumerate(args) if a != TRACEBACK or i > end)]
        with told():  # help is shown here
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with told(trace=ctx.params.get("traceback")):
            return super().invoke(ctx)


@contextmanager
def told(*, trace: bool = False) -> Iterator[None]:
    """What is raised inside, or by the last words on stdout, becomes one message and an exit status."""
    try:
        try:
            yield
        except typer.Exit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BaseException as error:
        if _nobody_reads(error):
            raise typer.Exit(BAD_INPUT) from error
        if isinstance(error, typer.Exit | typer.Abort | SystemExit) or _from_typer(error):
            raise
        if trace:
            traceback.print_exception(error, file=sys.stderr)
        status, message = verdict(error)
        typer.echo(message, err=True)
        raise typer.Exit(status) from error


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit status and message of an error."""
    if isinstance(error, Stopped | KeyboardInterrupt):
        status = next((cause.status for cause in _causes(error) if isinstance(cause, Ended)), INTERRUPTED)
        return status, f"\n{error}" if isinstance(error, Stopped) else "\nstopped"
    if (ended := status_of_signal()) is not None:
        return ended, "\nstopped"
    if isinstance(error, GossamerError):
        return BAD_INPUT, f"error: {error.shell or error}" + "".join(
            f"\n  {note}" for note in getattr(error, "__notes__", ())
        )
    for cause in _causes(error):
        if told := missing(cause):
            return BAD_INPUT, f"error: {told}"
        if isinstance(cause, OSError) and (reason := disk_trouble(cause)):
            return BAD_INPUT, f"error: {reason}"
        if "can't start new thread" in str(cause):
            return BAD_INPUT, f"error: {disk_trouble(BlockingIOError(errno.EAGAIN, ''))}"
        # torch and safetensors report a full disk with errors of their own.
        if os.strerror(errno.ENOSPC) in str(cause) or "PytorchStreamWriter failed writing" in str(cause):
            return BAD_INPUT, f"error: {disk_trouble(OSError(errno.ENOSPC, ''))}"
    if out_of_memory(error):
        return BAD_INPUT, "error: out of memory; take a smaller --batch, or a machine with more memory"
    return BUG, _bug(error)


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _from_typer(error: BaseException) -> bool:
    """Usage errors and exits, which typer itself shows; its exceptions have no common public base in every version."""
    return any(base.__module__.split(".")[0] in ("typer", "click") for base in type(error).__mro__)


def _nobody_reads(error: BaseException) -> bool:
    """Whether what reads stdout has gone (`| head`), which ends without a word; not a pipe between processes."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)  # rich ends so
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _bug(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
    return (
        f"gossamer failed: {type(error).__name__}: {error}\n  at {where}\n"
        "This is a bug of gossamer, not of your input. Please report it with the output of the same command "
        f"and {TRACEBACK} at its end."
    )
