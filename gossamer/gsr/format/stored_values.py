"""What a tensor is stored as: the shortest coding that gives back its values bit by bit."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.gsr.format.float_grid import BLOCK, LARGEST, Floats, grid, same_bits
from gossamer.gsr.format.generated import Rule
from gossamer.gsr.format.split import FloatSplit, splits

MOST_CODES = 1 << 12  # entries of a codebook


class Coding(IntEnum):
    """How a tensor is stored; the numbers are those of the format."""

    SAME = 0  # as an earlier one
    ZEROS = 1
    CONSTANT = 2
    RAW = 3
    GRID = 4  # a step and integers; integers alone where the dtype is one of whole numbers
    ROWS = 5  # a step for every row
    CODEBOOK = 6
    TRELLIS = 7
    GENERATED = 8  # from other tensors, by a rule
    SPLIT = 9  # signs and exponents as integers, the lower bits as they are
    PACKED = 10  # its bytes as an LZMA2 stream


class Width(IntEnum):
    """How the floats of a tensor (itself, its steps or its codebook) are stored: as short as is exact."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    OWN = 3  # the bytes of its own dtype


WIDTH_BYTES = {Width.FLOAT32: 4, Width.FLOAT16: 2, Width.BFLOAT16: 2}
Codes = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, kw_only=True)
class GeneratedEntry:
    """A tensor that a rule generates: the rule, and the numbers of the tensors that it takes. They come last."""

    rule: Rule
    seed: int = 0
    numbers: int
    indices: int | None = None
    keep: int | None = None

    @property
    def parts(self) -> list[int]:
        return [part for part in (self.numbers, self.indices, self.keep) if part is not None]


@dataclass(kw_only=True)
class Stored:
    """One tensor as it will be written. floats: bytes for the values; q: (rows, columns) for the coder, or None."""

    coding: Coding
    dtype: torch.dtype
    shape: tuple[int, ...]
    width: Width = Width.FLOAT32
    floats: bytes | memoryview = b""
    count: int = 0  # how many floats
    q: Codes | None = None
    lag: int = 0
    zero: int = 0  # CODEBOOK: the entry with number 0
    same: int = 0  # SAME: which tensor
    generated: GeneratedEntry | None = None  # GENERATED: by which rule, from which tensors
    split: FloatSplit | None = None  # SPLIT: how


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns as the coder takes a tensor: output channels, and all the rest."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def raw_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor in row-major order, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def as_stored(tensor: Tensor, *, trellis: bool = True) -> list[Stored]:
    """What a tensor can be stored as, all exact. trellis: also look whether it was quantized along a trellis."""
    data = raw_bytes(tensor)
    zeros = Stored(coding=Coding.ZEROS, dtype=tensor.dtype, shape=tuple(tensor.shape))
    if not data.any():
        return [zeros]
    own = replace(zeros, coding=Coding.RAW, width=Width.OWN, floats=data.data, count=tensor.numel())
    if not tensor.is_floating_point():
        return [*_whole_numbers(tensor, zeros), own]
    values = exact_float32(tensor)
    if values is None:
        return [own]
    if (values.view(np.int32) == values.view(np.int32)[0]).all():
        return [_with_floats(zeros, Coding.CONSTANT, values[:1])]
    raw = _with_floats(zeros, Coding.RAW, values)
    plain = raw if WIDTH_BYTES[raw.width] <= tensor.element_size() else own
    return [*_on_grids(values, zeros, trellis=trellis), *_split(values, zeros), plain]


def _with_floats(base: Stored, coding: Coding, floats: Floats, q: Codes | None = None, zero: int = 0) -> Stored:
    """The same tensor with these floats, as narrow as is exact, and integers."""
    width, data = shortest(floats)
    if q is not None:
        q = q.reshape(matrix_shape(base.shape))
        if -LARGEST < int(q.min()) <= int(q.max()) < LARGEST:
            q = q.astype(np.int16)  # all tensors' integers stay in memory until they are coded
    return replace(base, coding=coding, width=width, floats=data, count=floats.size, q=q, zero=zero)


def _split(values: Floats, base: Stored) -> list[Stored]:
    shape = matrix_shape(base.shape)
    return [
        replace(base, coding=Coding.SPLIT, floats=low, split=split, q=q.astype(np.int16).reshape(shape))
        for split, q, low in splits(values)
    ]


def _whole_numbers(tensor: Tensor, base: Stored) -> list[Stored]:
    if tensor.dtype.is_complex:
        return []
    whole = tensor.detach().cpu().to(torch.int64)
    if not -LARGEST <= int(whole.min()) <= int(whole.max()) <= LARGEST:
        return []
    return [replace(base, coding=Coding.GRID, q=whole.to(torch.int32).numpy().reshape(matrix_shape(base.shape)))]


def _on_grids(values: Floats, base: Stored, *, trellis: bool) -> list[Stored]:
    found = grid(values)
    if found is not None:
        step = np.array([found[0]], np.float32)
        codings = [Coding.TRELLIS, Coding.GRID] if trellis and _follows(found[1]) else [Coding.GRID]
        return [_with_floats(base, coding, step, found[1]) for coding in codings]
    results = []
    rows = matrix_shape(base.shape)
    by_row = _rows(values.reshape(rows)) if rows[0] > 1 and rows[1] > 1 else None
    if by_row is not None:
        results.append(_with_floats(base, Coding.ROWS, *by_row))
    book = _codebook(values)
    if book is not None:
        results.append(_with_floats(base, Coding.CODEBOOK, *book))
    return results


def _follows(q: Codes) -> bool:
    """Whether the integers may be levels of a trellis. The first few tell nearly always that they are not."""
    # Numba takes a quarter of a second to import, and most tensors need no trellis.
    from gossamer.gsr.codec.trellis import follows

    return follows(q.astype(np.int32, copy=False))


def _rows(values: Floats) -> tuple[Floats, Codes] | None:
    """A step for every row, where each has one."""
    steps, q = np.ones(len(values), np.float32), np.zeros(values.shape, np.int32)
    for number, row in enumerate(values):
        found = grid(row)
        if found is None:
            return None
        steps[number], q[number] = found
    return steps, q


def _codebook(values: Floats) -> tuple[Floats, Codes, int] | None:
    """(entries in ascending order, numbers counted from the entry at or next to zero, its place), if they are few."""
    if len(np.unique(values[:: max(1, values.size // 8192)].view(np.int32))) > MOST_CODES:
        return None
    bits = np.empty(0, np.int32)
    for at in range(0, values.size, BLOCK):
        bits = np.union1d(bits, values[at : at + BLOCK].view(np.int32))
        if len(bits) > MOST_CODES or 2 * len(bits) > values.size:
            return None
    entries = bits.view(np.float32)
    order = np.lexsort((bits, np.nan_to_num(entries, nan=np.inf)))
    place = np.empty(len(bits), np.int32)
    place[order] = np.arange(len(bits), dtype=np.int32)
    entries = entries[order]
    zero = int(np.argmin(np.abs(np.nan_to_num(entries, nan=np.inf))))
    q = np.empty(values.size, np.int32)
    for at in range(0, values.size, BLOCK):
        q[at : at + BLOCK] = place[np.searchsorted(bits, values[at : at + BLOCK].view(np.int32))] - zero
    return entries, q, zero


def exact_float32(tensor: Tensor) -> Floats | None:
    """A float tensor as float32, if it can be had back bit by bit."""
    with np.errstate(all="ignore"):
        values = tensor.detach().cpu().contiguous().reshape(-1).to(torch.float32)
    if tensor.dtype != torch.float32 and not np.array_equal(raw_bytes(values.to(tensor.dtype)), raw_bytes(tensor)):
        return None
    return values.numpy()


def shortest(values: Floats) -> tuple[Width, bytes | memoryview]:
    """The narrowest floats that hold all values exactly."""
    bits = values.view(np.uint32)
    if not (bits & 0xFFFF).any():
        return Width.BFLOAT16, (bits >> 16).astype("<u2").tobytes()
    if _are_halves(values[:4096]) and _are_halves(values):
        with np.errstate(all="ignore"):
            return Width.FLOAT16, values.astype("<f2").tobytes()
    return Width.FLOAT32, np.ascontiguousarray(values, "<f4").data.cast("B")


def _are_halves(values: Floats) -> bool:
    with np.errstate(all="ignore"):
        return same_bits(values.astype(np.float16).astype(np.float32), values)


def floats_from(data: memoryview, width: Width) -> Floats:
    """The float32 values that `shortest` wrote."""
    match width:
        case Width.BFLOAT16:
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case Width.FLOAT16:
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:
            return np.frombuffer(data, "<f4").astype(np.float32)
