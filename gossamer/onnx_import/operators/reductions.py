"""Operators that reduce, sort or normalize along axes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.onnx_import.operators.shapes import known_list
from gossamer.onnx_import.registry import Built, OnnxNode, function, operator
from gossamer.onnx_import.values import as_list, as_tensor

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduce] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}


@operator(*REDUCTIONS)
def build_reduction(node: OnnxNode) -> Built:
    keep, idle = bool(node.get("keepdims", 1)), bool(node.get("noop_with_empty_axes", 0))
    axes = known_list(node, 1, "axes")
    return Built(function(node, _reduction, op=node.op, axes=axes, keep=keep, idle=idle).module, node.inputs[:1])


def _reduction(x: Any, *, op: str, axes: list[int] | None, keep: bool, idle: bool) -> Any:
    """`ReduceSum` and its like; without axes over all of them, unless that is to do nothing."""
    if not isinstance(x, Tensor):
        if op == "ReduceProd" and isinstance(x, list):
            found = 1
            for size in x:
                found = found * size
            return [found] if keep else found
        x = as_tensor(x)
    if not axes:
        if idle:
            return x
        axes = list(range(x.dim()))
    return REDUCTIONS[op](x, axes, keep) if axes else x


@operator("ArgMax", "ArgMin")
def build_arg(node: OnnxNode) -> Built:
    if node.get("select_last_index", 0):
        node.refuse("of equal values the last one is asked for; here it is the first")
    axis, keep = int(node.get("axis", 0)), bool(node.get("keepdims", 1))
    call = torch.argmax if node.op == "ArgMax" else torch.argmin
    return function(node, call, dim=axis, keepdim=keep)


@operator("TopK")
def build_topk(node: OnnxNode) -> Built:
    axis, largest = int(node.get("axis", -1)), bool(node.get("largest", 1))
    if "k" in node.attributes:
        return function(node, _topk, k=int(node.get("k")), axis=axis, largest=largest)
    return function(node, _topk, k=None, axis=axis, largest=largest)


def _topk(x: Tensor, count: Any = None, *, k: int | None, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """`TopK`: values and places, sorted."""
    number = k if k is not None else as_list(count)[0]
    found = torch.topk(x, number, axis, largest)
    return found.values, found.indices


@operator("Softmax", "LogSoftmax")
def build_softmax(node: OnnxNode) -> Built:
    axis = int(node.get("axis", -1 if node.opset >= 13 else 1))
    return function(node, _softmax, axis=axis, flat=node.opset < 13, log=node.op == "LogSoftmax")


def _softmax(x: Tensor, *, axis: int, flat: bool, log: bool) -> Tensor:
    """`Softmax` along an axis; in opsets before 13 over all axes from that one on."""
    call = F.log_softmax if log else F.softmax
    axis = axis % x.dim()
    if not flat or axis == x.dim() - 1:
        return call(x, axis)
    return call(x.flatten(axis), -1).reshape(x.shape)


@operator("CumSum")
def build_cumsum(node: OnnxNode) -> Built:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        node.refuse("exclusive and reversed sums are not known")
    axis = node.value(1)
    number = axis[0] if isinstance(axis, list) else int(axis)
    return Built(function(node, torch.cumsum, dim=number).module, node.inputs[:1])


@operator("LpNormalization")
def build_lp(node: OnnxNode) -> Built:
    return function(node, _lp_normalize, p=int(node.get("p", 2)), axis=int(node.get("axis", -1)))


def _lp_normalize(x: Tensor, *, p: int, axis: int) -> Tensor:
    """`LpNormalization`."""
    return F.normalize(x, p=float(p), dim=axis)


@operator("GlobalAveragePool")
def build_global_average(node: OnnxNode) -> Built:
    return function(node, _global_average)


def _global_average(x: Tensor) -> Tensor:
    """The mean of every channel."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def build_global_max(node: OnnxNode) -> Built:
    return function(node, _global_max)


def _global_max(x: Tensor) -> Tensor:
    """The largest value of every channel."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("Einsum")
def build_einsum(node: OnnxNode) -> Built:
    return function(node, _einsum, equation=node.get("equation"))


def _einsum(*values: Tensor, equation: str) -> Tensor:
    """`Einsum`."""
    return torch.einsum(equation, *values)


@operator("NonZero")
def build_nonzero(node: OnnxNode) -> Built:
    return function(node, _nonzero)


def _nonzero(x: Any) -> Tensor:
    """`NonZero`: one row for each dimension."""
    return as_tensor(x).nonzero().t()
