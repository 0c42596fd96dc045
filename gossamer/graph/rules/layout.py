"""Operations that only move elements: views, parts, joins, look-ups. They are executed on the index arrays.

Where an operation selects or repeats positions, the same numpy operation on the arrays of channel indices gives the
indices of the result. What cannot follow a pruning (one position picked by number) is fixed.
"""

from collections.abc import Sequence

import numpy as np

from gossamer.graph.channel_index import (
    IndexedValue,
    Indices,
    Operand,
    Shape,
    first,
    join_values,
    permute,
    reshape,
)
from gossamer.graph.propagation import Propagation, order_of_dimensions, rule, through
from gossamer.graph.tracer import Op, Ref


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten", "squeeze", "unsqueeze", "view_copy")
def view(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    shape, choose = prop.out_shape(op), prop.choose(op)
    picked = prop.picked.get(op.outs[0].index, frozenset()) if op.outs[0] is not None else frozenset()

    def unpicked(dims: Sequence[int], shape: Shape) -> int:
        # (pairs, 2) of which the two are picked by number: pairs shrink. Where all are picked, nothing can.
        return choose([d for d in dims if d not in picked] or dims, shape)

    return reshape(prop.graph, prop.value(ref), prop.shape(ref), shape, op.where, unpicked)


@rule("t", "transpose", "permute", "movedim", "swapaxes", "numpy_T")
def transposed(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    return permute(prop.value(ref), order_of_dimensions(op, len(prop.shape(ref))))


@rule("expand")
def expand(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    old, new = prop.shape(ref), prop.out_shape(op)
    extra = len(new) - len(old)
    axes = {
        axis + extra: indices.reshape((1,) * extra + indices.shape) for axis, indices in prop.value(ref).axes.items()
    }
    # One value is repeated along a grown dimension, so any size will do there.
    grown = {d + extra for d, n in enumerate(old) if n == 1 and new[d + extra] != 1}
    free = grown | set(range(extra)) | {d + extra for d in prop.value(ref).free}
    return IndexedValue(axes, frozenset(free - set(axes)), True)


@rule("repeat", "tile")
def repeat(prop: Propagation, op: Op) -> IndexedValue:
    ref, times = op.args[0], list(op.args[1])
    extra = len(times) - len(prop.shape(ref))
    axes = {}
    for axis, indices in prop.value(ref).axes.items():
        indices = indices.reshape((1,) * extra + indices.shape)
        # Copies of one channel have its index, so they go with it.
        axes[axis + extra] = np.tile(indices, [r if n > 1 else 1 for r, n in zip(times, indices.shape)])
    old = (1,) * extra + prop.shape(ref)
    # One value is repeated there, so any size will do.
    free = frozenset(d for d, r in enumerate(times) if old[d] == 1 and r > 1 and d not in axes)
    return IndexedValue(axes, free)


@rule("select")
def select(prop: Propagation, op: Op) -> IndexedValue:
    ref, dim, index = op.args[0], op.arg("dim"), op.arg("index")
    return _picked(prop, op, ref, dim % len(prop.shape(ref)), index)


def _picked(prop: Propagation, op: Op, ref: Ref, dim: int, index: int) -> IndexedValue:
    value = prop.value(ref)
    # `x[:, 3]` means channel 3, which would have another number after pruning.
    prop.fix(value, f"one channel is picked at {op.where}", [dim])
    axes = {}
    for axis, indices in value.axes.items():
        if axis != dim:
            i = index if indices.shape[dim] > 1 else 0
            axes[axis - (axis > dim)] = indices[(slice(None),) * dim + (i,)]
    return IndexedValue(axes, frozenset(d - (d > dim) for d in value.free if d != dim), True)


@rule("unbind")
def unbind(prop: Propagation, op: Op) -> list[IndexedValue]:
    ref = op.args[0]
    dim = op.arg("dim") % len(prop.shape(ref))
    return [_picked(prop, op, ref, dim, i) for i in range(len(op.outs))]


@rule("slice")
def sliced(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    dim = op.arg("dim") % len(prop.shape(ref))
    size = prop.shape(ref)[dim]
    start, end, step = slice(op.arg("start"), op.arg("end"), op.arg("step")).indices(size)
    return _range(prop, op, prop.value(ref), dim, size, slice(start, max(start, end), step))


@rule("narrow")
def narrow(prop: Propagation, op: Op) -> IndexedValue:
    ref, start = op.args[0], op.args[2]
    dim = op.args[1] % len(prop.shape(ref))
    return _range(prop, op, prop.value(ref), dim, prop.shape(ref)[dim], slice(start, start + op.args[3], 1))


def _range(prop: Propagation, op: Op, value: IndexedValue, dim: int, size: int, taken: slice) -> IndexedValue:
    start, end, step = taken.start, taken.stop, taken.step
    axes = {}
    for axis, indices in value.axes.items():
        part = indices[(slice(None),) * dim + (slice(start, end, step),)] if indices.shape[dim] > 1 else indices
        if axis == dim and (start, end, step) != (0, size, 1):
            length = end - start
            if length == 0:  # nothing is taken (`x[..., rotary:]` where all are rotated): no fact follows
                continue
            if step > 1 and start < step and size % step == 0 and end > size - step:
                # Every second channel: pairs of neighbours are removed together, so that the others stay in step.
                pairs = prop.graph.couple_along(_in_steps(indices, dim, step), dim + 1).squeeze(dim + 1)
                prop.graph.require_equal_counts(pairs, dim)
                axes[axis] = pairs
                continue
            at_an_end = start == 0 or end == size or "split" in op.name
            if length == 1 and step == 1 and at_an_end:  # found by the sizes of its neighbours, if it stays itself
                prop.graph.fix(part, f"picked at {op.where}")
                continue
            if step != 1 or length == 1:  # no rule would hold for the kept ones
                prop.graph.fix(indices, f"picked at {op.where}")
                continue
            # A slice of 1 / n of the channels is taken for one of n equal parts (chunk, packed q, k, v), so that all n
            # parts keep the same number.
            if size % length == 0 and start % length == 0:
                parts = np.moveaxis(indices, dim, -1).reshape(-1, length)
                prop.graph.require_equal_counts(parts, 1)
            prop.graph.require_equal_counts(part, dim)
        axes[axis] = part
    return IndexedValue(axes, value.free, True)


def _in_steps(indices: Indices, dim: int, step: int) -> Indices:
    """The array with a dimension in two: (size / step, step)."""
    return indices.reshape([*indices.shape[:dim], indices.shape[dim] // step, step, *indices.shape[dim + 1 :]])


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(prop: Propagation, op: Op) -> list[IndexedValue]:
    ref = op.args[0]
    dim = op.arg("dim") % len(prop.shape(ref))
    sizes = [prop.out_shape(op, i)[dim] for i in range(len(op.outs))]
    value = prop.value(ref)
    # `split(3)` of 8 channels gives 3, 3, 2: the size in the forward stays 3, and the parts cannot follow.
    if dim in value.axes and len(set(sizes)) > 1 and "with_sizes" not in op.name:
        prop.fix(value, f"split into unequal parts at {op.where}", [dim])
        value = IndexedValue({axis: indices for axis, indices in value.axes.items() if axis != dim})
    ends = np.cumsum(sizes).tolist()
    whole = prop.shape(ref)[dim]
    return [_range(prop, op, value, dim, whole, slice(end - size, end, 1)) for size, end in zip(sizes, ends)]


@rule("cat", "concat", "concatenate")
def cat(prop: Propagation, op: Op) -> IndexedValue:
    refs: list[Ref] = [ref for ref in op.args[0] if prop.shape(ref) != (0,)]
    n = len(prop.shape(refs[0]))
    dim = (op.arg("dim") or 0) % n
    values = [prop.value(ref) for ref in refs]
    axes: dict[int, Indices] = {}
    # Along the joined dimension the index arrays follow one another, as the tensors do.
    if any(dim in value.axes for value in values):
        parts = []
        for ref, value in zip(refs, values):
            indices = value.axes.get(dim)
            if indices is None:  # 0 is "fixed": what nothing is known of keeps its size
                indices = np.zeros([prop.shape(ref)[dim] if d == dim else 1 for d in range(n)], dtype=np.int64)
            parts.append(indices)
        shape = np.broadcast_shapes(*[(*indices.shape[:dim], 1, *indices.shape[dim + 1 :]) for indices in parts])
        wide = [np.broadcast_to(indices, (*shape[:dim], indices.shape[dim], *shape[dim + 1 :])) for indices in parts]
        axes[dim] = np.concatenate(wide, axis=dim)
        prop.graph.require_equal_counts(axes[dim], dim)
    others = [
        (
            IndexedValue(
                {axis: _whole(prop, indices, dim) for axis, indices in v.axes.items() if axis != dim}, v.free - {dim}
            ),
            prop.shape(ref),
            range(n),
        )
        for v, ref in zip(values, refs)
    ]
    # Operands follow each other along the joined dimension and do not meet there: each gets a label of its own.
    operands: list[Operand] = [
        (v, s, [n + 1 + i if d == dim else d for d in range(n)]) for i, (v, s, _) in enumerate(others)
    ]
    rest = join_values(prop.graph, operands, [n if d == dim else d for d in range(n)], op.where)
    return IndexedValue(axes | rest.axes, rest.free - {dim})


def _whole(prop: Propagation, indices: Indices, dim: int) -> Indices:
    return prop.graph.couple_along(indices, dim)


@rule("stack")
def stack(prop: Propagation, op: Op) -> IndexedValue:
    refs: list[Ref] = list(op.args[0])
    n = len(prop.shape(refs[0]))
    dim = op.arg("dim") % (n + 1)
    axes = {}
    for axis in sorted({axis for ref in refs for axis in prop.value(ref).axes}):
        parts = [prop.value(ref).axes.get(axis) for ref in refs]
        known = [indices for indices in parts if indices is not None]
        if len(known) < len(parts):
            lost = (prop.value(ref).lost for ref in refs)
            cause = next((f" ({why})" for why in lost if why), "")
            for indices in known:
                prop.graph.fix(indices, f"meets something of fixed size at {op.where}{cause}")
            continue
        # Stacked tensors keep the same number of channels, but not the same ones: equal counts, no coupling.
        shape = np.broadcast_shapes(*[indices.shape for indices in known])
        indices = np.stack([np.broadcast_to(indices, shape) for indices in known], axis=dim)
        new_axis = axis + (axis >= dim)
        prop.graph.require_equal_counts(indices, new_axis)
        axes[new_axis] = indices
    return IndexedValue(axes)


@rule("constant_pad_nd")
def pad(prop: Propagation, op: Op) -> IndexedValue:
    ref, amounts = op.args[0], op.args[1]
    n = len(prop.shape(ref))
    axes = dict(prop.value(ref).axes)
    for i in range(len(amounts) // 2):
        dim, before, after = n - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        for axis, indices in list(axes.items()):
            if before == after == 0:
                continue
            if axis != dim:
                axes[axis] = prop.graph.couple_along(indices, dim)
            elif before < 0 or after < 0 or indices.size > indices.shape[dim]:
                prop.graph.fix(axes.pop(axis), f"no rule for {op.where}")
            else:
                # The border of the padding is like new channels: equal counts tell how many of them may go.
                padded = [prop.graph.new_indices(before), indices.ravel(), prop.graph.new_indices(after)]
                axes[axis] = np.concatenate(padded).reshape([-1 if d == axis else 1 for d in range(n)])
    return IndexedValue(axes)


@rule("cumsum", "cumprod", "flip", "roll", "cummax", "logcumsumexp")
def along(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    dims = op.arg("dims", None) if op.name in ("aten.flip", "aten.roll") else op.arg("dim")
    n = len(prop.shape(ref))
    touched = [dims] if isinstance(dims, int) else list(dims or range(n))
    return through(prop, op, ref, [d % n for d in touched])


@rule("embedding")
def embedding(prop: Propagation, op: Op) -> IndexedValue:
    weight = prop.value(op.args[0])
    n = len(prop.out_shape(op))
    # Numbers of rows come from the data, so no row may move. The columns are channels that the table produces.
    prop.fix(weight, f"rows are looked up at {op.where}", [0])
    if 1 not in weight.axes:
        return IndexedValue()
    indices = weight.axes[1].reshape([1] * (n - 1) + [-1])
    prop.graph.produced.append((prop.index, indices))
    return IndexedValue({n - 1: indices})


@rule("index_select")
def index_select(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    return through(prop, op, ref, [op.args[1] % len(prop.shape(ref))])


@rule("im2col", "pixel_unshuffle")
def unfold(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    n, out = len(prop.shape(ref)), prop.out_shape(op)
    value = through(prop, op, ref, [n - 2, n - 1])
    c = n - 3
    # Every channel becomes one row for each kernel position (im2col), or each position of a square (pixel_unshuffle).
    times = out[1] // prop.shape(ref)[1] if op.name == "aten.im2col" else int(op.args[1]) ** 2
    axes = {}
    for axis, indices in value.axes.items():
        indices = np.repeat(indices, times, axis=c) if indices.shape[c] > 1 else indices
        axes[axis] = indices.reshape([*indices.shape[:c], indices.shape[c], *[1] * (len(out) - c - 1)])
    return IndexedValue(axes)


@rule("col2im", "pixel_shuffle")
def fold(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    shape, out = prop.shape(ref), prop.out_shape(op)
    c = 1 if op.name == "aten.col2im" else len(shape) - 3
    value = through(prop, op, ref, range(c + 1, len(shape)))
    split_shape = (*shape[:c], out[c], shape[c] // out[c], *shape[c + 1 :])
    # The reverse of `unfold`: C * k positions become C channels, and the k of one channel are coupled.
    # `first`: the C channels shrink, and the k positions of each stay together.
    apart = reshape(prop.graph, value, shape, split_shape, op.where, first)
    axes = {}
    for axis, indices in apart.axes.items():
        indices = prop.graph.couple_along(indices, c + 1)
        axes[axis] = indices.reshape([*indices.shape[: c + 1], *[1] * (len(out) - c - 1)])
    return IndexedValue(axes)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(prop: Propagation, op: Op) -> IndexedValue:
    ref, groups = op.args[0], op.args[1]
    shape = prop.shape(ref)
    split_shape = (shape[0], groups, shape[1] // groups, *shape[2:])
    value = reshape(prop.graph, prop.value(ref), shape, split_shape, op.where)
    # (groups, C / groups) -> (C / groups, groups): a reshape, a transpose and a reshape back.
    swapped = permute(value, [0, 2, 1, *range(3, len(split_shape))])
    turned = (shape[0], split_shape[2], groups, *shape[2:])
    return reshape(prop.graph, swapped, turned, shape, op.where)
