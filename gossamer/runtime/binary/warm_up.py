"""Compiling all kernels, or reading what was compiled before, outside of what is timed."""

from functools import cache

import numpy as np

from gossamer.runtime.binary.images import BitFormat, pack_images, zero_limits
from gossamer.runtime.binary.pools import SignPool
from gossamer.runtime.binary.products import SignProduct, Switches
from gossamer.runtime.binary.workers import Workers


@cache
def compile_kernels() -> None:
    """Run every kernel once, on next to nothing. The first time on a machine this takes some seconds."""
    one, workers = SignProduct(np.ones((1, 1, 1, 1), bool), np.ones(1, np.float32)), Workers(1)
    form = BitFormat(1, 1, 1, 1, 1)
    for channels_last in (False, True):
        x = np.ones((1, 1, 1, 2) if channels_last else (1, 2, 1, 2), np.float32)
        x = x.transpose(0, 3, 1, 2) if channels_last else x
        pack_images(x, BitFormat(1, 2, 1, *x.shape[2:]), zero_limits(2), workers)
    images = pack_images(np.ones((1, 1, 1, 1), np.float32), form, zero_limits(1), workers)
    one.numbers(images, workers)
    switches = Switches(np.zeros(1, np.int32), np.zeros(1, bool))
    SignPool((1, 1), (1, 1))(one.bits(images, switches, form, workers), form, switches.flips, workers)
