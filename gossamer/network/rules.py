"""What each ATen operation does to slots. An operation without a rule pins the slots that enter it, by name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gossamer.network.labels import (
    Choose,
    Graph,
    Operand,
    Shape,
    Slots,
    Value,
    broadcast,
    first,
    join,
    last,
    permute,
    reshape,
)
from gossamer.network.trace import Op, Ref, Trace

Rule = Callable[["Walk", Op], "Value | Sequence[Value]"]
RULES: dict[str, Rule] = {}


@dataclass
class Walk:
    """Going through one trace. values: of every tensor, by number; statistics: operations that reduce over channels;
    choose: which part of a split channel dimension shrinks."""

    graph: Graph
    trace: Trace
    choose: Callable[[Op], Choose] = lambda op: last
    values: list[Value] = field(default_factory=list)
    statistics: dict[int, str] = field(default_factory=dict)
    index: int = 0

    def value(self, ref: Ref) -> Value:
        return self.values[ref.index]

    def shape(self, ref: Ref) -> Shape:
        return self.trace.shapes[ref.index]

    def operand(self, ref: Ref) -> tuple[Value, Shape]:
        return self.value(ref), self.shape(ref)

    def out_shape(self, op: Op, i: int = 0) -> Shape:
        ref = op.outs[i]
        return () if ref is None else self.shape(ref)

    def pin(self, value: Value, reason: str, dims: Iterable[int] | None = None) -> None:
        for f, t in value.layers.items():
            if dims is None or f in dims:
                self.graph.pin(t, reason)

    def statistic(self, op: Op) -> None:
        self.statistics[self.index] = op.where


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for operations of these names (without `aten.`)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[f"aten.{name}"] = function
        return function

    return register


def walk(graph: Graph, trace: Trace, choose: Callable[[Op], Choose] = lambda op: last) -> Walk:
    """Send the slots of the parameters through a trace."""
    w = Walk(graph, trace, choose, [Value() for _ in trace.shapes])
    for index, name in trace.names.items():
        w.values[index] = graph.parameters.get(name, Value())
    for w.index, op in enumerate(trace.ops):
        _step(w, op)
    for ref in trace.outputs:
        w.pin(w.value(ref), "output of the network")
    return w


def _step(w: Walk, op: Op) -> None:
    function = RULES.get(op.name) or (RULES.get(op.name[:-1]) if op.name.endswith("_") else None)
    if function is None and torch.Tag.pointwise in op.func.tags:
        function = pointwise
    if function is None:
        for ref in op.refs():
            w.pin(w.value(ref), f"no rule for {op.where}")
        return
    result = function(w, op)
    results = [result] if isinstance(result, Value) else list(result)
    if len(results) == 1:
        results *= len(op.outs)
    if op.name.endswith("_") and isinstance(op.args[0], Ref):
        _written(w, op, w.value(op.args[0]), results)
    for ref, value in zip(op.outs, results):
        if ref is not None:
            w.values[ref.index] = value


def _written(w: Walk, op: Op, target: Value, results: list[Value]) -> None:
    """Channels written through a view into memory that has none stay where they are."""
    if target.view:
        for value in results:
            value.view = True
            for f in [f for f in value.layers if f not in target.layers]:
                w.graph.pin(value.layers.pop(f), f"written into a tensor of fixed size at {op.where}")


@rule("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "copy", "contiguous", "bernoulli",
      "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "dropout", "native_dropout",
      "as_strided", "masked_fill", "uniform", "normal", "zero", "fill", "where", "bitwise_not", "hardswish", "hardtanh", "hardsigmoid")  # fmt: skip
def pointwise(w: Walk, op: Op) -> Value:
    refs = op.refs()
    if op.name in ("aten.as_strided", "aten.as_strided_"):
        refs = refs[:1]
        if w.shape(refs[0]) != w.out_shape(op):
            w.pin(w.value(refs[0]), f"no rule for {op.where}")
            return Value()
    value = broadcast(w.graph, [w.operand(ref) for ref in refs], op.where)
    source = w.value(refs[0])
    aliases = op.name in ("aten.detach", "aten.alias", "aten.lift_fresh") or (op.name.endswith("_") and source.view)
    return Value(value.layers, value.free, aliases)


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "scalar_tensor",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_permuted",
)
def constant(w: Walk, op: Op) -> Value:
    return Value({}, frozenset(range(len(w.out_shape(op)))))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten", "squeeze", "unsqueeze", "view_copy")
def view(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    return reshape(w.graph, w.value(ref), w.shape(ref), w.out_shape(op), op.where, w.choose(op))


@rule("t", "transpose", "permute", "movedim", "swapaxes", "numpy_T")
def transposed(w: Walk, op: Op) -> Value:
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
def expand(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    old, new = w.shape(ref), w.out_shape(op)
    extra = len(new) - len(old)
    layers = {f + extra: t.reshape((1,) * extra + t.shape) for f, t in w.value(ref).layers.items()}
    grown = {d + extra for d, n in enumerate(old) if n == 1 and new[d + extra] != 1}
    free = grown | set(range(extra)) | {d + extra for d in w.value(ref).free}
    return Value(layers, frozenset(free - set(layers)), True)


@rule("repeat", "tile")
def repeat(w: Walk, op: Op) -> Value:
    ref, times = op.args[0], list(op.args[1])
    extra = len(times) - len(w.shape(ref))
    layers = {}
    for f, t in w.value(ref).layers.items():
        t = t.reshape((1,) * extra + t.shape)
        layers[f + extra] = np.tile(t, [r if n > 1 else 1 for r, n in zip(times, t.shape)])
    return Value(layers)


@rule("select")
def select(w: Walk, op: Op) -> Value:
    ref, dim, index = op.args[0], op.arg("dim"), op.arg("index")
    return _picked(w, op, ref, dim % len(w.shape(ref)), index)


def _picked(w: Walk, op: Op, ref: Ref, dim: int, index: int) -> Value:
    value = w.value(ref)
    w.pin(value, f"one channel is picked at {op.where}", [dim])
    layers = {}
    for f, t in value.layers.items():
        if f != dim:
            part = t.take(index if t.shape[dim] > 1 else 0, axis=dim)
            layers[f - (f > dim)] = part
    return Value(layers, frozenset(d - (d > dim) for d in value.free if d != dim), True)


@rule("unbind")
def unbind(w: Walk, op: Op) -> list[Value]:
    ref = op.args[0]
    dim = op.arg("dim") % len(w.shape(ref))
    return [_picked(w, op, ref, dim, i) for i in range(len(op.outs))]


@rule("slice")
def sliced(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    dim = op.arg("dim") % len(w.shape(ref))
    size = w.shape(ref)[dim]
    start, end, step = slice(op.arg("start"), op.arg("end"), op.arg("step")).indices(size)
    return _range(w, op, ref, dim, start, max(start, end), step)


@rule("narrow")
def narrow(w: Walk, op: Op) -> Value:
    ref, start = op.args[0], op.args[2]
    return _range(w, op, ref, op.args[1] % len(w.shape(ref)), start, start + op.args[3], 1)


def _range(w: Walk, op: Op, ref: Ref, dim: int, start: int, end: int, step: int) -> Value:
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
def split(w: Walk, op: Op) -> list[Value]:
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
def cat(w: Walk, op: Op) -> Value:
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


def _whole(w: Walk, t: Slots, dim: int) -> Slots:
    return w.graph.tie_along(t, dim)


@rule("stack")
def stack(w: Walk, op: Op) -> Value:
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
def pad(w: Walk, op: Op) -> Value:
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


def through(w: Walk, op: Op, ref: Ref, touched: Iterable[int]) -> Value:
    """Channels go through an operation that mixes other dimensions."""
    touched = set(touched)
    value = w.value(ref)
    w.pin(value, f"{op.where} works along this dimension", touched)
    layers = {}
    for f, t in value.layers.items():
        if f not in touched:
            for d in touched:
                t = w.graph.tie_along(t, d)
            layers[f] = t
    return Value(layers, value.free - touched)


def _spatial(rank: int) -> Rule:
    def apply(w: Walk, op: Op) -> Value:
        refs = op.refs()
        for ref in refs[1:]:
            w.pin(w.value(ref), f"no rule for {op.where}")
        n = len(w.shape(refs[0]))
        return through(w, op, refs[0], range(n - rank, n))

    return apply


rule("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d",
     "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d")(_spatial(3))  # fmt: skip
rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
     "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
     "upsample_bicubic2d", "_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d", "max_pool2d",
     "grid_sampler_2d", "mkldnn_max_pool2d")(_spatial(2))  # fmt: skip
rule("max_pool1d_with_indices", "avg_pool1d", "_adaptive_avg_pool1d", "upsample_nearest1d", "upsample_linear1d",
     "reflection_pad1d", "replication_pad1d", "adaptive_avg_pool1d")(_spatial(1))  # fmt: skip


@rule("cumsum", "cumprod", "flip", "roll", "cummax", "logcumsumexp")
def along(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    dims = op.arg("dims", None) if op.name in ("aten.flip", "aten.roll") else op.arg("dim")
    n = len(w.shape(ref))
    touched = [dims] if isinstance(dims, int) else list(dims or range(n))
    return through(w, op, ref, [d % n for d in touched])


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp",
      "prod", "any", "all", "argmax", "argmin", "max", "min", "_log_softmax_backward_data")  # fmt: skip
def reduce(w: Walk, op: Op) -> Value:
    if len(op.refs()) > 1:
        return pointwise(w, op)
    ref = op.args[0]
    n = len(w.shape(ref))
    dims = op.arg("dim")
    touched = (
        list(range(n)) if dims is None or dims == [] else [d % n for d in (dims if isinstance(dims, list) else [dims])]
    )
    keep = bool(op.arg("keepdim"))
    value = w.value(ref)
    if any(d in value.layers for d in touched):
        if op.name in ("aten.argmax", "aten.argmin", "aten.max", "aten.min"):
            w.pin(value, f"channels are numbered at {op.where}", touched)
        w.statistic(op)
    kept = [d for d in range(n) if d not in touched]
    if not keep:
        return join(w.graph, [(value, w.shape(ref), range(n))], kept, op.where)
    layers = {f: t for f, t in value.layers.items() if f not in touched}
    for f in layers:
        for d in touched:
            layers[f] = w.graph.tie_along(layers[f], d)
    return Value(layers, value.free - set(touched))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    dim = op.args[1] % len(w.shape(ref))
    if dim in w.value(ref).layers:
        w.statistic(op)
    return w.value(ref)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_native_batch_norm_legit_functional", "batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
      "_batch_norm_no_update")  # fmt: skip
def batch_norm(w: Walk, op: Op) -> list[Value]:
    x, *others = op.refs()
    n = len(w.shape(x))
    operands: list[Operand] = [(*w.operand(x), range(n)), *[(*w.operand(ref), [1]) for ref in others]]
    if bool(op.arg("training", False)) and any(f != 1 for f in w.value(x).layers):
        w.statistic(op)
    out = join(w.graph, operands, range(n), op.where)
    return [out, *_per_channel(w, op, out)]


def _per_channel(w: Walk, op: Op, out: Value) -> list[Value]:
    rest = []
    for i in range(1, len(op.outs)):
        t = out.layers.get(1)
        fits = t is not None and w.out_shape(op, i) == (t.shape[1],) and t.size == t.shape[1]
        rest.append(Value({0: t.ravel()}) if t is not None and fits else Value())
    return rest


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(w: Walk, op: Op) -> list[Value]:
    x, *others = op.refs()
    n = len(w.shape(x))
    out = broadcast(w.graph, [w.operand(ref) for ref in (x, *others)], op.where)
    if any(f >= n - len(op.args[1]) for f in w.value(x).layers):
        w.statistic(op)
    return [out] + [Value()] * (len(op.outs) - 1)


@rule("native_group_norm", "group_norm")
def group_norm(w: Walk, op: Op) -> list[Value]:
    x, *others = op.refs()
    shape, groups = w.shape(x), op.arg("group", op.arg("num_groups"))
    n, channels = len(shape), shape[1]
    operands: list[Operand] = [(*w.operand(x), range(n)), *[(*w.operand(ref), [1]) for ref in others]]
    out = join(w.graph, operands, range(n), op.where)
    if 1 in out.layers:
        if groups < channels:
            reshape(
                w.graph, Value({1: out.layers[1]}), shape, (shape[0], groups, channels // groups, *shape[2:]), op.where
            )
        w.statistic(op)
    each = groups == channels and 1 in out.layers and out.layers[1].size == channels
    rest = Value({1: out.layers[1].reshape(1, channels)}) if each else Value()
    return [out] + [rest] * (len(op.outs) - 1)


@rule("_weight_norm_interface")
def weight_norm(w: Walk, op: Op) -> list[Value]:
    v, g = op.args[0], op.args[1]
    out = broadcast(w.graph, [w.operand(v), w.operand(g)], op.where)
    if len(out.layers) > 1:
        w.statistic(op)
    return [out] + [Value()] * (len(op.outs) - 1)


def contract(w: Walk, op: Op, operands: Sequence[Operand], out: Sequence[int]) -> Value:
    """A weighted operation: what it gives is made there."""
    value = join(w.graph, operands, out, op.where)
    for source, _, names in operands:
        for f, t in source.layers.items():
            if names[f] in out:
                w.graph.emitted.append((w.index, t))
    return value


@rule("mm", "matmul")
def mm(w: Walk, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0, 1]), (*w.operand(b), [1, 2])], [0, 2])


@rule("mv")
def mv(w: Walk, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0, 1]), (*w.operand(b), [1])], [0])


@rule("dot")
def dot(w: Walk, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0]), (*w.operand(b), [0])], [])


@rule("addmm")
def addmm(w: Walk, op: Op) -> Value:
    c, a, b = op.args[:3]
    bias = (*w.operand(c), [0, 2][2 - len(w.shape(c)) :])
    return contract(w, op, [bias, (*w.operand(a), [0, 1]), (*w.operand(b), [1, 2])], [0, 2])


@rule("linear")
def linear(w: Walk, op: Op) -> Value:
    refs = op.refs()
    n = len(w.shape(refs[0]))
    inputs: list[Operand] = [(*w.operand(refs[0]), range(n)), (*w.operand(refs[1]), [n, n - 1])]
    return contract(w, op, [*inputs, *[(*w.operand(ref), [n]) for ref in refs[2:]]], [*range(n - 1), n])


@rule("bmm")
def bmm(w: Walk, op: Op) -> Value:
    a, b = op.args[:2]
    return contract(w, op, [(*w.operand(a), [0, 1, 2]), (*w.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("baddbmm")
def baddbmm(w: Walk, op: Op) -> Value:
    c, a, b = op.args[:3]
    bias = (*w.operand(c), [0, 1, 3][3 - len(w.shape(c)) :])
    return contract(w, op, [bias, (*w.operand(a), [0, 1, 2]), (*w.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(w: Walk, op: Op) -> list[Value]:
    """softmax(q k' + mask) v. Axes: batch and heads 0.., then queries 90, keys 91, head dimension 92, value dimension 93."""
    q, k, v, *masks = op.refs()
    lead = list(range(len(w.shape(q)) - 2))
    operands: list[Operand] = [
        (*w.operand(q), [*lead, 90, 92]),
        (*w.operand(k), [*lead, 91, 92]),
        (*w.operand(v), [*lead, 91, 93]),
    ]
    for mask in masks:
        names = [*lead, 90, 91]
        operands.append((*w.operand(mask), names[len(names) - len(w.shape(mask)) :]))
    n = len(w.shape(q))
    if n - 1 in w.value(q).layers or any(f == n - 2 for ref in (k, v) for f in w.value(ref).layers):
        w.statistic(op)  # the scale follows the head dimension
    out = contract(w, op, operands, [*lead, 90, 93])
    rest = [Value({f: t[..., 0] for f, t in out.layers.items() if f < n - 1 and t.shape[-1] == 1})]
    fits = len(op.outs) > 1 and len(w.out_shape(op, 1)) == n - 1
    return [out] + (rest if fits else [Value()]) + [Value()] * (len(op.outs) - 2) if len(op.outs) > 1 else [out]


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "conv1d", "conv2d", "conv3d")
def convolution(w: Walk, op: Op) -> Value:
    x, weight = op.args[0], op.args[1]
    bias = op.args[2] if len(op.args) > 2 and isinstance(op.args[2], Ref) else None
    groups, transposed_ = op.arg("groups", 1), bool(op.arg("transposed", False))
    xs, ws, os = w.shape(x), w.shape(weight), w.out_shape(op)
    rank = len(xs) - 2
    xv = through(w, op, x, range(2, 2 + rank))
    wv = through(w, op, weight, range(2, 2 + rank))
    bv: tuple[Value, Shape] | None = w.operand(bias) if bias is not None else None
    sx, sw, so = [list(range(base, base + rank)) for base in (10, 20, 30)]
    i, o = (0, 1) if transposed_ else (1, 0)
    if groups == 1:
        names = [1, 2] if transposed_ else [2, 1]
        operands: list[Operand] = [(xv, xs, [0, 1, *sx]), (wv, ws, [*names, *sw])]
        if bv is not None:
            operands.append((*bv, [2]))
        return contract(w, op, operands, [0, 2, *so])
    g, per_in, per_out = groups, xs[1] // groups, os[1] // groups
    one_each = per_in == 1
    choose = first if one_each else last
    xg: Shape = (xs[0], g, per_in, *xs[2:])
    xv = reshape(w.graph, xv, xs, xg, op.where, choose)
    if transposed_:
        wg: Shape = (g, per_in, per_out, *ws[2:])
        names = [4, 1, 2]
    else:
        wg = (g, per_out, per_in, *ws[2:])
        names = [4, 2, 1]
    wv = reshape(w.graph, wv, ws, wg, op.where, choose)
    operands = [(xv, xg, [0, 4, 1, *sx]), (wv, wg, [*names, *sw])]
    if bv is not None:
        operands.append((reshape(w.graph, bv[0], bv[1], (g, per_out), op.where, choose), (g, per_out), [4, 2]))
    out = contract(w, op, operands, [0, 4, 2, *so])
    return reshape(w.graph, out, (os[0], g, per_out, *os[2:]), os, op.where)


@rule("embedding")
def embedding(w: Walk, op: Op) -> Value:
    weight = w.value(op.args[0])
    n = len(w.out_shape(op))
    w.pin(weight, f"rows are looked up at {op.where}", [0])
    layers = {n - 1: t[:1].reshape([1] * (n - 1) + [-1]) for f, t in weight.layers.items() if f == 1}
    for t in layers.values():
        w.graph.emitted.append((w.index, t))
    return Value(layers)


@rule("index", "_unsafe_index")
def index(w: Walk, op: Op) -> Value:
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
def index_select(w: Walk, op: Op) -> Value:
    ref = op.args[0]
    return through(w, op, ref, [op.args[1] % len(w.shape(ref))])


@rule("im2col", "pixel_unshuffle")
def unfold(w: Walk, op: Op) -> Value:
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
def fold(w: Walk, op: Op) -> Value:
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
def channel_shuffle(w: Walk, op: Op) -> Value:
    ref, groups = op.args[0], op.args[1]
    shape = w.shape(ref)
    split_shape = (shape[0], groups, shape[1] // groups, *shape[2:])
    value = reshape(w.graph, w.value(ref), shape, split_shape, op.where)
    swapped = permute(value, [0, 2, 1, *range(3, len(split_shape))])
    turned = (shape[0], split_shape[2], groups, *shape[2:])
    return reshape(w.graph, swapped, turned, shape, op.where)
