"""Values that repeat in long runs: the bytes of a tensor as an LZMA2 stream, where nothing else is as short."""

import lzma
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.gsr.format.float_grid import BLOCK

CHUNK, CHUNKS = 1 << 13, 3  # of the sample that tells whether it is worth the time
SMALLEST, REPEATED, NEAR, NEW = 256, 1 / 16, 1.05, 3.6  # NEW: bytes for a value that was not there before
MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64)
LEAST_WINDOW, MOST_WINDOW = 1 << 12, 1 << 26
OWN = 1 << 17  # bytes of the unpacker itself
Bytes = NDArray[np.uint8]


def window(size: int) -> int:
    """How far back a stream of so many bytes may look: a power of two."""
    return min(max(LEAST_WINDOW, 1 << max(0, size - 1).bit_length()), MOST_WINDOW)


def pack(data: Bytes) -> bytes:
    """The stream."""
    return lzma.compress(data.data, lzma.FORMAT_RAW, filters=_filters(data.size))


def unpack(data: bytes | memoryview, target: Bytes) -> bool:
    """Fill the target with what a stream gives; False where that is not just as much."""
    unpacker, at, given = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(target.size)), 0, data
    try:
        while not unpacker.eof:
            # The mark of the end may still be unread when all bytes are there.
            some = unpacker.decompress(given, min(BLOCK, target.size - at) or 1)
            if len(some) > target.size - at or (not some and unpacker.needs_input):
                return False
            target[at : at + len(some)] = np.frombuffer(some, np.uint8)
            at, given = at + len(some), b""
    except (lzma.LZMAError, EOFError):
        return False
    return at == target.size and not unpacker.unused_data


def work(size: int) -> int:
    """The memory that `unpack` takes besides a target of so many bytes, at most."""
    return window(size) + 2 * min(BLOCK, size) + OWN


def worth_packing(data: Bytes, best: float) -> bool:
    """Whether a stream may well be shorter than `best` bytes: from a sample, or because values occur again."""
    if data.size < SMALLEST:
        return False
    if data.size <= CHUNK * CHUNKS:
        return True
    starts = [number * (data.size - CHUNK) // (CHUNKS - 1) // 4 * 4 for number in range(CHUNKS)]
    sample = np.concatenate([data[start : start + CHUNK] for start in starts])
    if len(pack(sample)) / sample.size < NEAR * best / data.size:
        return True
    values, different = _different(data, 1)
    again = values - different
    # A value that was there before is told by how far back that was, and a byte more.
    if NEW * different + again * (math.log2(max(1, values)) / 8 + 1) < NEAR * best and again:
        return True
    rows, different = _different(data, 4)
    return different < (1 - REPEATED) * rows


def _different(data: Bytes, length: int) -> tuple[int, int]:
    """How many places there are where so many values follow one another, zeros left out, and how many that differ.

    Every sixteenth place is looked at, chosen by what stands there: copies are found wherever they begin.
    """
    words, found, count = data[: data.size // 4 * 4].view(np.uint32), [np.empty(0, np.uint64)], 0
    for at in range(0, words.size, BLOCK):
        some = words[at : at + BLOCK]
        some = some[some & 0x7FFFFFFF != 0].astype(np.uint64)
        if some.size >= length:
            mixed = np.lib.stride_tricks.sliding_window_view(some, length) @ MIX[:length]
            found.append(mixed[mixed >> np.uint64(60) == 0])
            count += mixed.size
    chosen = np.concatenate(found)
    return count, round(count * len(np.unique(chosen)) / max(1, len(chosen)))


def _filters(size: int) -> list[dict[str, Any]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window(size)}]
