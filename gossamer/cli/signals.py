"""Signals that end a command from outside: a scheduler's, a container's, a terminal that closes. They end it as Ctrl-C
does: temporary files are removed, and a job says how it continues."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = ("SIGTERM", "SIGHUP")
INTERRUPTED = 130
_statuses: list[int] = []


def status_of_signal() -> int | None:
    """The exit status of a signal that came since `ended_in_order` began. What a library was doing then may have
    swallowed the exception, and fail later by something else (torch, while it imports its parts)."""
    return _statuses[-1] if _statuses else None


class Ended(KeyboardInterrupt):
    """A signal that ends the process; status: what a shell says of it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Within: such signals raise `Ended`, unless whoever started the process had them ignored, as `nohup` does.

    Example:
        >>> with ended_in_order():
        ...     signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        False
    """
    numbers = [number for name in ENDING if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    process = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        _statuses.append(128 + number)
        if os.getpid() != process:  # a worker that was forked: nothing is to be put in order there
            os.kill(os.getpid(), number)
        raise Ended(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        _statuses.append(INTERRUPTED)
        signal.default_int_handler(number, frame)

    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    if before[signal.SIGINT] == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    _statuses.clear()
    for number in numbers:
        if before[number] == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        _statuses.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
