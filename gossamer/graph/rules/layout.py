"""Operations that only move elements: views, parts, joins, look-ups. They are executed on the slots themselves."""

import numpy as np

from gossamer.graph.channel_index import (
    Operand,
    Slots,
    Value,
    first,
    join,
    permute,
    reshape,
)
from gossamer.graph.propagation import Propagation, rule, through
from gossamer.graph.tracer import Op, Ref


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten", "squeeze", "unsqueeze", "view_copy")
def view(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    return reshape(w.graph, w.value(ref), w.shape(ref), w.out_shape(op), op.where, w.choose(op))


@rule("t", "transpose", "permute", "movedim", "swapaxes", "numpy_T")
def transposed(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    n = len(w.shape(ref))
    dims = list(range(n))
    if op.name.startswith("aten.permute"):
        dims = [d % n for d in op.args[1]]
    elif op.name.startswith("aten.transpose"):
        a, b = op.args[1] % n, op.args[2] % n
        dims[a], dims[b] = b, a
    else:
        dims.reverse()
    return permute(w.value(ref), dims)


@rule("expand")
def expand(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    old, new = w.shape(ref), w.out_shape(op)
    extra = len(new) - len(old)
    layers = {f + extra: t.reshape((1,) * extra + t.shape) for f, t in w.value(ref).layers.items()}
    grown = {d + extra for d, n in enumerate(old) if n == 1 and new[d + extra] != 1}
    free = grown | set(range(extra)) | {d + extra for d in w.value(ref).free}
    return Value(layers, frozenset(free - set(layers)), True)


@rule("repeat", "tile")
def repeat(w: Propagation, op: Op) -> Value:
    ref, times = op.args[0], list(op.args[1])
    extra = len(times) - len(w.shape(ref))
    layers = {}
    for f, t in w.value(ref).layers.items():
        t = t.reshape((1,) * extra + t.shape)
        layers[f + extra] = np.tile(t, [r if n > 1 else 1 for r, n in zip(times, t.shape)])
    return Value(layers)


@rule("select")
def select(w: Propagation, op: Op) -> Value:
    ref, dim, index = op.args[0], op.arg("dim"), op.arg("index")
    return _picked(w, op, ref, dim % len(w.shape(ref)), index)


def _picked(w: Propagation, op: Op, ref: Ref, dim: int, index: int) -> Value:
    value = w.value(ref)
    w.pin(value, f"one channel is picked at {op.where}", [dim])
    layers = {}
    for f, t in value.layers.items():
        if f != dim:
            i = index if t.shape[dim] > 1 else 0
            layers[f - (f > dim)] = t[(slice(None),) * dim + (i,)]
    return Value(layers, frozenset(d - (d > dim) for d in value.free if d != dim), True)


@rule("unbind")
def unbind(w: Propagation, op: Op) -> list[Value]:
    ref = op.args[0]
    dim = op.arg("dim") % len(w.shape(ref))
    return [_picked(w, op, ref, dim, i) for i in range(len(op.outs))]


@rule("slice")
def sliced(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    dim = op.arg("dim") % len(w.shape(ref))
    size = w.shape(ref)[dim]
    start, end, step = slice(op.arg("start"), op.arg("end"), op.arg("step")).indices(size)
    return _range(w, op, ref, dim, start, max(start, end), step)


@rule("narrow")
def narrow(w: Propagation, op: Op) -> Value:
    ref, start = op.args[0], op.args[2]
    return _range(w, op, ref, op.args[1] % len(w.shape(ref)), start, start + op.args[3], 1)


def _range(w: Propagation, op: Op, ref: Ref, dim: int, start: int, end: int, step: int) -> Value:
    value, size = w.value(ref), w.shape(ref)[dim]
    layers = {}
    for f, t in value.layers.items():
        part = t[(slice(None),) * dim + (slice(start, end, step),)] if t.shape[dim] > 1 else t
        if f == dim and (start, end, step) != (0, size, 1):
            length = end - start
            if step != 1 or length < 2:
                w.graph.pin(t, f"picked at {op.where}")
                continue
            if size % length == 0 and start % length == 0:
                parts = np.moveaxis(t, dim, -1).reshape(-1, length)
                w.graph.even(parts, 1)
            w.graph.even(part, dim)
        layers[f] = part
    return Value(layers, value.free, True)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(w: Propagation, op: Op) -> list[Value]:
    ref = op.args[0]
    dim = op.arg("dim") % len(w.shape(ref))
    sizes = [w.out_shape(op, i)[dim] for i in range(len(op.outs))]
    value = w.value(ref)
    if dim in value.layers and len(set(sizes)) > 1 and "with_sizes" not in op.name:
        w.pin(value, f"split into unequal parts at {op.where}", [dim])
        value = Value({f: t for f, t in value.layers.items() if f != dim})
    ends = np.cumsum(sizes).tolist()
    saved, w.values[ref.index] = w.values[ref.index], value
    parts = [_range(w, op, ref, dim, end - size, end, 1) for size, end in zip(sizes, ends)]
    w.values[ref.index] = saved
    return parts


@rule("cat", "concat", "concatenate")
def cat(w: Propagation, op: Op) -> Value:
    refs: list[Ref] = [ref for ref in op.args[0] if w.shape(ref) != (0,)]
    n = len(w.shape(refs[0]))
    dim = (op.arg("dim") or 0) % n
    values = [w.value(ref) for ref in refs]
    layers: dict[int, Slots] = {}
    if any(dim in value.layers for value in values):
        parts = []
        for ref, value in zip(refs, values):
            t = value.layers.get(dim)
            if t is None:
                t = np.zeros([w.shape(ref)[dim] if d == dim else 1 for d in range(n)], dtype=np.int64)
            parts.append(t)
        shape = np.broadcast_shapes(*[(*t.shape[:dim], 1, *t.shape[dim + 1 :]) for t in parts])
        wide = [np.broadcast_to(t, (*shape[:dim], t.shape[dim], *shape[dim + 1 :])) for t in parts]
        layers[dim] = np.concatenate(wide, axis=dim)
        w.graph.even(layers[dim], dim)
    others = [
        (Value({f: _whole(w, t, dim) for f, t in v.layers.items() if f != dim}, v.free - {dim}), w.shape(ref), range(n))
        for v, ref in zip(values, refs)
    ]
    # the joined dimension is no meeting: give each operand its own axis there
    operands: list[Operand] = [
        (v, s, [n + 1 + i if d == dim else d for d in range(n)]) for i, (v, s, _) in enumerate(others)
    ]
    rest = join(w.graph, operands, [n if d == dim else d for d in range(n)], op.where)
    return Value(layers | rest.layers, rest.free - {dim})


def _whole(w: Propagation, t: Slots, dim: int) -> Slots:
    return w.graph.tie_along(t, dim)


@rule("stack")
def stack(w: Propagation, op: Op) -> Value:
    refs: list[Ref] = list(op.args[0])
    n = len(w.shape(refs[0]))
    dim = op.arg("dim") % (n + 1)
    layers = {}
    for f in sorted({f for ref in refs for f in w.value(ref).layers}):
        parts = [w.value(ref).layers.get(f) for ref in refs]
        known = [t for t in parts if t is not None]
        if len(known) < len(parts):
            for t in known:
                w.graph.pin(t, f"meets something of fixed size at {op.where}")
            continue
        shape = np.broadcast_shapes(*[t.shape for t in known])
        t = np.stack([np.broadcast_to(t, shape) for t in known], axis=dim)
        new_f = f + (f >= dim)
        w.graph.even(t, new_f)
        layers[new_f] = t
    return Value(layers)


@rule("constant_pad_nd")
def pad(w: Propagation, op: Op) -> Value:
    ref, amounts = op.args[0], op.args[1]
    n = len(w.shape(ref))
    layers = dict(w.value(ref).layers)
    for i in range(len(amounts) // 2):
        dim, before, after = n - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        for f, t in list(layers.items()):
            if before == after == 0:
                continue
            if f != dim:
                layers[f] = w.graph.tie_along(t, dim)
            elif before < 0 or after < 0 or t.size > t.shape[dim]:
                w.graph.pin(layers.pop(f), f"no rule for {op.where}")
            else:
                slots = [w.graph.fresh(before), t.ravel(), w.graph.fresh(after)]
                layers[f] = np.concatenate(slots).reshape([-1 if d == f else 1 for d in range(n)])
    return Value(layers)


@rule("cumsum", "cumprod", "flip", "roll", "cummax", "logcumsumexp")
def along(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    dims = op.arg("dims", None) if op.name in ("aten.flip", "aten.roll") else op.arg("dim")
    n = len(w.shape(ref))
    touched = [dims] if isinstance(dims, int) else list(dims or range(n))
    return through(w, op, ref, [d % n for d in touched])


@rule("embedding")
def embedding(w: Propagation, op: Op) -> Value:
    weight = w.value(op.args[0])
    n = len(w.out_shape(op))
    w.pin(weight, f"rows are looked up at {op.where}", [0])
    if 1 not in weight.layers:
        return Value()
    t = weight.layers[1].reshape([1] * (n - 1) + [-1])
    w.graph.emitted.append((w.index, t))
    return Value({n - 1: t})


@rule("index", "_unsafe_index")
def index(w: Propagation, op: Op) -> Value:
    ref, indices = op.args[0], op.args[1]
    value, n = w.value(ref), len(w.shape(op.args[0]))
    used = [d for d, i in enumerate(indices) if i is not None]
    rank = max(len(w.shape(indices[d])) for d in used)
    for d in used:
        w.pin(w.value(indices[d]), f"used as an index at {op.where}")
    w.pin(value, f"looked up at {op.where}", used)
    if len(w.out_shape(op)) != n - len(used) + rank:  # a mask selects a number of elements that depends on data
        w.pin(value, f"selected by a mask at {op.where}")
        return Value()
    adjacent = used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    layers = {}
    for f, t in value.layers.items():
        if f in used:
            continue
        for d in used:
            t = w.graph.tie_along(t, d)
        kept = [d for d in range(n) if d not in used]
        shape = [t.shape[d] for d in kept]
        place = kept.index(f)
        layers[place + (rank if place >= at else 0)] = t.reshape(shape[:at] + [1] * rank + shape[at:])
    return Value(layers)


@rule("index_select", "gather")
def index_select(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    return through(w, op, ref, [op.args[1] % len(w.shape(ref))])


@rule("im2col", "pixel_unshuffle")
def unfold(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    n, out = len(w.shape(ref)), w.out_shape(op)
    value = through(w, op, ref, [n - 2, n - 1])
    c = n - 3
    times = out[1] // w.shape(ref)[1] if op.name == "aten.im2col" else int(op.args[1]) ** 2
    layers = {}
    for f, t in value.layers.items():
        t = np.repeat(t, times, axis=c) if t.shape[c] > 1 else t
        layers[f] = t.reshape([*t.shape[:c], t.shape[c], *[1] * (len(out) - c - 1)])
    return Value(layers)


@rule("col2im", "pixel_shuffle")
def fold(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    shape, out = w.shape(ref), w.out_shape(op)
    c = 1 if op.name == "aten.col2im" else len(shape) - 3
    value = through(w, op, ref, range(c + 1, len(shape)))
    split_shape = (*shape[:c], out[c], shape[c] // out[c], *shape[c + 1 :])
    apart = reshape(w.graph, value, shape, split_shape, op.where, first)
    layers = {}
    for f, t in apart.layers.items():
        t = w.graph.tie_along(t, c + 1)
        layers[f] = t.reshape([*t.shape[: c + 1], *[1] * (len(out) - c - 1)])
    return Value(layers)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(w: Propagation, op: Op) -> Value:
    ref, groups = op.args[0], op.args[1]
    shape = w.shape(ref)
    split_shape = (shape[0], groups, shape[1] // groups, *shape[2:])
    value = reshape(w.graph, w.value(ref), shape, split_shape, op.where)
    swapped = permute(value, [0, 2, 1, *range(3, len(split_shape))])
    turned = (shape[0], split_shape[2], groups, *shape[2:])
    return reshape(w.graph, swapped, turned, shape, op.where)
