"""Floats as integers for the coder and bits that are stored as they are: signs, exponents and zeros are worth coding.

The magnitude of a float32, its bits without the sign, is cut in two. The upper part is counted down from the largest
one, so that numbers are small, and takes the sign of the float; the number 0 stands for +0.0, and -1 for -0.0 where
there are any; these have no lower part. What lies below is nearly noise in a trained network and is stored bit by bit,
less the bits that are 0 in all values.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.gsr.format.float_grid import LARGEST, Floats

BITS = 31  # of a magnitude
SHIFTS = (23, 20)  # exponents alone, or three bits more: survivors of pruning lie close above their threshold
SPREAD = 1 << 16  # numbers whose bits are looked at together, a byte for each
Whole = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class FloatSplit:
    """How magnitudes are cut. top: the largest upper part; minus: whether -0.0 has a number; shift: bits of the lower
    part; cut: how many of its lowest bits are 0 in all values and are not stored; counts: values with a lower part, in
    each piece of the tensor."""

    top: int
    minus: bool
    shift: int
    cut: int
    counts: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bits of a lower part that are stored."""
        return self.shift - self.cut

    @property
    def bytes(self) -> int:
        """Of all lower parts."""
        return -(-sum(self.counts) * self.width // 8)

    def in_parts(self, q: NDArray[Any], rows: int) -> "FloatSplit":
        """The same with a count for each piece of so many rows."""
        pieces = [q[at : at + rows] for at in range(0, len(q), rows)]
        return replace(self, counts=tuple(int(np.count_nonzero(self.there(piece))) for piece in pieces))

    def reason(self, elements: int) -> str:
        """What contradicts itself in a tensor of so many elements, or an empty text."""
        if not self.cut <= self.shift <= BITS:
            return f"{self.cut} of {self.shift} bits are left out"
        if sum(self.counts) > elements:
            return f"{sum(self.counts)} values of {elements} are not zero"
        return "a magnitude has more than 31 bits" if self.top >> (BITS - self.shift) else ""

    def there(self, q: NDArray[Any]) -> NDArray[np.bool_]:
        """Which integers have a lower part."""
        found: NDArray[np.bool_] = (q != 0) & (q != -1) if self.minus else q != 0
        return found


def splits(values: Floats) -> list[tuple[FloatSplit, NDArray[np.int32], bytes]]:
    """The ways to split that are worth measuring: how, integers, lower parts. values: some of them not +0.0."""
    bits = values.view(np.uint32)
    magnitudes = bits & 0x7FFFFFFF
    there = magnitudes != 0
    minus, found = bool((bits == 1 << BITS).any()), []
    cut = _zeros_below(int(np.bitwise_or.reduce(magnitudes)))
    for shift in dict.fromkeys(max(cut, shift) for shift in SHIFTS):
        upper = magnitudes >> shift
        top = int(upper.max())
        if top < LARGEST - 2:
            q = np.where(there, top + 1 + minus - upper.astype(np.int32), bits != 0)
            q = np.where(bits >> BITS != 0, -q, q)
            lower = (magnitudes[there] & ((1 << shift) - 1)) >> cut
            split = FloatSplit(top=top, minus=minus, shift=shift, cut=cut, counts=(lower.size,))
            found.append((split, q, pack_bits(lower, shift - cut)))
    return found


class Joiner:
    """Puts the values of a piece together again, some after the others."""

    def __init__(self, split: FloatSplit, piece: int, before: int, low: bytes | memoryview) -> None:
        """before: how many lower parts the pieces before have. low: of the whole tensor."""
        self.split, self.left, self.low = split, split.counts[piece], np.frombuffer(low, np.uint8)
        self.at, self.last = before * split.width, piece == len(split.counts) - 1

    def join(self, q: NDArray[Any]) -> Floats | None:
        """The next values; None where integers and lower parts do not fit together."""
        split = self.split
        there = split.there(q)
        upper = split.top + 1 + split.minus - np.abs(q.astype(np.int32))
        count = int(np.count_nonzero(there))
        if count > self.left or (there & ((upper < 0) | (upper > split.top))).any():
            return None
        bits = np.where(there, upper, 0).astype(np.uint32) << np.uint32(split.shift)
        bits[there] |= unpack_bits(self.low, self.at, count, split.width) << np.uint32(split.cut)
        bits[q < 0] |= np.uint32(1 << BITS)
        self.left, self.at = self.left - count, self.at + count * split.width
        return bits.view(np.float32)

    @property
    def done(self) -> bool:
        """Whether all lower parts were used, and the bits behind the last one are 0."""
        return self.left == 0 and not (self.last and self.at % 8 and self.low[-1] >> self.at % 8)


def pack_bits(numbers: Whole, width: int) -> bytes:
    """Numbers of `width` bits, one after the other, the low bits of a byte first."""
    parts = []
    for at in range(0, numbers.size, SPREAD):  # a multiple of 8: every part begins with a byte
        spread = np.unpackbits(_bytes_of(numbers[at : at + SPREAD]), 1, bitorder="little")
        parts.append(np.packbits(spread[:, :width], bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: NDArray[np.uint8], start: int, count: int, width: int) -> Whole:
    """`count` of the numbers that `pack_bits` was given, from bit `start` on."""
    found = np.zeros(count, np.uint32)
    for at in range(0, count if width else 0, SPREAD):
        some, first = min(SPREAD, count - at), start + at * width
        spread = np.unpackbits(data[first // 8 : (first + some * width) // 8 + 1], bitorder="little")[first % 8 :]
        square = np.zeros((some, 32), np.uint8)
        square[:, :width] = spread[: some * width].reshape(some, width)
        found[at : at + some] = np.packbits(square, 1, bitorder="little").view("<u4").reshape(-1)
    return found


def _bytes_of(numbers: Whole) -> NDArray[np.uint8]:
    return numbers.astype("<u4").view(np.uint8).reshape(-1, 4)


def _zeros_below(magnitude: int) -> int:
    """How many of the lowest bits are 0."""
    return (magnitude & -magnitude).bit_length() - 1 if magnitude else BITS
