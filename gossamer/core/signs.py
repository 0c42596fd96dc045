"""The sign, and values with the gradient of others: what binary weights and binary layers have in common."""

from typing import Any

import torch
from torch import Tensor


def sign_of(x: Tensor) -> Tensor:
    """Return 1 where x >= 0, else -1, in the dtype of x.

    Example:
        >>> import torch
        >>> sign_of(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return 2 * (x >= 0).to(x.dtype) - 1


def weight_signs(x: Tensor) -> Tensor:
    """`sign_of` for weights: three times as fast, by an operation that runtimes need not know.

    Example:
        >>> import torch
        >>> weight_signs(torch.tensor([-2.0, -0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x.detach() + 0.0)  # -0.0 + 0.0 is 0.0


def straight_through(value: Tensor, x: Tensor, slope: Tensor | float = 1.0) -> Tensor:
    """Return `value`, with the gradient `slope` times its own for x (straight-through estimator).

    Example:
        >>> import torch
        >>> x = torch.tensor(0.3, requires_grad=True)
        >>> float(torch.autograd.grad(straight_through(x.detach().round(), x, 2.0), x)[0])
        2.0
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    found: Tensor = _StraightThrough.apply(value, x, slope)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    """As `value + slope * (x - x.detach())`, which reads and writes the weights three more times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, slope: Tensor | float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        slope = inputs[2]
        ctx.number = None if isinstance(slope, Tensor) else slope
        ctx.save_for_backward(*([slope] if isinstance(slope, Tensor) else []))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        slope = ctx.number if ctx.number is not None else ctx.saved_tensors[0]
        return grad, grad if isinstance(slope, float) and slope == 1 else grad * slope, None
