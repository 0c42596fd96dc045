"""The sign, and values with the gradient of others: what binary weights and binary layers have in common."""

from torch import Tensor


def sign_of(x: Tensor) -> Tensor:
    """Return 1 where x >= 0, else -1, in the dtype of x.

    Example:
        >>> import torch
        >>> sign_of(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return 2 * (x >= 0).to(x.dtype) - 1


def straight_through(value: Tensor, x: Tensor, slope: Tensor | float = 1.0) -> Tensor:
    """Return `value`, with the gradient `slope` times its own for x (straight-through estimator).

    Example:
        >>> import torch
        >>> x = torch.tensor(0.3, requires_grad=True)
        >>> float(torch.autograd.grad(straight_through(x.detach().round(), x, 2.0), x)[0])
        2.0
    """
    return value + slope * (x - x.detach())
