"""Scale classes of the rANS coder: which weights share a table, and how that is told."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import CorruptFile
from gossamer.gsr.codec.integers import IntegersHeader, IntMatrix

CLASSES = 24
PLAIN, ROWS, BOTH = range(3)
# Scales are counted in quarter octaves of the mean magnitude, from 2^-6 up.
_QUARTERS = 4
_FLOOR = 2.0**-6


class Scales:
    """What is told of one tensor: kind PLAIN (one scale), ROWS (one per row) or BOTH (rows, and columns around 128)."""

    def __init__(self, kind: int, rows: NDArray[np.uint8], columns: NDArray[np.uint8]) -> None:
        self.kind, self.rows, self.columns = kind, rows, columns

    def classes(self, header: IntegersHeader) -> NDArray[np.uint8]:
        """The class of each weight, flat, row by row."""
        rows = self.rows.astype(np.int16) if self.kind else np.full(header.rows, self.rows[0], np.int16)
        columns = self.columns.astype(np.int16) - 128 if self.kind == BOTH else np.zeros(header.columns, np.int16)
        found: NDArray[np.int16] = np.add.outer(rows, columns)
        # Scales are told in quarter octaves, classes are half octaves.
        found >>= 1
        return np.clip(found, 0, CLASSES - 1, out=found).astype(np.uint8).reshape(-1)


def _quarters(means: NDArray[np.float64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.rint(_QUARTERS * np.log2(np.maximum(means, _FLOOR) / _FLOOR)).astype(np.int64)
    return found


def class_choices(q: IntMatrix) -> list[Scales]:
    """The scales of a tensor in each kind."""
    magnitudes = np.abs(q.astype(np.float32))
    mean, none = float(magnitudes.mean(dtype=np.float64)), np.zeros(0, np.uint8)
    whole = np.array([_quarters(np.array([mean]))[0]], np.uint8)
    rows = np.clip(_quarters(magnitudes.mean(1, dtype=np.float64)), 0, 255).astype(np.uint8)
    # A weight is expected at row mean x column mean / mean: in logarithms, row + (column - mean).
    ratio = _QUARTERS * np.log2(np.maximum(magnitudes.mean(0, dtype=np.float64), _FLOOR) / max(mean, _FLOOR))
    columns = (np.clip(np.rint(ratio), -64, 64) + 128).astype(np.uint8)
    return [Scales(PLAIN, whole, none), Scales(ROWS, rows, none), Scales(BOTH, rows, columns)]


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Bits of all symbols at their entropy; counts (tables, symbols)."""
    totals = counts.sum(-1, keepdims=True)
    return float((counts * np.log2(np.maximum(totals, 1) / np.maximum(counts, 1))).sum())


def best_scales(q: IntMatrix, symbols: NDArray[np.uint8], header: IntegersHeader) -> Scales:
    """The scales with which a tensor takes the fewest bits, what is told of them included (8 bits a table entry)."""
    best, best_bits = class_choices(q)[0], np.inf
    for scales in class_choices(q):
        joint = scales.classes(header).astype(np.int32) * 256 + symbols
        counts = np.bincount(joint, minlength=CLASSES * 256).reshape(CLASSES, 256)
        # Weights and scales at their entropy. Tables go through zlib, so their cost is only guessed.
        told = [np.bincount(codes, minlength=256) for codes in (scales.rows, scales.columns)]
        bits = _entropy_bits(counts) + sum(_entropy_bits(t) for t in told) + 8 * np.count_nonzero(counts) ** 0.5
        if bits < best_bits:
            best, best_bits = scales, bits
    return best


def write_side(scales: Sequence[Scales]) -> bytes:
    """Scales as bytes, tensor after tensor; `read_side` reads them."""
    return b"".join(bytes([s.kind]) + s.rows.tobytes() + s.columns.tobytes() for s in scales)


def read_side(data: bytes, headers: Sequence[IntegersHeader]) -> tuple[list[Scales], int]:
    """The scales of the tensors, and how many bytes they took."""
    found, at = [], 0
    for header in headers:
        kind = data[at] if at < len(data) else BOTH + 1
        rows = 1 if kind == PLAIN else header.rows
        columns = header.columns if kind == BOTH else 0
        if kind > BOTH or at + 1 + rows + columns > len(data):
            raise CorruptFile("the scales of a section are cut short")
        codes = np.frombuffer(data, np.uint8, rows + columns, at + 1)
        found.append(Scales(kind, codes[:rows], codes[rows:]))
        at += 1 + rows + columns
    return found, at
