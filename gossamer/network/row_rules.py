"""Operations that pick, order and write rows: look-ups by index, scatters, sorts, windows. Channels go through them."""

from collections.abc import Sequence

import numpy as np

from gossamer.network.labels import Operand, Slots, Value, join
from gossamer.network.trace import Op, Ref
from gossamer.network.walk import Walk, rule, through


def meet(w: Walk, op: Op, refs: Sequence[Ref], out: Ref, touched: int) -> Value:
    """Operands of one rank that meet on all dimensions but one. Where one is smaller than the result, what is there
    stays whole."""
    n, given = len(w.shape(out)), w.shape(out)
    operands: list[Operand] = []
    for i, ref in enumerate(refs):
        value = through(w, op, ref, [touched])
        shape = w.shape(ref)
        names = [n + 1 + i if d == touched or shape[d] != given[d] else d for d in range(n)]
        w.pin(value, f"a part is taken at {op.where}", [d for d in range(n) if names[d] > n])
        kept = {f: t for f, t in value.layers.items() if names[f] < n}
        operands.append((Value(kept, value.free), shape, names))
    return join(w.graph, operands, [n if d == touched else d for d in range(n)], op.where)


@rule("index_add", "index_copy", "index_reduce", "slice_scatter", "select_scatter")
def into_rows(w: Walk, op: Op) -> Value:
    target, source = op.args[0], op.arg("source", op.arg("src"))
    dim = op.arg("dim") % len(w.shape(target))
    if op.name != "aten.select_scatter":
        return meet(w, op, [target, source], target, dim)
    n = len(w.shape(target))
    value = through(w, op, target, [dim])
    rest = [d for d in range(n) if d != dim]
    return join(w.graph, [(value, w.shape(target), range(n)), (*w.operand(source), rest)], range(n), op.where)


@rule("index_fill", "sort", "topk", "argsort", "kthvalue", "cummin", "cross", "linalg_cross", "renorm")
def rows(w: Walk, op: Op) -> Value | list[Value]:
    ref = op.args[0]
    n = len(w.shape(ref))
    if n == 0 or op.name == "aten.renorm":
        w.pin(w.value(ref), f"no rule for {op.where}")
        return Value()
    dim = op.arg("dim") % n
    if "cross" in op.name:
        return meet(w, op, op.refs(), op.outs[0] or ref, dim)
    value = through(w, op, ref, [dim])
    if op.name != "aten.kthvalue" or op.arg("keepdim"):
        return value
    return Value({f - (f > dim): t[(slice(None),) * dim + (0,)] for f, t in value.layers.items()})


@rule("scatter", "scatter_add", "scatter_reduce")
def scattered(w: Walk, op: Op) -> Value:
    target, index, source = op.args[0], op.args[2], op.args[3] if len(op.args) > 3 else op.arg("src")
    dim = op.args[1] % max(1, len(w.shape(target)))
    return meet(w, op, [target, index, *([source] if isinstance(source, Ref) else [])], target, dim)


@rule("gather")
def gathered(w: Walk, op: Op) -> Value:
    ref, index = op.args[0], op.args[2]
    return meet(w, op, [ref, index], index, op.args[1] % max(1, len(w.shape(ref))))


def _indexed(w: Walk, ref: Ref, indices: Sequence[Ref | None]) -> tuple[list[int], int, int, list[int]]:
    """Dimensions that are indexed, rank of the index, where its dimensions stand in the result, dimensions left. A mask
    takes as many dimensions as it has and gives one."""
    used: list[int] = []
    ranks: list[int] = []
    places: list[int] = []
    at = 0
    for place, i in enumerate(indices):
        count = len(w.shape(i)) if i is not None and i.index in w.trace.masks else 1
        if i is not None:
            used += range(at, at + count)
            ranks.append(1 if i.index in w.trace.masks else len(w.shape(i)))
            places.append(place)
        at += count
    adjacent = places == list(range(places[0], places[-1] + 1))
    kept = [d for d in range(len(w.shape(ref))) if d not in used]
    return used, max(ranks), used[0] if adjacent else 0, kept


@rule("index", "_unsafe_index")
def index(w: Walk, op: Op) -> Value:
    ref, indices = op.args[0], op.args[1]
    value = w.value(ref)
    used, rank, at, kept = _indexed(w, ref, indices)
    for i in indices:
        if i is not None:
            w.pin(w.value(i), f"used as an index at {op.where}")
    w.pin(value, f"looked up at {op.where}", used)
    layers = {}
    for f, t in value.layers.items():
        if f in used:
            continue
        for d in used:
            t = w.graph.tie_along(t, d)
        shape = [t.shape[d] for d in kept]
        place = kept.index(f)
        layers[place + (rank if place >= at else 0)] = t.reshape(shape[:at] + [1] * rank + shape[at:])
    return Value(layers)


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(w: Walk, op: Op) -> Value:
    """The values meet the dimensions of the target that are not indexed."""
    ref, indices, values = op.args[0], op.args[1], op.args[2]
    used, rank, at, kept = _indexed(w, ref, indices)
    for i in indices:
        if i is not None:
            w.pin(w.value(i), f"used as an index at {op.where}")
    target = through(w, op, ref, used)
    n = len(w.shape(ref))
    names = [*kept[:at], *range(n, n + rank), *kept[at:]]
    source = (*w.operand(values), names[len(names) - len(w.shape(values)) :])
    out = join(w.graph, [(target, w.shape(ref), range(n)), source], [*range(n), *range(n, n + rank)], op.where)
    layers = {f: t.reshape(t.shape[:n]) for f, t in out.layers.items() if f < n and t.size == np.prod(t.shape[:n])}
    for f, t in out.layers.items():
        if f not in layers:
            w.graph.pin(t, f"written by index at {op.where}")
    return Value(layers)


@rule("masked_scatter")
def masked_scatter(w: Walk, op: Op) -> Value:
    """Rows of the source one after the other: only where the mask is the same along the last dimension."""
    ref, mask, source = op.args[0], op.args[1], op.args[2]
    shape, of_mask, n = w.shape(ref), w.shape(mask), len(w.shape(ref))
    whole = bool(of_mask) and (of_mask[-1] == 1 or len(of_mask) - 1 in w.value(mask).free)
    if not whole or w.shape(source)[-1:] != shape[-1:]:
        for r in op.refs():
            w.pin(w.value(r), f"no rule for {op.where}")
        return Value()
    target = through(w, op, ref, range(n - 1))
    m = len(w.shape(source))
    rows_ = through(w, op, source, range(m - 1))
    names = [*range(n + 1, n + m), n - 1]
    return join(w.graph, [(target, shape, range(n)), (rows_, w.shape(source), names)], range(n), op.where)


@rule("unfold")
def windows(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    value = through(w, op, ref, [op.args[1] % len(w.shape(ref))])
    return Value({f: t[..., None] for f, t in value.layers.items()}, view=True)


@rule("_pack_padded_sequence")
def packed(w: Walk, op: Op) -> list[Value]:
    value = through(w, op, op.args[0], [0, 1])
    return [Value({f - 1: t[0] for f, t in value.layers.items()}), Value()]


@rule("glu")
def glu(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    n, shape = len(w.shape(ref)), w.shape(ref)
    dim = op.arg("dim") % n
    value, half = w.value(ref), shape[dim] // 2
    halves = []
    for start in (0, half):
        at = (slice(None),) * dim + (slice(start, start + half),)
        halves.append(Value({f: t[at] if t.shape[dim] > 1 else t for f, t in value.layers.items()}, value.free))
    part = (*shape[:dim], half, *shape[dim + 1 :])
    return join(w.graph, [(v, part, range(n)) for v in halves], range(n), op.where)


@rule("_cdist_forward", "_euclidean_dist")
def distances(w: Walk, op: Op) -> Value:
    a, b = op.args[:2]
    lead = list(range(len(w.shape(a)) - 2))
    operands: list[Operand] = [(*w.operand(a), [*lead, 90, 92]), (*w.operand(b), [*lead, 91, 92])]
    return join(w.graph, operands, [*lead, 90, 91], op.where)


@rule("max_unpool2d", "max_unpool3d")
def unpooled(w: Walk, op: Op) -> Value:
    refs = op.refs()
    rank = 2 if op.name == "aten.max_unpool2d" else 3
    n = len(w.shape(refs[0]))
    spatial = range(n - rank, n)
    operands: list[Operand] = [(through(w, op, ref, spatial), w.shape(ref), range(n)) for ref in refs]
    return join(w.graph, operands, range(n), op.where)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(w: Walk, op: Op) -> list[Value]:
    weight = w.value(op.args[0])
    w.pin(weight, f"rows are looked up at {op.where}", [0])
    t: Slots | None = weight.layers.get(1)
    if t is not None:
        w.graph.emitted.append((w.index, t))
    return [Value({} if t is None else {1: t})] + [Value()] * (len(op.outs) - 1)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "tril", "triu", "diag_embed")
def along_dimensions(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    n = len(w.shape(ref))
    dims = op.arg("dim") if "fft" in op.name else (n - 2, n - 1)
    value = through(w, op, ref, [d % n for d in dims])
    if len(w.out_shape(op)) != n:
        w.pin(value, f"no rule for {op.where}")
        return Value()
    return value


@rule("view_as_real")
def as_real(w: Walk, op: Op) -> Value:
    value = w.value(op.args[0])
    return Value({f: t[..., None] for f, t in value.layers.items()}, value.free, True)


@rule("view_as_complex")
def as_complex(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    n = len(w.shape(ref))
    value = through(w, op, ref, [n - 1])
    return Value({f: t[..., 0] for f, t in value.layers.items()}, value.free, True)
