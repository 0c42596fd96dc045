"""Stochastic gradient Langevin dynamics (SGLD): sample weights from a posterior (Welling & Teh 2011)."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def langevin_step(parameters: Sequence[Tensor], gradients: Sequence[Tensor], size: float) -> None:
    """One step of Langevin dynamics, in place: theta + size / 2 * gradient + N(0, size).

    The noise comes from torch's global generator.

    Args:
        parameters: the weights theta, changed in place.
        gradients: of the log density of the posterior, one for each of the parameters, in their shapes.
        size: step size h, at least 0; the variance of the noise.

    Source:
        Welling & Teh 2011, equation 4.

    Example:
        >>> import torch
        >>> from gossamer.losses import langevin_step
        >>> weight = torch.tensor([1.0])
        >>> for _ in range(100):  # a standard normal density has the gradient -weight
        ...     langevin_step([weight], [-weight], size=0.1)
        >>> bool(weight.abs() < 6)
        True
    """
    for p, gradient in zip(parameters, gradients, strict=True):
        p.add_(gradient, alpha=size / 2).add_(torch.randn_like(p), alpha=size**0.5)
