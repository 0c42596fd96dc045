"""Downloads: resumable, checked, and only then under their own name."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from gossamer.core.progress import Progress, Silent
from gossamer.errors import BadInput, CorruptFile

TRIES = 3
TIMEOUT_S = 30
BLOCK = 1 << 18
RANGE_NOT_SATISFIABLE = 416


def fetch(url: str, path: Path, checksum: str, *, progress: Progress | None = None) -> Path:
    """Download a file unless it is there, and give its path.

    What arrived before an interruption is kept as `<name>.part`, and the next try asks for the rest only. checksum:
    "md5:..." or "sha256:..."; a file that fails it is deleted. Several processes may ask for the same file.
    """
    progress = progress or Silent()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                _fetch(url, path, checksum, progress)
    except (BadInput, CorruptFile):
        raise
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error}; set $GOSSAMER_DATA to a folder with space") from error
    return path


def _fetch(url: str, path: Path, checksum: str, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    progress.say(f"downloading {url}")
    for attempt in range(1, TRIES + 1):
        try:
            _receive(url, part)
            break
        except _Interrupted as error:
            if attempt == TRIES or error.final:
                kept = f"; {part.stat().st_size} bytes are kept, the next try continues there" if part.exists() else ""
                raise BadInput(f"cannot download {url}: {error}{kept}") from error
    if digest(part, checksum.partition(":")[0]) == checksum:
        part.replace(path)
    elif resumed:
        # The old part may be of another file, or of an older one: once more from the start.
        part.unlink()
        _fetch(url, path, checksum, progress)
    else:
        part.unlink()
        raise CorruptFile(f"{url} has the wrong checksum, it must be {checksum}; deleted what came")


class _Interrupted(Exception):
    """The download ended early. final: trying again is of no use."""

    final = False


def _receive(url: str, part: Path) -> None:
    """Append what is missing to the part."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum tells
        interrupted = _Interrupted(str(error))
        interrupted.final = error.code < 500
        raise interrupted from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error)) from error
    with response:
        continues = response.status == http.client.PARTIAL_CONTENT
        with part.open("ab" if continues else "wb") as file:
            expected, received = response.headers.get("Content-Length"), _copy(response, file)
    if expected is not None and received < int(expected):
        raise _Interrupted(f"the connection closed after {received} of {expected} bytes")


def _copy(response: http.client.HTTPResponse, file: BinaryIO) -> int:
    received = 0
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error)) from error
        if not block:
            return received
        file.write(block)
        received += len(block)


def digest(path: Path, algorithm: str) -> str:
    """ "algorithm:hex" of a file's content."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
