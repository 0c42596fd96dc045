"""Images of signs, one bit for each: 1 for +1, 0 for -1."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gossamer.runtime.binary.kernels import BITS, WORD, Limits, pack_planes, pack_rows
from gossamer.runtime.binary.workers import Workers

Padding = tuple[int, int, int, int]  # rows above and below, columns left and right
NO_PADDING: Padding = (0, 0, 0, 0)
SIZES = 64  # kinds of images whose places in memory are kept
NUMBERS_A_MICROSECOND = 4_000  # that are packed by one thread, about


@dataclass(frozen=True)
class BitFormat:
    """How the bits of images lie in memory: samples, rows, columns, groups of channels, words of 32 channels.

    Attributes:
        samples: number of images.
        channels: of all groups; those of a group fill whole words, and what is left of the last word is 0.
        groups: of channels.
        height: rows without padding.
        width: columns without padding.
        padding: rows and columns around each image.
        outside: what these hold: 1, -1, or 0, which is no bit: such places have bits 0 and are counted out.
    """

    samples: int
    channels: int
    groups: int
    height: int
    width: int
    padding: Padding = NO_PADDING
    outside: int = -1

    @property
    def words(self) -> int:
        """Of a group, at one place."""
        return -(-self.channels // self.groups // BITS)

    @property
    def place_bytes(self) -> int:
        """Of all channels at one place."""
        return self.groups * self.words * WORD

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns with padding."""
        top, bottom, left, right = self.padding
        return self.height + top + bottom, self.width + left + right

    @property
    def dense(self) -> bool:
        """Whether the bits of all channels lie side by side, so that other groups read them, too."""
        return self.groups == 1 or self.channels // self.groups % BITS == 0

    def empty(self) -> NDArray[np.uint8]:
        """Memory for the bits, in which every place is one of the padding."""
        return _template(self).copy()

    def places(self) -> NDArray[np.int64]:
        """The first byte of every place without padding, in the order samples, rows, columns."""
        return _places(self)


@dataclass(frozen=True)
class PackedImages:
    """Bits in their format."""

    form: BitFormat
    bits: NDArray[np.uint8]

    def padded(self, padding: Padding, outside: int) -> "PackedImages":
        """The same images with other padding; themselves where it is that already."""
        form = replace(self.form, padding=padding, outside=outside)
        if padding == self.form.padding and (outside == self.form.outside or not any(padding)):
            return self
        result = PackedImages(form, form.empty())
        result._inside()[...] = self._inside()
        return result

    def _inside(self) -> NDArray[np.uint8]:
        form = self.form
        (rows, columns), (top, _, left, _) = form.padded, form.padding
        whole = self.bits.reshape(form.samples, rows, columns, form.place_bytes)
        return whole[:, top : top + form.height, left : left + form.width]

    def numbers(self) -> NDArray[np.float32]:
        """The signs as numbers, (samples, channels, height, width)."""
        form = self.form
        size = form.channels // form.groups
        by_group = self._inside().reshape(form.samples, form.height, form.width, form.groups, form.words * WORD)
        bits = np.unpackbits(by_group, axis=-1, bitorder="little")[..., :size]
        signs = bits.reshape(form.samples, form.height, form.width, form.channels).transpose(0, 3, 1, 2)
        return np.where(signs, np.float32(1), np.float32(-1))


@lru_cache(SIZES)
def _places(form: BitFormat) -> NDArray[np.int64]:
    (rows, columns), (top, _, left, _) = form.padded, form.padding
    y, x = np.arange(form.height) + top, np.arange(form.width) + left
    of_one = (y[:, None] * columns + x).reshape(-1)
    starts = np.arange(form.samples)[:, None] * (rows * columns)
    return np.asarray((starts + of_one) * form.place_bytes, np.int64).reshape(-1)


@lru_cache(SIZES)
def _template(form: BitFormat) -> NDArray[np.uint8]:
    """Every place as if it were outside."""
    bits = np.arange(form.words * BITS) < (form.channels // form.groups if form.outside == 1 else 0)
    rows, columns = form.padded
    return np.tile(np.packbits(bits, bitorder="little"), form.samples * rows * columns * form.groups)


def zero_limits(channels: int) -> Limits:
    """Those of plain signs: 1 from 0 on."""
    return Limits(np.ones(channels, np.float32), np.zeros(channels, np.float32))


def pack_images(x: NDArray[np.float32], form: BitFormat, limits: Limits, workers: Workers) -> PackedImages:
    """Pack numbers (samples, channels, height, width), in this order or with the channels last in memory.

    Args:
        x: float32.
        form: of the result.
        limits: of every channel, when its numbers become 1.
        workers: the threads.
    """
    out, group = form.empty(), form.channels // form.groups
    expected = x.size / NUMBERS_A_MICROSECOND
    by_rows = x.transpose(0, 2, 3, 1)
    if by_rows.flags.c_contiguous or (group % 8 and form.groups > 1):
        rows = np.ascontiguousarray(by_rows).reshape(-1, form.channels)
        workers.run(pack_rows, len(rows), lambda a, b: (rows, limits, group, form.places(), (a, b), out), expected)
    else:
        planes = np.ascontiguousarray(x).reshape(form.samples, form.channels, -1)
        workers.run(
            pack_planes, len(planes), lambda a, b: (planes, limits, group, form.places(), (a, b), out), expected
        )
    return PackedImages(form, out)
