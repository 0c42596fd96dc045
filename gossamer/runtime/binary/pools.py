"""Max-pools of signs on bits."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gossamer.runtime.binary.images import SIZES, BitFormat, PackedImages
from gossamer.runtime.binary.kernels import BITS, pool_bits
from gossamer.runtime.binary.workers import Workers

Pair = tuple[int, int]
WORDS_A_MICROSECOND = 500  # of the input that one thread reads, about


@dataclass(frozen=True)
class SignPool:
    """A max-pool of numbers behind which a sign stands, as a pool of the signs.

    Attributes:
        kernel: rows and columns.
        stride: down and right.
        padding: rows and columns on each side, which are never the largest.
        dilation: down and right.
        ceil: whether what is left over at the end makes a window.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil: bool = False

    @staticmethod
    def of(args: tuple[Any, ...]) -> "SignPool":
        """That of the arguments of the operation, behind the first one."""

        def pair(place: int, usual: Any) -> Pair:
            given = args[place] if len(args) > place and args[place] not in (None, [], ()) else usual
            first, *more = given if isinstance(given, list | tuple) else [given]
            return int(first), int(more[0] if more else first)

        kernel = pair(0, 1)
        return SignPool(kernel, pair(1, kernel), pair(2, 0), pair(3, 1), len(args) > 4 and bool(args[4]))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of its output."""
        return _output_size(self, height, width)

    def __call__(
        self, images: PackedImages, form: BitFormat, flips: NDArray[np.bool_], workers: Workers
    ) -> PackedImages:
        """Pool bits.

        Args:
            images: without padding, dense; the bits of channels in `flips` are turned.
            form: of the result.
            flips: (channels,), whose bits are turned back.
            workers: the threads.
        """
        out, count = form.empty(), form.samples * form.height * form.width
        turned = np.zeros(form.words * BITS, bool)
        turned[: len(flips)] = flips
        bits = np.packbits(turned, bitorder="little")
        windows = pool_windows(self, images.form)
        reads, writes = images.form.places(), form.places()
        expected = windows.size * form.samples * form.words / WORDS_A_MICROSECOND
        workers.run(pool_bits, count, lambda a, b: (images.bits, reads, windows, bits, (a, b), out, writes), expected)
        return PackedImages(form, out)


@lru_cache(SIZES)
def pool_windows(pool: SignPool, form: BitFormat) -> NDArray[np.int64]:
    """(places of the output, places of the kernel): the places of the input by number, -1 for none."""
    rows, columns = pool.output_size(form.height, form.width)
    y, x = (
        np.arange(count)[:, None] * s + np.arange(k) * d - p
        for count, k, s, p, d in zip((rows, columns), pool.kernel, pool.stride, pool.padding, pool.dilation)
    )
    inside = ((y >= 0) & (y < form.height))[:, None, :, None] & ((x >= 0) & (x < form.width))[None, :, None, :]
    at = np.where(inside, y[:, None, :, None] * form.width + x[None, :, None, :], -1).reshape(rows * columns, -1)
    starts = np.arange(form.samples)[:, None, None] * (form.height * form.width)
    return np.where(at >= 0, at + starts, -1).reshape(form.samples * len(at), -1).astype(np.int64)


@lru_cache(SIZES)
def _output_size(pool: SignPool, height: int, width: int) -> tuple[int, int]:
    """By torch, which has a rule of its own for the last window."""
    image = torch.empty(1, height, width, device="meta")
    shape = F.max_pool2d(image, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil).shape
    return shape[1], shape[2]
