"""The sizes of all tensors after pruning, predicted from the channel indices before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.graph.channel_index import IndexedValue, Indices, Kept, Shape
from gossamer.graph.coupling import Mask
from gossamer.graph.expectation import LAYOUT, Expected, Mismatch
from gossamer.graph.propagation import Propagation
from gossamer.graph.tracer import Op, Ref


@dataclass(frozen=True)
class Failure:
    """Where a run leaves the predicted path.

    Args:
        training: whether it was the run in training mode.
        mismatch: the operation that differs, and how.
    """

    training: bool
    mismatch: Mismatch

    def is_before(self, other: "Failure") -> bool:
        """Whether the other run got further: eval mode runs first, then training mode."""
        return (self.training, self.mismatch.index) < (other.training, other.mismatch.index)


def kept_along(indices: Indices, dim: int, mask: Mask) -> int:
    """How many positions stay along the dimension; equal counts make this the same for every line, so one is read."""
    line = indices[tuple(slice(None) if d == dim else 0 for d in range(indices.ndim))]
    return int(mask[line].sum())


def shape_after(shape: Shape, value: IndexedValue, mask: Mask) -> Shape:
    """The shape of a tensor after pruning; -1 where any size will do."""
    sizes = list(shape)
    # Free dimensions take the size of whatever they meet, so nothing is predicted for them.
    for d in value.free:
        sizes[d] = -1
    for d, indices in value.axes.items():
        sizes[d] = kept_along(indices, d, mask)
    return tuple(sizes)


def expected(propagation: Propagation, mask: Mask) -> list[Expected]:
    """What each operation of the trace must give after pruning."""
    found: dict[int, Shape] = {}

    def after(index: int) -> Shape:
        if index not in found:
            found[index] = shape_after(propagation.trace.shapes[index], propagation.values[index], mask)
        return found[index]

    result = []
    for op in propagation.trace.ops:
        shapes = tuple(None if ref is None else after(ref.index) for ref in op.outs)
        source = op.args[0] if op.args else None
        # A layout operation that changes no shape may vanish when the strides of the smaller network suit.
        optional = op.name in LAYOUT and isinstance(source, Ref) and after(source.index) == shapes[0]
        result.append(Expected(op.name, shapes, optional))
    return result


def kept_indices(values: Mapping[str, IndexedValue], mask: Mask) -> dict[str, dict[int, Kept]]:
    """What stays of every parameter and buffer that changes, by dimension."""
    result: dict[str, dict[int, Kept]] = {}
    for name, value in values.items():
        dims: dict[int, Kept] = {}
        for d, indices in value.axes.items():
            keep = mask[indices]
            if keep.all():
                continue
            # One index a position: every line along the other dimensions keeps the same.
            if indices.size == indices.shape[d]:
                dims[d] = np.flatnonzero(keep).tolist()
            else:  # a grouped convolution: the rows of one group are alike, so a new group starts at a change
                rows = keep.reshape(indices.shape[0], indices.shape[1])
                starts = np.flatnonzero(
                    np.r_[True, (indices.reshape(rows.shape)[1:] != indices.reshape(rows.shape)[:-1]).any(1)]
                )
                dims[d] = [np.flatnonzero(rows[s]).tolist() for s in starts]
        if dims:
            result[name] = dims
    return result


def size_after(shape: Shape, kept: Mapping[int, Kept]) -> Shape:
    """Shape of a parameter of which this stays."""
    sizes = list(shape)
    for d, indices in kept.items():
        # Lists inside are those of the groups of a convolution, all of one length.
        inner = indices[0] if indices else 0
        sizes[d] = len(inner) if isinstance(inner, list) else len(indices)
    return tuple(sizes)


def counted_indices(propagation: Propagation, op: Op) -> list[Indices]:
    """The channel indices that an integer in the forward may count, one array for each possibility.

    These are the lines along every dimension of the operation's tensors that can shrink, then paddings and offsets.
    """
    lines = []
    for ref in [*(r for r in op.outs if r is not None), *op.refs()]:
        for d, indices in sorted(propagation.values[ref.index].axes.items()):
            # The first line stands for all: a forward can only count how many there are.
            line = indices[tuple(slice(None) if i == d else 0 for i in range(indices.ndim))]
            lines.append(line)
    # Amounts of padding and ends of slices count channels too: `F.pad(x, (0, 0, 0, 0, 0, c_out - c_in))`.
    if op.name == "aten.constant_pad_nd" and op.outs[0] is not None:
        amounts, n = op.args[1], len(propagation.trace.shapes[op.outs[0].index])
        for i in range(len(amounts) // 2):
            full = propagation.values[op.outs[0].index].axes.get(n - 1 - i)
            if full is not None and any(amounts[2 * i : 2 * i + 2]):
                flat = full.ravel()
                before, after = amounts[2 * i : 2 * i + 2]
                lines += [flat[:before], flat[len(flat) - after :]]
    if op.name == "aten.slice":
        source = op.args[0].index
        full = propagation.values[source].axes.get(op.arg("dim") % len(propagation.trace.shapes[source]))
        for end in (op.arg("start"), op.arg("end")):
            if full is not None and end and 0 < end < full.size:
                lines.append(full.ravel()[:end])
    return [line for line in lines if len(line) > 0]


def compact(tensor: Tensor, value: IndexedValue, mask: Mask) -> Tensor:
    """The part of a tensor that stays, one dimension after the other."""
    # The order of the dimensions does not matter, as each index array is kept up to date below.
    axes = dict(value.axes)
    for axis in sorted(axes):
        indices = axes.pop(axis)
        keep = mask[indices]
        if keep.all():
            continue
        # A mask over (other dimensions, axis) selects whole lines' worth of elements in order, and equal counts make
        # the result rectangular again.
        moved = tensor.movedim(axis, -1)
        full = np.broadcast_to(np.moveaxis(keep, axis, -1), tuple(moved.shape))
        count = kept_along(indices, axis, mask)
        tensor = moved[torch.from_numpy(full.copy())].reshape(*moved.shape[:-1], count).movedim(-1, axis)
        # The index arrays of the other axes must keep describing the smaller tensor in the next round.
        for g, other in axes.items():
            if other.shape[axis] > 1:
                axes[g] = _compact_indices(other, indices, axis, mask)
    return tensor.contiguous()


def _compact_indices(other: Indices, indices: Indices, axis: int, mask: Mask) -> Indices:
    """Index arrays that vary along a compacted dimension shrink with it."""
    moved = np.moveaxis(other, axis, -1)
    keep = np.moveaxis(mask[indices], axis, -1)
    keep = np.broadcast_to(keep, np.broadcast_shapes(keep.shape, moved.shape))
    wide = np.broadcast_to(moved, keep.shape)
    return np.moveaxis(wide[keep].reshape(*keep.shape[:-1], -1), -1, axis)


def scatter(small: Tensor, shape: Shape, value: IndexedValue, mask: Mask) -> Tensor:
    """The inverse of `compact`: a tensor of the original shape, zero where something was removed."""
    # Compacting the positions themselves tells where each element that is left came from.
    places = torch.arange(int(np.prod(shape))).reshape(shape)
    out = small.new_zeros(shape)
    out.view(-1)[compact(places, value, mask).reshape(-1).to(small.device)] = small.reshape(-1)
    return out
