"""What sizes everything will have after a cut: predicted from the slots, before anything runs."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gossamer.graph.channel_index import Shape, Slots, Value
from gossamer.graph.coupling import Mask
from gossamer.graph.propagation import Propagation
from gossamer.graph.slicing import Kept
from gossamer.graph.tracer import LAYOUT, Expected, Op, Ref


def kept_along(t: Slots, dim: int, mask: Mask) -> int:
    """How many entries stay along the dimension; every row keeps the same count."""
    line = t[tuple(slice(None) if d == dim else 0 for d in range(t.ndim))]
    return int(mask[line].sum())


def shape_after(shape: Shape, value: Value, mask: Mask) -> Shape:
    """The shape of a tensor after the cut; -1 where any size will do."""
    sizes = list(shape)
    for d in value.free:
        sizes[d] = -1
    for d, t in value.layers.items():
        sizes[d] = kept_along(t, d, mask)
    return tuple(sizes)


def expected(walk: Propagation, mask: Mask) -> list[Expected]:
    """What each operation of the trace must give after the cut."""
    found: dict[int, Shape] = {}

    def after(index: int) -> Shape:
        if index not in found:
            found[index] = shape_after(walk.trace.shapes[index], walk.values[index], mask)
        return found[index]

    result = []
    for op in walk.trace.ops:
        shapes = tuple(None if ref is None else after(ref.index) for ref in op.outs)
        source = op.args[0] if op.args else None
        idle = op.name in LAYOUT and isinstance(source, Ref) and after(source.index) == shapes[0]
        result.append(Expected(op.name, shapes, idle))
    return result


def kept_indices(values: Mapping[str, Value], mask: Mask) -> dict[str, dict[int, Kept]]:
    """What stays of every parameter and buffer that changes, by dimension."""
    result: dict[str, dict[int, Kept]] = {}
    for name, value in values.items():
        dims: dict[int, Kept] = {}
        for d, t in value.layers.items():
            keep = mask[t]
            if keep.all():
                continue
            if t.size == t.shape[d]:
                dims[d] = np.flatnonzero(keep).tolist()
            else:  # a grouped convolution: rows of one group are alike
                rows = keep.reshape(t.shape[0], t.shape[1])
                starts = np.flatnonzero(np.r_[True, (t.reshape(rows.shape)[1:] != t.reshape(rows.shape)[:-1]).any(1)])
                dims[d] = [np.flatnonzero(rows[s]).tolist() for s in starts]
        if dims:
            result[name] = dims
    return result


def size_after(shape: Shape, kept: Mapping[int, Kept]) -> Shape:
    """Shape of a parameter of which this stays."""
    sizes = list(shape)
    for d, indices in kept.items():
        inner = indices[0] if indices else 0
        sizes[d] = len(inner) if isinstance(inner, list) else len(indices)
    return tuple(sizes)


def sized_slots(walk: Propagation, op: Op) -> list[Slots]:
    """Slots along every dimension of the operation's tensors that can shrink, then those of paddings and offsets: an
    integer in the forward that counts one of these must follow the cut."""
    lines = []
    for ref in [*(r for r in op.outs if r is not None), *op.refs()]:
        for d, t in sorted(walk.values[ref.index].layers.items()):
            line = t[tuple(slice(None) if i == d else 0 for i in range(t.ndim))]
            lines.append(line)
    if op.name == "aten.constant_pad_nd" and op.outs[0] is not None:
        amounts, n = op.args[1], len(walk.trace.shapes[op.outs[0].index])
        for i in range(len(amounts) // 2):
            full = walk.values[op.outs[0].index].layers.get(n - 1 - i)
            if full is not None and any(amounts[2 * i : 2 * i + 2]):
                flat = full.ravel()
                before, after = amounts[2 * i : 2 * i + 2]
                lines += [flat[:before], flat[len(flat) - after :]]
    if op.name == "aten.slice":
        full = walk.values[op.args[0].index].layers.get(op.arg("dim") % len(walk.trace.shapes[op.args[0].index]))
        for end in (op.arg("start"), op.arg("end")):
            if full is not None and end and 0 < end < full.size:
                lines.append(full.ravel()[:end])
    return [line for line in lines if len(line) > 0]


def compact(tensor: Tensor, value: Value, mask: Mask) -> Tensor:
    """The part of a tensor that stays."""
    layers = dict(value.layers)
    for f in sorted(layers):
        t = layers.pop(f)
        keep = mask[t]
        if keep.all():
            continue
        moved = tensor.movedim(f, -1)
        full = np.broadcast_to(np.moveaxis(keep, f, -1), tuple(moved.shape))
        count = kept_along(t, f, mask)
        tensor = moved[torch.from_numpy(full.copy())].reshape(*moved.shape[:-1], count).movedim(-1, f)
        for g, other in layers.items():
            if other.shape[f] > 1:
                layers[g] = _compact_slots(other, t, f, mask)
    return tensor.contiguous()


def _compact_slots(other: Slots, t: Slots, f: int, mask: Mask) -> Slots:
    keep = np.broadcast_to(
        np.moveaxis(mask[t], f, -1), np.broadcast_shapes(np.moveaxis(t, f, -1).shape, np.moveaxis(other, f, -1).shape)
    )
    wide = np.broadcast_to(np.moveaxis(other, f, -1), keep.shape)
    return np.moveaxis(wide[keep].reshape(*keep.shape[:-1], -1), -1, f)


def scatter(small: Tensor, shape: Shape, value: Value, mask: Mask) -> Tensor:
    """A compacted tensor put back to its places, zero elsewhere."""
    places = torch.arange(int(np.prod(shape))).reshape(shape)
    out = small.new_zeros(shape)
    out.view(-1)[compact(places, value, mask).reshape(-1).to(small.device)] = small.reshape(-1)
    return out
