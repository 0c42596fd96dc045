"""Frequency tables of the rANS coder."""

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import CorruptFile

BITS = 12
TOTAL = 1 << BITS
ESCAPE = 255
OFFSET = 127
Frequencies = NDArray[np.uint16]


def symbols_of(values: NDArray[np.int32]) -> NDArray[np.uint8]:
    """q + 127, and ESCAPE for everything outside -127..127."""
    return np.where(np.abs(values) <= OFFSET, values + OFFSET, ESCAPE).astype(np.uint8)


def frequencies(counts: NDArray[np.int64]) -> Frequencies:
    """Frequencies that sum to TOTAL for the counts of 256 symbols; symbols too rare for a slot join ESCAPE."""
    counts = counts.copy()
    total = int(counts.sum())
    if not total:
        return np.zeros(256, np.uint16)
    # Less than half a slot of TOTAL: rounding such a symbol up to one would take the slot from frequent ones.
    rare = counts * 2 * TOTAL < total
    rare[ESCAPE] = False
    counts[ESCAPE] += counts[rare].sum()
    counts[rare] = 0
    shares = counts * TOTAL / total
    found = np.maximum(np.rint(shares), counts > 0).astype(np.int64)
    while (excess := int(found.sum()) - TOTAL) != 0:
        # One slot at a time, where it costs least: the change of count x log(frequency).
        step = -1 if excess > 0 else 1
        able = found > 1 if excess > 0 else found > 0
        change = counts[able] * np.log((found[able] + step) / found[able])
        found[np.flatnonzero(able)[change.argmax()]] += step
    return found.astype(np.uint16)


def check_table(tables: Frequencies, used: NDArray[np.bool_]) -> None:
    """CorruptFile unless every class that is used has frequencies that sum to TOTAL."""
    sums = tables.astype(np.int64).sum(1)
    if ((sums != TOTAL) & (used | (sums != 0))).any():
        raise CorruptFile("a frequency table of a section does not sum to its total")


def decoding_table(tables: Frequencies) -> NDArray[np.uint32]:
    """By class and slot, flat: symbol | (frequency - 1) << 8 | (slot - first slot of the symbol) << 20."""
    found = np.zeros((len(tables), TOTAL), np.uint32)
    for row, table in zip(found, tables.astype(np.int64)):
        if table.any():
            # A symbol owns as many consecutive slots as its frequency; first: its first slot.
            symbols = np.repeat(np.arange(256), table)
            first = np.concatenate(([0], table.cumsum()[:-1]))
            row[:] = symbols | (table[symbols] - 1) << 8 | (np.arange(TOTAL) - first[symbols]) << 20
    return found.reshape(-1)
