"""What reading a `.gsr` file may cost: one account for everything that a file's content makes its reader do.

A number in a file is only a claim. Whatever it leads to (memory, a loop, a depth) is charged here first, and a claim
beyond the limits of docs/format.md is refused before it costs anything.
"""

from collections.abc import Iterable
from enum import Enum

from gossamer.errors import CorruptFile

MOST_DEEP = 64  # modules within one another


class Limit(Enum):
    """What is limited: how a refusal calls it, its unit, how much is free, and how much each byte of the file adds."""

    TENSORS = ("tensors are", "bytes", 1 << 28, 1 << 12)  # in memory; equal ones that are stored once count once
    INTEGERS = ("tensors are", "coded integers", 1 << 22, 1 << 10)
    COUNT = ("tensors are", "of them", 1 << 16, 1)
    PIECES = ("pieces are", "of them", 1 << 16, 1)
    NAMES = ("names are", "characters", 1 << 22, 1 << 8)
    GRAPH = ("graph is", "steps and arguments", 1 << 18, 1 << 4)
    SUMS = ("tensors that are generated from others are", "additions", 1 << 30, 1 << 14)
    WORK = ("sections are", "bytes for work", 1 << 28, 1 << 15)  # besides tensors and file, at one time

    def most(self, file_bytes: int) -> int:
        """How much a file of so many bytes may have."""
        free, each = self.value[2:]
        return free + each * file_bytes


class Ledger:
    """The accounts of one file. Everything is charged before it is allocated or done."""

    def __init__(self, file_bytes: int) -> None:
        self.file_bytes = file_bytes
        self.spent = dict.fromkeys(Limit, 0)

    def charge(self, limit: Limit, amount: int) -> None:
        """Add to what is spent in all. Raises CorruptFile beyond the limit."""
        self.spent[limit] += amount
        if self.spent[limit] > limit.most(self.file_bytes):
            self._refuse(limit)

    def at_once(self, needs: Iterable[int]) -> int:
        """How many of some pieces of work fit into the memory for work side by side, by their needs in bytes. Raises
        CorruptFile if one of them alone does not."""
        most, largest = Limit.WORK.most(self.file_bytes), max(needs, default=0)
        if largest > most:
            self._refuse(Limit.WORK)
        return most // max(1, largest)

    def _refuse(self, limit: Limit) -> None:
        words, unit = limit.value[:2]
        raise CorruptFile(
            f"its {words} larger than a file of {self.file_bytes} bytes may hold: "
            f"at most {limit.most(self.file_bytes):,} {unit}",
        )
