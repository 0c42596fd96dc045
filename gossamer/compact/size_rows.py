"""The tensors of a compact file next to those of the network that it was made from, for the job document."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gossamer.compact.inspection import StoredTensor, inspect_file
from gossamer.compact.reading import opened, read_tensors
from gossamer.constraints.apply import materialize
from gossamer.core.copies import state_of
from gossamer.core.record import StoredRow
from gossamer.gsr.codec import gaps

MOST_VALUES = 256  # that are listed one by one
BINS = 60
MOST_BOOK = 4096  # values of a codebook of Deep Compression's format
DETAILED = 6  # weights whose values are listed, the largest ones: reports stay small however many layers there are


def stored_rows(original: nn.Module, path: Path | str) -> list[StoredRow]:
    """One row for each tensor of a `.gsr` file, in its order; decodes the whole file.

    The bytes of all rows and the header's (with padding before large raw tensors) are those of the file.
    """
    found = inspect_file(path).tensors
    with opened(Path(path)) as file:
        tensors = read_tensors(file)
    before = state_of(materialize(original))
    largest = sorted((t for t in found if len(t.shape) >= 2), key=lambda t: -tensors[t.name].numel())[:DETAILED]
    detailed = {t.name for t in largest if t.dtype.startswith(("float", "bfloat"))}
    return [_row(t, tensors[t.name], before.get(t.name), detailed=t.name in detailed) for t in found]


def _row(stored: StoredTensor, tensor: Tensor, before: Tensor | None, *, detailed: bool) -> StoredRow:
    values, counts = np.unique(_plain(tensor), return_counts=True)
    details: dict[str, Any] = {}
    if detailed and len(values) <= MOST_VALUES and np.isfinite(values).all():
        details = {"values": [_short(v) for v in values], "counts": counts.tolist(), **_histogram(tensor, before)}
    if tensor.ndim >= 2 and stored.dtype.startswith(("float", "bfloat")) and 0 < len(values) <= MOST_BOOK:
        details["as_gaps"] = _as_gaps(tensor, values)
    return StoredRow(
        name=stored.name,
        shape=list(stored.shape),
        coding=stored.coding,
        weights=tensor.numel(),
        dense_bytes=4 * before.numel() if before is not None and before.is_floating_point() else 0,
        bytes=stored.bytes,
        density=stored.density,
        code_bits=max(0, len(values) - 1).bit_length(),
        bits_per_weight=stored.bits_per_weight,
        entropy_bytes=stored.entropy_bytes,
        **details,
    )


def _as_gaps(tensor: Tensor, values: NDArray[Any]) -> dict[str, float]:
    """What Deep Compression's format would take: positions in gaps of 8 bits for convolutions and of 5 for the rest."""
    zero = int(np.searchsorted(values, 0))
    codes = np.searchsorted(values, _plain(tensor)) - zero
    if zero == len(values) or values[zero] != 0:
        codes += codes >= 0  # 0 stands for weights that are not there
    found = gaps.layer_bits(codes.astype(np.int32), 8 if tensor.ndim > 2 else 5)
    return {**asdict(found), "book": int(np.count_nonzero(values))}


def _histogram(tensor: Tensor, before: Tensor | None) -> dict[str, Any]:
    """Of the original's weights where they are as many; a layer that lost channels has no counterpart."""
    if before is None or before.shape != tensor.shape:
        return {}
    weights = _plain(before)
    if not np.isfinite(weights).all():
        return {}
    bins, edges = np.histogram(weights, BINS)
    return {"low": _short(edges[0]), "high": _short(edges[-1]), "histogram": bins.tolist()}


def _plain(tensor: Tensor) -> NDArray[Any]:
    """All elements of a tensor in one row; NumPy has no bfloat16."""
    flat = tensor.detach().cpu().reshape(-1)
    array: NDArray[Any] = (flat.float() if flat.is_floating_point() and flat.element_size() < 4 else flat).numpy()
    return array


def _short(value: float) -> float:
    """Six digits are enough to draw and to name a value."""
    return float(f"{value:.6g}")
