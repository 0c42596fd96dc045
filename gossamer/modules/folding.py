"""Exact foldings: batch norms into the layers before them, parallel linear branches into one convolution, and ReLUs of
what is not negative anyway into nothing."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.graph.tracer import LAYER_OPS, Op, Ref, Trace, trace

NORMS = ("aten.native_batch_norm", "aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm")
RELU = ("aten.relu", "aten.relu_")
SAME = ("aten.alias", "aten.detach", "aten.clone")
# What makes nothing negative out of what is not negative.
STILL_POSITIVE = (
    *SAME,
    *RELU,
    *(
        f"aten.{name}"
        for name in (
            "max_pool2d_with_indices",
            "max_pool2d",
            "avg_pool2d",
            "_adaptive_avg_pool2d",
            "mean",
            "view",
            "_unsafe_view",
            "native_dropout",
        )
    ),
)


class NotAffine(Exception):
    """A module that is not one convolution written in parts; the message says which operation it fails at."""


@dataclass(frozen=True)
class Affine:
    """A convolution of a module's input. kernel (O, I, h, w) without groups, bias (O,): float64; stride and padding by
    dimension; groups: the kernel is zero between different ones of so many."""

    kernel: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def is_pixelwise(self) -> bool:
        """Every output pixel sees the input pixel at its place only."""
        return tuple(self.kernel.shape[2:]) == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


def identity_kernel(channels: int, like: Tensor) -> Affine:
    """The convolution that changes nothing."""
    eye = torch.eye(channels, dtype=torch.float64, device=like.device)
    return Affine(eye[:, :, None, None], eye.new_zeros(channels), (1, 1), (0, 0), channels)


def dense_kernel(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel (O, I / groups, h, w) with its zeros, (O, I, h, w)."""
    rows = weight.double().chunk(groups)
    blocks = [F.pad(r, (0, 0, 0, 0, g * r.shape[1], (groups - 1 - g) * r.shape[1])) for g, r in enumerate(rows)]
    return torch.cat(blocks)


def scaled(a: Affine, scale: Tensor, shift: Tensor) -> Affine:
    """scale * a + shift, by channel."""
    return Affine(a.kernel * scale.view(-1, 1, 1, 1), a.bias * scale + shift, a.stride, a.padding, a.groups)


def after(a: Affine, b: Affine) -> Affine:
    """b of a, one of them pixelwise. Raises NotAffine for others, and for a bias that padding would cut off."""
    groups = math.gcd(a.groups, b.groups)
    bias = b.bias + b.kernel.sum((2, 3)) @ a.bias
    if b.is_pixelwise():
        return Affine(torch.einsum("om,mihw->oihw", b.kernel[..., 0, 0], a.kernel), bias, a.stride, a.padding, groups)
    if a.is_pixelwise() and not (any(b.padding) and bool(a.bias.any())):
        return Affine(torch.einsum("omhw,mi->oihw", b.kernel, a.kernel[..., 0, 0]), bias, b.stride, b.padding, groups)
    raise NotAffine("a convolution after another one")


def plus(a: Affine, b: Affine) -> Affine:
    """The sum of two convolutions of the same input. Raises NotAffine where their strides differ."""
    if a.stride != b.stride or a.kernel.shape[0] != b.kernel.shape[0]:
        raise NotAffine("a sum of different strides or widths")
    padding = tuple(map(max, a.padding, b.padding))
    sizes = [
        max(x.kernel.shape[2 + d] - x.padding[d] for x in (a, b)) + padding[d] for d in range(2)
    ]  # from the first to the last input that either sees

    def at_common_place(x: Affine) -> Tensor:
        before = [padding[d] - x.padding[d] for d in range(2)]
        behind = [sizes[d] - before[d] - x.kernel.shape[2 + d] for d in range(2)]
        return F.pad(x.kernel, (before[1], behind[1], before[0], behind[0]))

    kernel = at_common_place(a) + at_common_place(b)
    return Affine(kernel, a.bias + b.bias, a.stride, padding, math.gcd(a.groups, b.groups))


def as_one_convolution(module: nn.Module, x: Tensor) -> nn.Module | None:
    """One convolution, with a ReLU where the module ends in one, that gives what the module gives in eval mode; None
    where the module has no parallel branches. Raises NotAffine with the reason where it is something else.

    Structural re-parameterization (Ding et al. 2021, arXiv:2101.03697, section 3.3), by what the module computes: sums
    of convolutions, batch norms and the input itself.
    """
    t = trace(module, (x[:1],))
    if not any(op.name in ("aten.add", "aten.add_") for op in t.ops):
        return None
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    known = {t.inputs[0].index: identity_kernel(x.shape[1], x)}
    found, at, active = known[t.inputs[0].index], t.inputs[0].index, False
    for op in t.ops:
        out = op.outs[0] if op.outs else None
        if out is None or not any(ref.index in known for ref in op.refs()):
            continue  # it has nothing to do with the input
        if active:
            raise NotAffine(f"{op.name} after a ReLU")
        active = op.name in RELU
        found = known[op.args[0].index] if active else _step(t, op, known, tensors)
        known[out.index], at = found, out.index
    if [ref.index for ref in t.outputs] != [at]:
        raise NotAffine("its output is not that of its last operation")
    conv = _convolution(found, x)
    return nn.Sequential(conv, nn.ReLU()) if active else conv


def _known(known: dict[int, Affine], ref: Any, op: Op) -> Affine:
    if not isinstance(ref, Ref) or ref.index not in known:
        raise NotAffine(f"{op.name} of something else than the input")
    return known[ref.index]


def _step(t: Trace, op: Op, known: dict[int, Affine], tensors: dict[str, Tensor]) -> Affine:
    def value(ref: Any) -> Tensor:
        name = t.names.get(ref.index) if isinstance(ref, Ref) else None
        if name is None:
            raise NotAffine(f"{op.name} with a computed weight")
        return tensors[name].detach().double()

    a = _known(known, op.args[0], op)
    if op.name in SAME:
        return a
    if op.name in ("aten.add", "aten.add_") and op.arg("alpha", 1) == 1:
        return plus(a, _known(known, op.args[1], op))
    if op.name in NORMS and op.arg("training", False) is False:
        gain, offset, mean, var = (op.arg(n) for n in ("weight", "bias", "running_mean", "running_var"))
        scale = (value(var) + op.arg("eps", op.arg("epsilon"))).rsqrt() * (1.0 if gain is None else value(gain))
        shift = (0.0 if offset is None else value(offset)) - value(mean) * scale
        return scaled(a, scale, shift)
    plain = op.name == "aten.convolution" and not op.arg("transposed") and len(op.arg("stride")) == 2
    if plain and all(gap == 1 for gap in op.arg("dilation")):
        weight, groups = value(op.arg("weight")), op.arg("groups")
        bias = weight.new_zeros(len(weight)) if op.arg("bias") is None else value(op.arg("bias"))
        kernel = dense_kernel(weight, groups)
        return after(a, Affine(kernel, bias, tuple(op.arg("stride")), tuple(op.arg("padding")), groups))
    raise NotAffine(op.name)


def _convolution(a: Affine, like: Tensor) -> nn.Module:
    outputs, inputs, *size = a.kernel.shape
    conv: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        inputs,
        outputs,
        tuple(size),
        stride=a.stride,
        padding=a.padding,
        groups=a.groups,
        device=like.device,
        dtype=like.dtype,
    )
    o, i = outputs // a.groups, inputs // a.groups
    blocks = [a.kernel[g * o : (g + 1) * o, g * i : (g + 1) * i] for g in range(a.groups)]
    with torch.no_grad():
        conv.weight.copy_(torch.cat(blocks))
        conv.bias.copy_(a.bias)
    return conv  # type: ignore[no-any-return]


def _makers(t: Trace) -> dict[int, Op]:
    return {out.index: op for op in t.ops for out in op.outs if out is not None}


def norms_after(model: nn.Module, t: Trace) -> dict[str, str]:
    """Batch norms by the linear layer or convolution whose output they alone read; each of the two runs once, and its
    weight is used nowhere else."""
    modules = dict(model.named_modules())
    makers, readers, calls = _makers(t), dict[int, int](), dict[str, int]()
    for ref in [ref for op in t.ops for ref in op.refs()] + t.outputs:
        readers[ref.index] = readers.get(ref.index, 0) + 1
    for op in t.ops:
        if op.modules and op.name in (*LAYER_OPS, *NORMS):
            calls[op.modules[-1]] = calls.get(op.modules[-1], 0) + 1
    owners: dict[int, int] = {}
    for module in modules.values():
        for p in module._parameters.values():
            owners[id(p)] = owners.get(id(p), 0) + 1
    found = {}
    for op in t.ops:
        maker = makers.get(op.args[0].index) if op.name in NORMS and isinstance(op.args[0], Ref) else None
        if maker is None or maker.name not in LAYER_OPS or not maker.modules or not op.modules:
            continue
        layer, norm = maker.modules[-1], op.modules[-1]
        one, other = modules[layer], modules[norm]
        if not isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or not isinstance(other, _BatchNorm):
            continue
        once = calls[layer] == calls[norm] == readers[op.args[0].index] == owners[id(one.weight)] == 1
        if once and other.running_mean is not None:
            found[layer] = norm
    return found


@torch.no_grad()
def with_norm(layer: Any, norm: Any) -> nn.Module:
    """A copy of the layer that gives what the layer and the batch norm behind it give in eval mode."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    folded = copy.deepcopy(layer)
    folded.weight.copy_(layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    folded.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return folded  # type: ignore[no-any-return]


def idle_relus(model: nn.Module, t: Trace) -> list[str]:
    """ReLU modules whose input is never negative, in any of their calls: behind another ReLU, with nothing between that
    could make something negative."""
    modules, positive = dict(model.named_modules()), set[int]()
    idle: dict[str, bool] = {}
    for op in t.ops:
        source = op.args[0] if op.args else None
        safe = isinstance(source, Ref) and source.index in positive
        if op.name in RELU and op.modules and isinstance(modules[op.modules[-1]], nn.ReLU):
            idle[op.modules[-1]] = safe and idle.get(op.modules[-1], True)
        if op.name in RELU or (op.name in STILL_POSITIVE and safe):
            positive.update(out.index for out in op.outs if out is not None)
    return [name for name, safe in idle.items() if safe]
