"""Small files that several processes write, on storage that may be away for a while.

Every file is written whole or not at all, and never changed once it is there (signs of life apart), so two processes
that write at once lose nothing. No clocks of different machines are compared: how long something has not changed is
what one process sees with its own clock.
"""

import errno
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gossamer.core.progress import Progress
from gossamer.core.record import write_text
from gossamer.errors import BadInput, CorruptFile

T = TypeVar("T")
RETRY, PATIENCE = 5.0, 3600.0  # seconds between two tries while the storage is away, and of all tries together
AWAY = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
        *("ECONNREFUSED", "ECONNRESET", "ENODEV", "ENXIO", "EAGAIN", "EBUSY", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


@dataclass(frozen=True)
class Clock:
    """What time it is here, in seconds from any start, and waiting. Tests have their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class SharedFolder:
    """Files of JSON in a folder that several processes use.

    Args:
        path: that exists.
        anchor: a file in it that is always there; where it is not, the storage is away (not mounted, for instance).
        clock: of this process.
        progress: where is said that the storage is away.
    """

    def __init__(self, path: Path, anchor: str, clock: Clock, progress: Progress) -> None:
        self.path, self.anchor, self.clock, self.progress = path, path / anchor, clock, progress

    def names(self) -> set[str]:
        """Of all files that are complete."""
        return self._when_there(lambda: {file.name for file in self.path.iterdir() if not file.name.startswith(".")})

    def read(self, name: str) -> Any:
        """The value of a file.

        Raises:
            CorruptFile: it is no JSON.
        """
        text = self._when_there(lambda: (self.path / name).read_text(encoding="utf-8"))
        try:
            return json.loads(text)
        except ValueError as error:
            raise CorruptFile(
                f"{self.path / name} is damaged: {error}; delete it, and its work is done again"
            ) from error

    def put(self, name: str, value: Mapping[str, Any]) -> bool:
        """Write a file that is not there yet; False where another process was faster, whose file stays."""
        text = json.dumps(value)
        return self._when_there(lambda: _link(self.path / name, text))

    def renew(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a file in the place of the one that is there; where that fails, the next time counts."""
        with suppress(OSError):
            write_text(self.path / name, json.dumps(value))

    def _when_there(self, act: Callable[[], T]) -> T:
        """What `act` gives, as soon as the storage is there."""
        began: float | None = None
        while True:
            try:
                result = act()
            except OSError as error:
                if not self._away(error):
                    raise
                began = self._wait(error, began)
                continue
            if began is not None:
                self.progress.say(f"{self.path} is there again; nothing is lost")
            return result

    def _wait(self, error: OSError, began: float | None) -> float:
        now, why = self.clock.now(), os.strerror(error.errno or 0).lower()
        if began is None:
            self.progress.say(f"{self.path} cannot be reached ({why}); trying again until it can")
        elif now - began > PATIENCE:
            raise BadInput(f"{self.path} was not reached for an hour ({why}); run the same command again") from error
        self.clock.sleep(RETRY)
        return now if began is None else began

    def _away(self, error: OSError) -> bool:
        """Whether the error is one of the storage as a whole, that passes."""
        if error.errno != errno.ENOENT:
            return error.errno in AWAY
        try:
            self.anchor.stat()
        except OSError as other:
            return other.errno == errno.ENOENT or other.errno in AWAY
        return False


def _link(path: Path, text: str) -> bool:
    """Write a file under a temporary name and link it: whoever links first has written it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_text(temporary, text)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in NO_LINKS:
            raise BadInput(
                f"{path.parent}: this file system has no hard links; name a folder on another one"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return True
