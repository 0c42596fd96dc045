"""The folder of a job: made, checked for writing, held by one job at a time."""

import errno
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gossamer.errors import BadInput, FolderBusy

LOCK_NAME = ".lock"
NO_TEMPORARY = "No usable temporary directory"  # the words of Python's tempfile


@contextmanager
def lock_folder(path: Path, name: str = LOCK_NAME) -> Iterator[Path]:
    """Make the folder where it is missing, and keep other jobs out of it until the block ends.

    name: of the lock file, for jobs that need only one file of the folder for themselves.
    The lock is the kernel's (`flock`), so it is gone when the process is, however it died. Raises BadInput where the
    folder cannot be used (a file, not writable, disk full), FolderBusy where another job holds it.
    """
    make_folder(path)
    handle = _locked(path / name)
    try:
        yield path
    finally:
        # Removed while still held: whoever has opened the old file notices that it is not the folder's any more.
        (path / name).unlink(missing_ok=True)
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make the folder and its parents, and see that a file can be written in it; BadInput says why not."""
    with writing(path), _a_place(path):
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file; the output needs a folder of its own: name another one")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"\0" * 4096)


def make_place(file: Path) -> None:
    """Make the folder of a file that is to be written; BadInput says why the file cannot be."""
    make_folder(file.parent)
    with writing(file), _a_place(file):
        if file.exists() and not file.is_file():
            kind = "a folder" if file.is_dir() else "no ordinary file"
            raise BadInput(f"{file} is {kind}; the output is a file: name another one")


@contextmanager
def _a_place(path: Path) -> Iterator[None]:
    """Where no folder can be at all: in /proc, in names with a NUL."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput) or (isinstance(error, OSError) and disk_trouble(error, path)):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"no file can be written in {str(path)!r}: {reason.lower()}; name another place") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is to be written; it takes the place of `path` when the block ends.

    Where `path` is a link, the file that it leads to is replaced. What fails leaves nothing, and an OSError of it names
    `path`, not the temporary file.
    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{real.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(real)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says against writing at `path` into one clear message (BadInput)."""
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename or "")).parent
        ours = place == path.parent or _is_inside(str(place), path)
        if isinstance(error, FileNotFoundError) and ours and not place.exists():
            raise BadInput(f"{place} is gone, while something was written there; run it again") from error
        if reason := disk_trouble(error, path):
            raise BadInput(reason) from error
        raise


def disk_trouble(error: OSError, path: Path | None = None) -> str | None:
    """What the user can do about what the system refuses: a failed write, a limit; None for any other error.

    path: what the user named; it is said in the place of files inside it, which are gossamer's.
    """
    named = error.filename2 or error.filename or path or "the output"
    where = path if path is not None and _is_inside(str(named), path) else named
    where = f"the current folder ({Path.cwd()})" if str(where) == "." else where
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full: {where} cannot be written; free some space, then run the same command again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{where}: {os.strerror(error.errno).lower()}; name another place, or change its permissions"
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return f"{where} cannot be written: a file stands where a folder is needed, or the other way round"
        case errno.ENAMETOOLONG:
            return f"{where} cannot be written: the name is too long"
        case errno.EFBIG:
            return f"{where} cannot be written: larger than the file system, or `ulimit -f`, allows"
        case errno.EIO | errno.ESTALE | errno.ENXIO | errno.ENODEV | errno.ENOTCONN:
            return f"{where}: the device reports an error; see to it, then run the same command again"
        case errno.EMFILE | errno.ENFILE:
            return "too many files are open at once; raise the limit (`ulimit -n`), then run the same command again"
        case errno.EAGAIN if isinstance(error, BlockingIOError):
            return "no further process can be started; raise the limit (`ulimit -u`), then run the same command again"
        case errno.ENOENT if NO_TEMPORARY in str(error):
            return f"no temporary file can be written ({error.strerror}); set TMPDIR to a folder with space"
        case _:
            return None


def _is_inside(named: str, path: Path) -> bool:
    """Whether a file is the folder or in it."""
    return Path(os.path.realpath(named)).is_relative_to(os.path.realpath(path))


def _locked(file: Path) -> int:
    """The open, locked lock file."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(handle, file):
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode() or "unknown"
            os.close(handle)
            raise FolderBusy(
                f"another job (process {holder}) works in {file.parent}; wait for it, or name another output"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same_file(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False
