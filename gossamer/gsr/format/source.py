"""The bytes of a file on disk, read where they are asked for and never mapped."""

from typing import IO

import torch

from gossamer.errors import CorruptFile

AHEAD = 1 << 15  # bytes that are read at once where few are asked for


class OnDisk:
    """Looks like the bytes of a file that was opened for reading. CorruptFile where the file has become shorter.

    A file that is mapped into memory ends the process when another program shortens it, and may change after its
    checksum was found right. What was read stays what it is.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.size = handle, handle.seek(0, 2)
        self.at, self.ahead = 0, memoryview(b"")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int | slice) -> int | bytes | memoryview:
        """A byte or some; more than a few lie in memory of their own, which may be written."""
        if not isinstance(place, slice):
            return self._few(place, 1)[0]
        start, stop, _ = place.indices(self.size)
        return self._few(start, stop - start) if stop - start <= AHEAD else self._read(start, stop - start)

    def _few(self, start: int, count: int) -> bytes:
        if not self.at <= start <= start + count <= self.at + len(self.ahead):
            self.at, self.ahead = start, self._read(start, min(AHEAD, self.size - start))
        return bytes(self.ahead[start - self.at : start - self.at + max(0, count)])

    def _read(self, start: int, count: int) -> memoryview:
        # PyTorch's memory begins at a multiple of 64 bytes, from which vectors of numbers are read fastest.
        view, done = torch.empty(count, dtype=torch.uint8).numpy().data, 0
        self.handle.seek(start)
        while done < count:
            got = self.handle.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise CorruptFile(f"it was cut off while it was read: nothing is left at byte {start + done}")
            done += got
        return view
