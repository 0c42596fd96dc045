"""Integers to code, the same on every machine."""

import numpy as np
from numpy.typing import NDArray

from gossamer.gsr.codec.integers import Integers, IntegersHeader


def laplacian(rows: int, columns: int, scale: float, seed: int = 0) -> NDArray[np.int32]:
    """Rounded Laplacian weights whose rows and columns differ in scale."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 0.5, (rows, 1)) + rng.normal(0, 0.5, (1, columns)))
    return np.rint(rng.laplace(0, scale, (rows, columns)) * spread).astype(np.int32)


def arithmetic(rows: int, columns: int, largest: int) -> NDArray[np.int32]:
    """Small numbers more often, from an integer recurrence only."""
    state, found = 12345, []
    for _ in range(rows * columns):
        state = (1103515245 * state + 12345) % (1 << 31)
        wide = state >> 8
        found.append((wide % (largest + 1)) * (wide // 7 % 11) // 10 * (1 if wide & 1 else -1))
    return np.array(found, np.int32).reshape(rows, columns)


def headers(tensors: list[Integers]) -> list[IntegersHeader]:
    return [t.header() for t in tensors]


def entropy_bits(values: NDArray[np.int32]) -> float:
    """Bits of all values at their order-0 entropy."""
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())
