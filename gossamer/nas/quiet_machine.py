"""Trainings of a machine pause while one process measures times there.

Two locks of the kernel, which end with the process that holds them. Who trains shares `room`, and lets go of it between
two steps. Who measures takes `gate`, behind which all others wait before they take `room` again, and then `room` alone.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gossamer.core.progress import Progress


class QuietMachine:
    """The machine of this process, as far as searches of this user work on it.

    Args:
        folder: of the lock files, on a disk of the machine; None: that of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())

    @contextmanager
    def training(self) -> Iterator["Pauses"]:
        """Train inside; what it gives is called between two steps."""
        with self._opened("gate") as gate, self._opened("room") as room:
            pauses = Pauses(gate, room)
            pauses.enter()
            yield pauses

    @contextmanager
    def measuring(self, progress: Progress) -> Iterator[None]:
        """Measure inside, while all trainings pause. Waits for the step that each of them is at, and says so."""
        with self._opened("gate") as gate, self._opened("room") as room:
            with progress.busy("waiting until trainings on this machine pause"):
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(room, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.folder / f"gossamer-{os.getuid()}-{name}.lock", flags, 0o600)
        try:
            yield handle
        finally:
            os.close(handle)


class Pauses:
    """Lets others measure between two steps.

    Args:
        gate: an open lock file.
        room: another one.
    """

    def __init__(self, gate: int, room: int) -> None:
        self.gate, self.room = gate, room

    def __call__(self, *_: object) -> None:
        """Between two steps."""
        fcntl.flock(self.room, fcntl.LOCK_UN)
        self.enter()

    def enter(self) -> None:
        """Share the room, as soon as nobody measures or waits for it."""
        fcntl.flock(self.gate, fcntl.LOCK_SH)
        fcntl.flock(self.room, fcntl.LOCK_SH)
        fcntl.flock(self.gate, fcntl.LOCK_UN)
