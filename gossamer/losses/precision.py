"""Precision of losses: computed in float32 or wider, whatever the networks run in."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from gossamer.errors import BadInput

P = ParamSpec("P")
R = TypeVar("R")


def widened(x: Any) -> Any:
    """Tensors of 16-bit floats as float32; everything else as it is."""
    narrow = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.float() if narrow else x


def wide(function: Callable[P, R]) -> Callable[P, R]:
    """The function on `widened` arguments, without autocast, which would round its matrix products again."""

    @wraps(function)
    def inner(*args: P.args, **named: P.kwargs) -> R:
        tensors = [x for x in (*args, *named.values()) if isinstance(x, Tensor)]
        with torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
            call: Callable[..., R] = function
            return call(*map(widened, args), **{key: widened(x) for key, x in named.items()})

    return inner


def same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Check that two tensors can be compared element by element.

    Args:
        student: a tensor of the student.
        teacher: a tensor of the teacher.
        what: what they are, for the message.

    Raises:
        BadInput: their shapes differ.
    """
    if student.shape != teacher.shape:
        raise BadInput(f"distillation: {what} have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
