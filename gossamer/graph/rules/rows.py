"""Operations that select, sort and write rows: look-ups by index, scatters, sorts, windows. Channels pass through them.

What an index or a mask works along is fixed; the other dimensions go on with their channel indices.
"""

from collections.abc import Sequence

import numpy as np

from gossamer.graph.channel_index import IndexedValue, Operand, join_values
from gossamer.graph.propagation import Propagation, rule, through
from gossamer.graph.tracer import Op, Ref


def meet(prop: Propagation, op: Op, refs: Sequence[Ref], out: Ref, touched: int) -> IndexedValue:
    """Operands of one rank that meet on all dimensions but one; what is smaller than the result there is fixed."""
    n, given = len(prop.shape(out)), prop.shape(out)
    operands: list[Operand] = []
    for i, ref in enumerate(refs):
        value, shape = through(prop, op, ref, [touched]), prop.shape(ref)
        names = [n + 1 + i if d == touched or shape[d] != given[d] else d for d in range(n)]
        prop.fix(value, f"a part is taken at {op.where}", [d for d in range(n) if names[d] > n])
        kept = {axis: indices for axis, indices in value.axes.items() if names[axis] < n}
        # A label of its own (above n) keeps a dimension from meeting the others; it is not in the result.
        operands.append((IndexedValue(kept, value.free), shape, names))
    return join_values(prop.graph, operands, [n if d == touched else d for d in range(n)], op.where)


@rule("index_add", "index_copy", "index_reduce", "slice_scatter", "select_scatter")
def into_rows(prop: Propagation, op: Op) -> IndexedValue:
    target, source = op.args[0], op.arg("source", op.arg("src"))
    n = len(prop.shape(target))
    dim = op.arg("dim") % n
    if op.name != "aten.select_scatter":
        return meet(prop, op, [target, source], target, dim)
    # The source is one slice of the target, so it has no such dimension.
    value = through(prop, op, target, [dim])
    rest = [d for d in range(n) if d != dim]
    operands: list[Operand] = [(value, prop.shape(target), range(n)), (*prop.operand(source), rest)]
    return join_values(prop.graph, operands, range(n), op.where)


@rule("index_fill", "sort", "topk", "argsort", "kthvalue", "cummin", "cross", "linalg_cross", "renorm")
def ordered(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    n = len(prop.shape(ref))
    if n == 0 or op.name == "aten.renorm":
        prop.fix(prop.value(ref), f"no rule for {op.where}")
        return IndexedValue()
    dim = op.arg("dim") % n
    if "cross" in op.name:
        return meet(prop, op, op.refs(), op.outs[0] or ref, dim)
    value = through(prop, op, ref, [dim])
    if op.name != "aten.kthvalue" or op.arg("keepdim"):
        return value
    # The dimension is gone from the result; indices do not vary along it any more.
    first = (slice(None),) * dim + (0,)
    return IndexedValue({axis - (axis > dim): indices[first] for axis, indices in value.axes.items()})


@rule("scatter", "scatter_add", "scatter_reduce")
def scattered(prop: Propagation, op: Op) -> IndexedValue:
    target, index, source = op.args[0], op.args[2], op.args[3] if len(op.args) > 3 else op.arg("src")
    dim = op.args[1] % max(1, len(prop.shape(target)))
    return meet(prop, op, [target, index, *([source] if isinstance(source, Ref) else [])], target, dim)


@rule("gather")
def gathered(prop: Propagation, op: Op) -> IndexedValue:
    ref, index = op.args[0], op.args[2]
    return meet(prop, op, [ref, index], index, op.args[1] % max(1, len(prop.shape(ref))))


def _looked_up(prop: Propagation, ref: Ref, lookups: Sequence[Ref | None]) -> tuple[list[int], int, int, list[int]]:
    """How index tensors address a tensor, as in numpy.

    A mask takes as many dimensions as it has, and gives one.

    Returns:
        The dimensions that are indexed, the rank of the index, the place of its dimensions in the result, and the
        dimensions that are left.
    """
    used: list[int] = []
    ranks: list[int] = []
    places: list[int] = []
    position = 0
    for place, lookup in enumerate(lookups):
        is_mask = lookup is not None and lookup.index in prop.trace.masks
        count = len(prop.shape(lookup)) if lookup is not None and is_mask else 1
        if lookup is not None:
            used += range(position, position + count)
            ranks.append(1 if is_mask else len(prop.shape(lookup)))
            places.append(place)
        position += count
    # Adjacent index tensors put their dimensions in the place of those they index, others at the front.
    adjacent = places == list(range(places[0], places[-1] + 1))
    kept = [d for d in range(len(prop.shape(ref))) if d not in used]
    return used, max(ranks), used[0] if adjacent else 0, kept


@rule("index", "_unsafe_index")
def index(prop: Propagation, op: Op) -> IndexedValue:
    ref, lookups = op.args[0], op.args[1]
    value = prop.value(ref)
    used, rank, at, kept = _looked_up(prop, ref, lookups)
    for lookup in lookups:
        if lookup is not None:
            prop.fix(prop.value(lookup), f"used as an index at {op.where}")
    prop.fix(value, f"looked up at {op.where}", used)
    axes = {}
    for axis, indices in value.axes.items():
        if axis in used:
            continue
        for d in used:
            indices = prop.graph.couple_along(indices, d)
        shape = [indices.shape[d] for d in kept]
        place = kept.index(axis)
        axes[place + (rank if place >= at else 0)] = indices.reshape(shape[:at] + [1] * rank + shape[at:])
    return IndexedValue(axes)


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(prop: Propagation, op: Op) -> IndexedValue:
    """The values meet the dimensions of the target that are not indexed."""
    ref, lookups, values = op.args[0], op.args[1], op.args[2]
    used, rank, at, kept = _looked_up(prop, ref, lookups)
    for lookup in lookups:
        if lookup is not None:
            prop.fix(prop.value(lookup), f"used as an index at {op.where}")
    target = through(prop, op, ref, used)
    n = len(prop.shape(ref))
    # The values have the shape that a look-up would give: dimensions of the index where numpy puts them.
    names = [*kept[:at], *range(n, n + rank), *kept[at:]]
    source: Operand = (*prop.operand(values), names[len(names) - len(prop.shape(values)) :])
    operands: list[Operand] = [(target, prop.shape(ref), range(n)), source]
    out = join_values(prop.graph, operands, [*range(n), *range(n, n + rank)], op.where)
    axes = {}
    for axis, indices in out.axes.items():
        if axis < n and indices.size == np.prod(indices.shape[:n]):
            axes[axis] = indices.reshape(indices.shape[:n])
        else:
            prop.graph.fix(indices, f"written by index at {op.where}")
    return IndexedValue(axes)


@rule("masked_scatter")
def masked_scatter(prop: Propagation, op: Op) -> IndexedValue:
    """Rows of the source one after the other: only where the mask is the same along the last dimension."""
    ref, mask, source = op.args[0], op.args[1], op.args[2]
    shape, of_mask, n = prop.shape(ref), prop.shape(mask), len(prop.shape(ref))
    # A mask that varies along channels would scatter elements, not rows.
    whole_rows = bool(of_mask) and (of_mask[-1] == 1 or len(of_mask) - 1 in prop.value(mask).free)
    if not whole_rows or prop.shape(source)[-1:] != shape[-1:]:
        for one in op.refs():
            prop.fix(prop.value(one), f"no rule for {op.where}")
        return IndexedValue()
    target = through(prop, op, ref, range(n - 1))
    m = len(prop.shape(source))
    rows = through(prop, op, source, range(m - 1))
    names = [*range(n + 1, n + m), n - 1]
    operands: list[Operand] = [(target, shape, range(n)), (rows, prop.shape(source), names)]
    return join_values(prop.graph, operands, range(n), op.where)


@rule("unfold")
def windows(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    value = through(prop, op, ref, [op.args[1] % len(prop.shape(ref))])
    return IndexedValue({axis: indices[..., None] for axis, indices in value.axes.items()}, view=True)


@rule("_pack_padded_sequence")
def packed(prop: Propagation, op: Op) -> list[IndexedValue]:
    # (time, batch, features) becomes (rows, features): the axis of the features is one lower.
    value = through(prop, op, op.args[0], [0, 1])
    return [IndexedValue({axis - 1: indices[0] for axis, indices in value.axes.items()}), IndexedValue()]


@rule("glu")
def glu(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    n, shape = len(prop.shape(ref)), prop.shape(ref)
    dim = op.arg("dim") % n
    value, half = prop.value(ref), shape[dim] // 2
    halves = []
    for start in (0, half):
        part = (slice(None),) * dim + (slice(start, start + half),)
        axes = {axis: indices[part] if indices.shape[dim] > 1 else indices for axis, indices in value.axes.items()}
        halves.append(IndexedValue(axes, value.free))
    # Value i is multiplied by gate i, so both are removed together.
    halved = (*shape[:dim], half, *shape[dim + 1 :])
    return join_values(prop.graph, [(v, halved, range(n)) for v in halves], range(n), op.where)


@rule("_cdist_forward", "_euclidean_dist")
def distances(prop: Propagation, op: Op) -> IndexedValue:
    a, b = op.args[:2]
    # Labels: 90 and 91 are the points of a and b, 92 is their features, over which distances sum.
    lead = list(range(len(prop.shape(a)) - 2))
    operands: list[Operand] = [(*prop.operand(a), [*lead, 90, 92]), (*prop.operand(b), [*lead, 91, 92])]
    return join_values(prop.graph, operands, [*lead, 90, 91], op.where)


@rule("max_unpool2d", "max_unpool3d")
def unpooled(prop: Propagation, op: Op) -> IndexedValue:
    refs = op.refs()
    rank = 2 if op.name == "aten.max_unpool2d" else 3
    n = len(prop.shape(refs[0]))
    spatial = range(n - rank, n)
    operands: list[Operand] = [(through(prop, op, ref, spatial), prop.shape(ref), range(n)) for ref in refs]
    return join_values(prop.graph, operands, range(n), op.where)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(prop: Propagation, op: Op) -> list[IndexedValue]:
    weight = prop.value(op.args[0])
    prop.fix(weight, f"rows are looked up at {op.where}", [0])
    axes = {1: weight.axes[1]} if 1 in weight.axes else {}
    if axes:
        prop.graph.produced.append((prop.index, axes[1]))
    return [IndexedValue(axes)] + [IndexedValue()] * (len(op.outs) - 1)


@rule("triu", "tril")
def triangle(prop: Propagation, op: Op) -> IndexedValue:
    """The triangle of a square of channels: without row and column of the same channels it is that of a smaller one."""
    ref = op.args[0]
    value, shape = prop.value(ref), prop.shape(ref)
    n, offset = len(shape), op.arg("diagonal", 0)
    rows, columns = value.axes.get(n - 2), value.axes.get(n - 1)
    # Only what lies beside the diagonal or on it is the same for all widths.
    if rows is None or columns is None or shape[-1] != shape[-2] or offset not in (0, 1 if "triu" in op.name else -1):
        return through(prop, op, ref, (n - 2, n - 1))
    if rows.size != shape[-2] or columns.size != shape[-1]:
        return through(prop, op, ref, (n - 2, n - 1))
    prop.graph.couple(rows.ravel(), columns.ravel())
    return IndexedValue(value.axes, value.free)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "diag_embed")
def along_dimensions(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    n = len(prop.shape(ref))
    dims = op.arg("dim") if "fft" in op.name else (n - 2, n - 1)
    value = through(prop, op, ref, [d % n for d in dims])
    if len(prop.out_shape(op)) != n:
        prop.fix(value, f"no rule for {op.where}")
        return IndexedValue()
    return value


@rule("view_as_real")
def as_real(prop: Propagation, op: Op) -> IndexedValue:
    value = prop.value(op.args[0])
    return IndexedValue({axis: indices[..., None] for axis, indices in value.axes.items()}, value.free, True)


@rule("view_as_complex")
def as_complex(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    n = len(prop.shape(ref))
    value = through(prop, op, ref, [n - 1])
    return IndexedValue({axis: indices[..., 0] for axis, indices in value.axes.items()}, value.free, True)
