"""Operations that compute: pooling, reductions, norms, and the weighted ones, which make channels."""

from collections.abc import Sequence

from gossamer.graph.channel_index import (
    Operand,
    Shape,
    Value,
    broadcast,
    first,
    join,
    last,
    reshape,
)
from gossamer.graph.propagation import Propagation, Rule, pointwise, rule, through
from gossamer.graph.tracer import Op, Ref


def _spatial(rank: int) -> Rule:
    def apply(w: Propagation, op: Op) -> Value:
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


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp",
      "prod", "any", "all", "argmax", "argmin", "max", "min", "_log_softmax_backward_data")  # fmt: skip
def reduce(w: Propagation, op: Op) -> Value:
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
def softmax(w: Propagation, op: Op) -> Value:
    ref = op.args[0]
    dim = op.args[1] % len(w.shape(ref))
    if dim in w.value(ref).layers:
        w.statistic(op)
    return w.value(ref)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_native_batch_norm_legit_functional", "batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
      "_batch_norm_no_update")  # fmt: skip
def batch_norm(w: Propagation, op: Op) -> list[Value]:
    x, *others = op.refs()
    n = len(w.shape(x))
    operands: list[Operand] = [(*w.operand(x), range(n)), *[(*w.operand(ref), [1]) for ref in others]]
    if bool(op.arg("training", False)) and any(f != 1 for f in w.value(x).layers):
        w.statistic(op)
    out = join(w.graph, operands, range(n), op.where)
    return [out, *_per_channel(w, op, out)]


def _per_channel(w: Propagation, op: Op, out: Value) -> list[Value]:
    rest = []
    for i in range(1, len(op.outs)):
        t = out.layers.get(1)
        fits = t is not None and w.out_shape(op, i) == (t.shape[1],) and t.size == t.shape[1]
        rest.append(Value({0: t.ravel()}) if t is not None and fits else Value())
    return rest


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(w: Propagation, op: Op) -> list[Value]:
    x, *others = op.refs()
    n = len(w.shape(x))
    out = broadcast(w.graph, [w.operand(ref) for ref in (x, *others)], op.where)
    if any(f >= n - len(op.args[1]) for f in w.value(x).layers):
        w.statistic(op)
    return [out] + [Value()] * (len(op.outs) - 1)


@rule("native_group_norm", "group_norm")
def group_norm(w: Propagation, op: Op) -> list[Value]:
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
def weight_norm(w: Propagation, op: Op) -> list[Value]:
    v, g = op.args[0], op.args[1]
    out = broadcast(w.graph, [w.operand(v), w.operand(g)], op.where)
    if len(out.layers) > 1:
        w.statistic(op)
    return [out] + [Value()] * (len(op.outs) - 1)


def contract(w: Propagation, op: Op, operands: Sequence[Operand], out: Sequence[int]) -> Value:
    """A weighted operation: what it gives is made there."""
    value = join(w.graph, operands, out, op.where)
    for source, _, names in operands:
        for f, t in source.layers.items():
            if names[f] in out:
                w.graph.emitted.append((w.index, t))
    return value


@rule("mm", "matmul")
def mm(w: Propagation, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0, 1]), (*w.operand(b), [1, 2])], [0, 2])


@rule("mv")
def mv(w: Propagation, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0, 1]), (*w.operand(b), [1])], [0])


@rule("dot")
def dot(w: Propagation, op: Op) -> Value:
    a, b = op.args
    return contract(w, op, [(*w.operand(a), [0]), (*w.operand(b), [0])], [])


@rule("addmm")
def addmm(w: Propagation, op: Op) -> Value:
    c, a, b = op.args[:3]
    bias = (*w.operand(c), [0, 2][2 - len(w.shape(c)) :])
    return contract(w, op, [bias, (*w.operand(a), [0, 1]), (*w.operand(b), [1, 2])], [0, 2])


@rule("linear")
def linear(w: Propagation, op: Op) -> Value:
    refs = op.refs()
    n = len(w.shape(refs[0]))
    inputs: list[Operand] = [(*w.operand(refs[0]), range(n)), (*w.operand(refs[1]), [n, n - 1])]
    return contract(w, op, [*inputs, *[(*w.operand(ref), [n]) for ref in refs[2:]]], [*range(n - 1), n])


@rule("bmm")
def bmm(w: Propagation, op: Op) -> Value:
    a, b = op.args[:2]
    return contract(w, op, [(*w.operand(a), [0, 1, 2]), (*w.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("baddbmm")
def baddbmm(w: Propagation, op: Op) -> Value:
    c, a, b = op.args[:3]
    bias = (*w.operand(c), [0, 1, 3][3 - len(w.shape(c)) :])
    return contract(w, op, [bias, (*w.operand(a), [0, 1, 2]), (*w.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
      "scaled_dot_product_attention",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(w: Propagation, op: Op) -> list[Value]:
    """softmax(q k' + mask) v. Axes: batch and heads 0.., queries 90, keys 91, head dimension 92, value dimension 93."""
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
def convolution(w: Propagation, op: Op) -> Value:
    x, weight = op.args[0], op.args[1]
    bias = op.args[2] if len(op.args) > 2 and isinstance(op.args[2], Ref) else None
    groups, transposed_ = op.arg("groups", 1), bool(op.arg("transposed", False))
    xs, ws, os = w.shape(x), w.shape(weight), w.out_shape(op)
    rank = len(xs) - 2
    xv = through(w, op, x, range(2, 2 + rank))
    wv = through(w, op, weight, range(2, 2 + rank))
    bv: tuple[Value, Shape] | None = w.operand(bias) if bias is not None else None
    sx, sw, so = [list(range(base, base + rank)) for base in (10, 20, 30)]
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
