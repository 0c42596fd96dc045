"""Operators that treat every element alike. Arithmetic on sizes is done in Python."""

import math
import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.onnx_import.registry import Built, OnnxNode, function, operator
from gossamer.onnx_import.values import TYPES, as_tensor, is_tensor

Two = Callable[[Any, Any], Any]


def _broadcast(call: Two, one: Any, other: Any) -> Any:
    """A function of two integers on integers and lists of them."""
    if isinstance(one, list) or isinstance(other, list):
        size = max(len(x) for x in (one, other) if isinstance(x, list))
        many = [x * size if isinstance(x, list) and len(x) == 1 else x for x in (one, other)]
        many = [x if isinstance(x, list) else [x] * size for x in many]
        return [call(a, b) for a, b in zip(*many, strict=True)]
    return call(one, other)


def _pair(one: Any, other: Any) -> tuple[Any, Any]:
    """Operands for a tensor function: lists become tensors, plain numbers stay, so that types are not widened."""
    like = one if isinstance(one, Tensor) else other
    a, b = (as_tensor(x, like) if isinstance(x, list) else x for x in (one, other))
    return a, b


def _binary(one: Any, other: Any, *, op: str) -> Any:
    """`Add`, `Sub`, ... of tensors or sizes."""
    tensors, sizes = BINARY[op]
    if is_tensor(one, other):
        return tensors(*_pair(one, other))
    return _broadcast(sizes, one, other)


def _divide(one: Any, other: Any) -> Any:
    """Of integers towards zero, as in ONNX."""
    if not any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in (one, other)):
        return torch.div(one, other, rounding_mode="trunc")
    return one / other


def _divide_sizes(one: Any, other: Any) -> Any:
    if isinstance(one, float) or isinstance(other, float):
        return one / other
    return one // other  # sizes are not negative


def _power(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and other.numel() == 1 and not other.requires_grad:
        other = other.reshape(()) if one.dim() else other
    return one**other if not isinstance(one, Tensor) or isinstance(other, Tensor) else one.pow(other)


def _alike(call: Two) -> Two:
    """For functions of torch that take tensors alone."""

    def both(one: Any, other: Any) -> Any:
        like = one if isinstance(one, Tensor) else other
        return call(as_tensor(one, like), as_tensor(other, like))

    return both


BINARY: dict[str, tuple[Two, Two]] = {
    "Add": (python.add, python.add),
    "Sub": (python.sub, python.sub),
    "Mul": (python.mul, python.mul),
    "Div": (_divide, _divide_sizes),
    "Pow": (_power, python.pow),
    "Equal": (python.eq, python.eq),
    "Greater": (python.gt, python.gt),
    "GreaterOrEqual": (python.ge, python.ge),
    "Less": (python.lt, python.lt),
    "LessOrEqual": (python.le, python.le),
    "And": (_alike(torch.logical_and), lambda a, b: bool(a and b)),
    "Or": (_alike(torch.logical_or), lambda a, b: bool(a or b)),
    "Xor": (_alike(torch.logical_xor), lambda a, b: bool(a) != bool(b)),
}


@operator(*BINARY)
def build_binary(node: OnnxNode) -> Built:
    return function(node, _binary, op=node.op)


@operator("Mod")
def build_mod(node: OnnxNode) -> Built:
    return function(node, _modulo, fmod=bool(node.get("fmod", 0)))


def _modulo(one: Any, other: Any, *, fmod: bool) -> Any:
    """`Mod`: with the sign of the divisor, or with that of the dividend."""
    if not is_tensor(one, other):
        return _broadcast(math.fmod if fmod else python.mod, one, other)
    return (torch.fmod if fmod else torch.remainder)(*_pair(one, other))


FOLDS: dict[str, tuple[Two, Two]] = {
    "Max": (_alike(torch.maximum), max),
    "Min": (_alike(torch.minimum), min),
    "Sum": (python.add, python.add),
}


@operator(*FOLDS)
def build_fold(node: OnnxNode) -> Built:
    return function(node, _fold, op=node.op)


def _fold(*values: Any, op: str) -> Any:
    """`Max`, `Min`, `Sum` of any number of values."""
    tensors, sizes = FOLDS[op]

    def two(a: Any, b: Any) -> Any:
        return tensors(*_pair(a, b)) if is_tensor(a, b) else _broadcast(sizes, a, b)

    return reduce(two, values)


@operator("Mean")
def build_mean(node: OnnxNode) -> Built:
    return function(node, _mean)


def _mean(*values: Any) -> Any:
    """The mean of several tensors."""
    return _fold(*values, op="Sum") / len(values)


UNARY: dict[str, Callable[[Any], Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Atan": torch.atan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Softsign": F.softsign,
    "Softplus": F.softplus,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}
ON_SIZES: dict[str, Callable[[Any], Any]] = {
    "Neg": python.neg,
    "Abs": abs,
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Sqrt": math.sqrt,
    "Not": python.not_,
    "Relu": lambda x: max(x, 0),
    "Log": math.log,
    "Exp": math.exp,
    "Round": round,
}


@operator(*UNARY)
def build_unary(node: OnnxNode) -> Built:
    return function(node, _unary, op=node.op)


def _unary(value: Any, *, op: str) -> Any:
    """`Relu`, `Exp`, ... of a tensor or of sizes."""
    if is_tensor(value):
        return UNARY[op](value)
    if op not in ON_SIZES:
        return UNARY[op](torch.tensor(value))
    call = ON_SIZES[op]
    return [call(x) for x in value] if isinstance(value, list) else call(value)


@operator("LeakyRelu")
def build_leaky(node: OnnxNode) -> Built:
    return function(node, F.leaky_relu, negative_slope=float(node.get("alpha", 0.01)))


@operator("Elu")
def build_elu(node: OnnxNode) -> Built:
    return function(node, F.elu, alpha=float(node.get("alpha", 1.0)))


@operator("Selu")
def build_selu(node: OnnxNode) -> Built:
    return function(node, _selu, alpha=float(node.get("alpha", 1.67326319)), gamma=float(node.get("gamma", 1.05070102)))


def _selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """`Selu` with the constants of the file."""
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def build_gelu(node: OnnxNode) -> Built:
    return function(node, F.gelu, approximate=node.get("approximate", "none"))


@operator("HardSigmoid")
def build_hard_sigmoid(node: OnnxNode) -> Built:
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    return function(node, _hard_sigmoid, alpha=alpha, beta=beta)


def _hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`max(0, min(1, alpha x + beta))`."""
    return (alpha * x + beta).clamp(0, 1)


@operator("PRelu")
def build_prelu(node: OnnxNode) -> Built:
    return function(node, _prelu)


def _prelu(x: Tensor, slope: Any) -> Tensor:
    """`PRelu`; the slope broadcasts as in arithmetic."""
    return torch.where(x >= 0, x, x * slope)


@operator("Clip")
def build_clip(node: OnnxNode) -> Built:
    if node.opset < 11:
        return Built(function(node, _clip, low=node.get("min"), high=node.get("max")).module, node.inputs[:1])
    if all(node.known(i) or not node.has(i) for i in (1, 2)):
        low, high = (_number(node.value(i)) for i in (1, 2))
        return Built(function(node, _clip, low=low, high=high).module, node.inputs[:1])
    if not node.has(1):
        node.refuse("an upper bound that is computed, without a lower one")
    return function(node, torch.clamp)


def _clip(x: Any, *, low: Any, high: Any) -> Any:
    """`Clip` between numbers, None for none."""
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high) if is_tensor(x) else torch.clamp(torch.tensor(x), low, high).tolist()


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value[0] if isinstance(value, list) else value


@operator("Where")
def build_where(node: OnnxNode) -> Built:
    return function(node, _where)


def _where(condition: Any, one: Any, other: Any) -> Any:
    """`Where` of tensors or sizes."""
    if not is_tensor(condition, one, other):
        if not any(isinstance(x, list) for x in (condition, one, other)):
            return one if condition else other
        pairs = _broadcast(lambda a, b: (a, b), one, other)
        return _broadcast(lambda c, pair: pair[0] if c else pair[1], condition, pairs)
    like = next((x for x in (one, other) if isinstance(x, Tensor)), None)
    return torch.where(as_tensor(condition).bool(), as_tensor(one, like), as_tensor(other, like))


@operator("Cast")
def build_cast(node: OnnxNode) -> Built:
    if node.get("to") not in TYPES:
        node.refuse(f"type {node.get('to')} is not known")
    return function(node, _cast, to=TYPES[node.get("to")])


def _cast(value: Any, *, to: torch.dtype) -> Any:
    """`Cast`; sizes become floats only where they meet a tensor."""
    if isinstance(value, Tensor):
        return value.to(to)
    if to.is_floating_point:
        return torch.tensor(value, dtype=to) if isinstance(value, list) else float(value)
    kind = bool if to == torch.bool else int
    return [kind(x) for x in value] if isinstance(value, list) else kind(value)


@operator("Identity", "Dropout")
def build_identity(node: OnnxNode) -> Built:
    return Built(function(node, _same).module, node.inputs[:1])


def _same(value: Any) -> Any:
    """The value itself: dropout of a network that is trained."""
    return value
