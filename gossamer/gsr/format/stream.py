"""Numbers and texts in bytes: what the header of a `.gsr` is made of, and reading it without ever trusting it."""

from typing import NoReturn

from gossamer.errors import CorruptFile
from gossamer.gsr.format.ledger import Ledger


class Writer:
    """Bytes, appended."""

    def __init__(self) -> None:
        self.data = bytearray()

    def byte(self, value: int) -> None:
        self.data.append(value)

    def varint(self, value: int) -> None:
        """A number from 0 on: seven bits a byte, low ones first, the top bit says that more follow (LEB128)."""
        while value >= 128:
            self.data.append(value & 127 | 128)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        """Any whole number: 0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
        self.varint(2 * value if value >= 0 else -2 * value - 1)

    def text(self, value: str) -> None:
        """UTF-8 with its length before it."""
        encoded = value.encode()
        self.varint(len(encoded))
        self.data += encoded


class Reader:
    """Bytes, taken from the front. Whatever is missing or out of bounds is a CorruptFile that names the section.

    ledger: what is charged for all that the bytes lead to, that of a file which consists of them if not given.
    """

    def __init__(self, data: bytes, section: str, ledger: Ledger | None = None) -> None:
        self.data, self.section, self.at = data, section, 0
        self.ledger = ledger or Ledger(len(data))

    def fail(self, why: str) -> NoReturn:
        raise damaged(self.section, why)

    def byte(self) -> int:
        if self.at >= len(self.data):
            self.fail("it ends too early")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            self.fail("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, most: int) -> int:
        """A number from 0 to `most`."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if value > most or shift > 63:
                self.fail(f"holds a number above {most}")
            if byte < 128:
                if byte == 0 and shift:
                    self.fail("holds a number with needless bytes")
                return value
            shift += 7

    def signed(self, most: int) -> int:
        """A number from -most - 1 to `most`."""
        value = self.varint(2 * most + 1)
        return value >> 1 if value % 2 == 0 else -(value >> 1) - 1

    def text(self, most: int) -> str:
        """A text of at most so many bytes."""
        try:
            return self.take(self.varint(most)).decode()
        except UnicodeDecodeError:
            self.fail("holds a text that is not UTF-8")

    def end(self) -> None:
        if self.at != len(self.data):
            self.fail(f"holds {len(self.data) - self.at} bytes too many")


def damaged(section: str, why: str) -> CorruptFile:
    """The error for a section that cannot be what was written."""
    return CorruptFile(f"section {section!r} is damaged: {why}")
