"""Operations that compute: pooling, reductions, norms, and the weighted ones, which produce channels.

Weighted operations are written as einsum: dimensions with one label meet (`join_values`), and those that are missing in
the result are contracted. Reductions and norms over channels are noted as statistics: they see fewer channels
afterwards.
"""

from collections.abc import Sequence

import numpy as np

from gossamer.graph.channel_index import (
    IndexedValue,
    Operand,
    Shape,
    broadcast,
    first,
    join_values,
    last,
    reshape,
)
from gossamer.graph.propagation import Propagation, Rule, pointwise, rule, through
from gossamer.graph.tracer import Op, Ref


def _spatial(rank: int) -> Rule:
    def apply(prop: Propagation, op: Op) -> IndexedValue:
        refs = op.refs()
        for ref in refs[1:]:
            prop.fix(prop.value(ref), f"no rule for {op.where}")
        n = len(prop.shape(refs[0]))
        return through(prop, op, refs[0], range(n - rank, n))

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
def reduce(prop: Propagation, op: Op) -> IndexedValue:
    # `max(a, b)` of two tensors is elementwise.
    if len(op.refs()) > 1:
        return pointwise(prop, op)
    ref = op.args[0]
    n = len(prop.shape(ref))
    dims = op.arg("dim")
    touched = (
        list(range(n)) if dims is None or dims == [] else [d % n for d in (dims if isinstance(dims, list) else [dims])]
    )
    keep = bool(op.arg("keepdim"))
    value = prop.value(ref)
    if any(d in value.axes for d in touched):
        if op.name in ("aten.argmax", "aten.argmin", "aten.max", "aten.min"):
            # The result is a position, which would name another channel after pruning.
            prop.fix(value, f"channels are numbered at {op.where}", touched)
        prop.statistic(op)
    kept = [d for d in range(n) if d not in touched]
    if not keep:
        # A reduction is an einsum whose result lacks the reduced labels.
        return join_values(prop.graph, [(value, prop.shape(ref), range(n))], kept, op.where)
    axes = {axis: indices for axis, indices in value.axes.items() if axis not in touched}
    for axis in axes:
        for d in touched:
            axes[axis] = prop.graph.couple_along(axes[axis], d)
    return IndexedValue(axes, value.free - set(touched))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(prop: Propagation, op: Op) -> IndexedValue:
    ref = op.args[0]
    dim = op.args[1] % len(prop.shape(ref))
    if dim in prop.value(ref).axes:
        prop.statistic(op)
    return prop.value(ref)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_native_batch_norm_legit_functional", "batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
      "_batch_norm_no_update")  # fmt: skip
def batch_norm(prop: Propagation, op: Op) -> list[IndexedValue]:
    x, *others = op.refs()
    n = len(prop.shape(x))
    operands: list[Operand] = [(*prop.operand(x), range(n)), *[(*prop.operand(ref), [1]) for ref in others]]
    # Over the batch and the pixels statistics stay the same; where one of these shrinks, they change.
    if bool(op.arg("training", False)) and any(axis != 1 for axis in prop.value(x).axes):
        prop.statistic(op)
    out = join_values(prop.graph, operands, range(n), op.where)
    return [out, *_per_channel(prop, op, out)]


def _per_channel(prop: Propagation, op: Op, out: IndexedValue) -> list[IndexedValue]:
    rest = []
    for i in range(1, len(op.outs)):
        indices = out.axes.get(1)
        # Saved means and variances, of shape (channels,) where they are there at all.
        fits = indices is not None and prop.out_shape(op, i) == (indices.shape[1],) and indices.size == indices.shape[1]
        rest.append(IndexedValue({0: indices.ravel()}) if indices is not None and fits else IndexedValue())
    return rest


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(prop: Propagation, op: Op) -> list[IndexedValue]:
    x, *others = op.refs()
    n = len(prop.shape(x))
    out = broadcast(prop.graph, [prop.operand(ref) for ref in (x, *others)], op.where)
    lead = n - len(op.args[1])
    if any(axis >= lead for axis in prop.value(x).axes):
        prop.statistic(op)
    # Means and deviations have size 1 along what is normalized, so indices that do not vary there are theirs, too.
    kept = {axis: i for axis, i in out.axes.items() if axis < lead and all(size == 1 for size in i.shape[lead:])}
    return [out] + [IndexedValue(kept if len(prop.out_shape(op, i)) == n else {}) for i in range(1, len(op.outs))]


@rule("native_group_norm", "group_norm")
def group_norm(prop: Propagation, op: Op) -> list[IndexedValue]:
    x, *others = op.refs()
    shape, groups = prop.shape(x), op.arg("group", op.arg("num_groups"))
    n, channels = len(shape), shape[1]
    operands: list[Operand] = [(*prop.operand(x), range(n)), *[(*prop.operand(ref), [1]) for ref in others]]
    out = join_values(prop.graph, operands, range(n), op.where)
    if 1 in out.axes:
        # Every group keeps the same number of channels, as a reshape to (groups, channels) says. The statistics of a
        # group are then over fewer channels.
        if groups < channels:
            reshape(
                prop.graph,
                IndexedValue({1: out.axes[1]}),
                shape,
                (shape[0], groups, channels // groups, *shape[2:]),
                op.where,
            )
        prop.statistic(op)
    each = groups == channels and 1 in out.axes and out.axes[1].size == channels
    rest = IndexedValue({1: out.axes[1].reshape(1, channels)}) if each else IndexedValue()
    return [out] + [rest] * (len(op.outs) - 1)


@rule("_weight_norm_interface")
def weight_norm(prop: Propagation, op: Op) -> list[IndexedValue]:
    v, g = op.args[0], op.args[1]
    out = broadcast(prop.graph, [prop.operand(v), prop.operand(g)], op.where)
    if out.axes:  # the norm of a row of zeros would divide zero by zero, and that of the others is over fewer inputs
        prop.statistic(op)
    norm = prop.out_shape(op, 1)
    kept = {
        axis: indices
        for axis, indices in out.axes.items()
        if indices.shape[axis] == norm[axis] and indices.size == norm[axis]
    }
    return [out, IndexedValue(kept)]


def contract(prop: Propagation, op: Op, operands: Sequence[Operand], out: Sequence[int]) -> IndexedValue:
    """A weighted operation: its operands meet as in einsum, and the channels of its result are produced here."""
    value = join_values(prop.graph, operands, out, op.where)
    for source, _, names in operands:
        for axis, indices in source.axes.items():
            # Channels along a label of the result are what this operation produces; contracted ones it only reads.
            if names[axis] in out:
                prop.graph.produced.append((prop.index, indices))
    return value


@rule("mm", "matmul")
def mm(prop: Propagation, op: Op) -> IndexedValue:
    a, b = op.args
    return contract(prop, op, [(*prop.operand(a), [0, 1]), (*prop.operand(b), [1, 2])], [0, 2])


@rule("mv")
def mv(prop: Propagation, op: Op) -> IndexedValue:
    a, b = op.args
    return contract(prop, op, [(*prop.operand(a), [0, 1]), (*prop.operand(b), [1])], [0])


@rule("dot", "vdot")
def dot(prop: Propagation, op: Op) -> IndexedValue:
    a, b = op.args
    return contract(prop, op, [(*prop.operand(a), [0]), (*prop.operand(b), [0])], [])


@rule("addmm")
def addmm(prop: Propagation, op: Op) -> IndexedValue:
    c, a, b = op.args[:3]
    # The bias is aligned at its last dimension: (O,) has label 2, (N, O) has both.
    bias = (*prop.operand(c), [0, 2][2 - len(prop.shape(c)) :])
    return contract(prop, op, [bias, (*prop.operand(a), [0, 1]), (*prop.operand(b), [1, 2])], [0, 2])


@rule("addmv")
def addmv(prop: Propagation, op: Op) -> IndexedValue:
    c, a, b = op.args[:3]
    operands: list[Operand] = [(*prop.operand(c), [0]), (*prop.operand(a), [0, 1]), (*prop.operand(b), [1])]
    return contract(prop, op, operands, [0])


@rule("linear")
def linear(prop: Propagation, op: Op) -> IndexedValue:
    refs = op.refs()
    n = len(prop.shape(refs[0]))
    # Label n - 1 is the input feature, contracted; n is the output feature. The weight has shape (out, in).
    inputs: list[Operand] = [(*prop.operand(refs[0]), range(n)), (*prop.operand(refs[1]), [n, n - 1])]
    return contract(prop, op, [*inputs, *[(*prop.operand(ref), [n]) for ref in refs[2:]]], [*range(n - 1), n])


@rule("bmm")
def bmm(prop: Propagation, op: Op) -> IndexedValue:
    a, b = op.args[:2]
    return contract(prop, op, [(*prop.operand(a), [0, 1, 2]), (*prop.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("_grouped_mm")
def grouped_mm(prop: Propagation, op: Op) -> IndexedValue:
    """Rows of `a` in runs, each times another matrix of `b`, (experts, in, out), as in mixtures of experts."""
    a, b = op.args[:2]
    if len(prop.shape(a)) != 2 or len(prop.shape(b)) != 3 or len(op.refs()) > 3:
        for ref in op.refs():
            prop.fix(prop.value(ref), f"no rule for {op.where}")
        return IndexedValue()
    # Which matrix a row meets is a number out of the data: no matrix may move, and no row.
    operands: list[Operand] = [
        (through(prop, op, a, [0]), prop.shape(a), [0, 1]),
        (through(prop, op, b, [0]), prop.shape(b), [2, 1, 3]),
    ]
    return contract(prop, op, operands, [0, 3])


@rule("baddbmm")
def baddbmm(prop: Propagation, op: Op) -> IndexedValue:
    c, a, b = op.args[:3]
    bias = (*prop.operand(c), [0, 1, 3][3 - len(prop.shape(c)) :])
    return contract(prop, op, [bias, (*prop.operand(a), [0, 1, 2]), (*prop.operand(b), [0, 2, 3])], [0, 1, 3])


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
      "scaled_dot_product_attention",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(prop: Propagation, op: Op) -> list[IndexedValue]:
    """softmax(q k' + mask) v. Axes: batch and heads 0.., queries 90, keys 91, head dimension 92, value dimension 93."""
    q, k, v, *masks = op.refs()
    lead = list(range(len(prop.shape(q)) - 2))
    operands: list[Operand] = [
        (*prop.operand(q), [*lead, 90, 92]),
        (*_for_all_heads(prop, k, prop.shape(q)), [*lead, 91, 92]),
        (*_for_all_heads(prop, v, prop.shape(q)), [*lead, 91, 93]),
    ]
    for mask in masks:
        names = [*lead, 90, 91]
        operands.append((*prop.operand(mask), names[len(names) - len(prop.shape(mask)) :]))
    n = len(prop.shape(q))
    # By default the scale is 1 / sqrt(head dimension), and the softmax runs over the keys.
    if n - 1 in prop.value(q).axes or any(axis == n - 2 for ref in (k, v) for axis in prop.value(ref).axes):
        prop.statistic(op)  # the scale follows the head dimension
    out = contract(prop, op, operands, [*lead, 90, 93])
    rest = [
        IndexedValue(
            {axis: indices[..., 0] for axis, indices in out.axes.items() if axis < n - 1 and indices.shape[-1] == 1}
        )
    ]
    fits = len(op.outs) > 1 and len(prop.out_shape(op, 1)) == n - 1
    return (
        [out] + (rest if fits else [IndexedValue()]) + [IndexedValue()] * (len(op.outs) - 2)
        if len(op.outs) > 1
        else [out]
    )


def _for_all_heads(prop: Propagation, ref: Ref, query: Shape) -> tuple[IndexedValue, Shape]:
    """Return keys or values for every query head: in grouped-query attention one serves several consecutive heads."""
    value, shape = prop.operand(ref)
    h = len(shape) - 3
    if h < 0 or shape[h] in (1, query[h]):
        return value, shape
    times = query[h] // shape[h]
    axes = {
        axis: np.repeat(indices, times, axis=h) if indices.shape[h] > 1 else indices
        for axis, indices in value.axes.items()
    }
    return IndexedValue(axes, value.free), (*shape[:h], query[h], *shape[h + 1 :])


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "conv1d", "conv2d", "conv3d")
def convolution(prop: Propagation, op: Op) -> IndexedValue:
    x, weight = op.args[0], op.args[1]
    bias = op.args[2] if len(op.args) > 2 and isinstance(op.args[2], Ref) else None
    groups, is_transposed = op.arg("groups", 1), bool(op.arg("transposed", False))
    xs, ws, os = prop.shape(x), prop.shape(weight), prop.out_shape(op)
    rank = len(xs) - 2
    # A kernel of one position mixes nothing along its dimension, so channels that lie there pass.
    strides, paddings = ([*op.arg(name), *op.arg(name)[-1:] * rank][:rank] for name in ("stride", "padding"))
    passes = [ws[2 + d] == strides[d] == 1 and paddings[d] == 0 for d in range(rank)]
    xv = through(prop, op, x, [2 + d for d in range(rank) if not passes[d]])
    wv = through(prop, op, weight, range(2, 2 + rank))
    bv: tuple[IndexedValue, Shape] | None = prop.operand(bias) if bias is not None else None
    # Labels: 0 batch, 1 input channel of a group, 2 output channel of a group, 4 group; 10.., 20.. and 30.. are the
    # spatial dimensions of input, kernel and output, which differ in size and meet only where channels pass.
    sx, sw, so = [list(range(base, base + rank)) for base in (10, 20, 30)]
    so = [a if passed else b for a, b, passed in zip(sx, so, passes)]
    if groups == 1:
        names = [1, 2] if is_transposed else [2, 1]
        operands: list[Operand] = [(xv, xs, [0, 1, *sx]), (wv, ws, [*names, *sw])]
        if bv is not None:
            operands.append((*bv, [2]))
        return contract(prop, op, operands, [0, 2, *so])
    g, per_in, per_out = groups, xs[1] // groups, os[1] // groups
    # A grouped convolution is an ordinary one with a further dimension for the group. In a depthwise one whole groups
    # are removed; in others every group keeps the same number of channels.
    one_each = per_in == 1
    choose = first if one_each else last
    xg: Shape = (xs[0], g, per_in, *xs[2:])
    xv = reshape(prop.graph, xv, xs, xg, op.where, choose)
    if is_transposed:
        wg: Shape = (g, per_in, per_out, *ws[2:])
        names = [4, 1, 2]
    else:
        wg = (g, per_out, per_in, *ws[2:])
        names = [4, 2, 1]
    wv = reshape(prop.graph, wv, ws, wg, op.where, choose)
    operands = [(xv, xg, [0, 4, 1, *sx]), (wv, wg, [*names, *sw])]
    if bv is not None:
        operands.append((reshape(prop.graph, bv[0], bv[1], (g, per_out), op.where, choose), (g, per_out), [4, 2]))
    out = contract(prop, op, operands, [0, 4, 2, *so])
    return reshape(prop.graph, out, (os[0], g, per_out, *os[2:]), os, op.where)
