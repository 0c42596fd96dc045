"""Walking through a posterior (Welling & Teh 2011)."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def langevin_step(parameters: Sequence[Tensor], gradients: Sequence[Tensor], size: float) -> None:
    """theta + size / 2 * gradient + N(0, size), in place, with torch's global generator. gradients: of the log density
    that is drawn from."""
    for p, gradient in zip(parameters, gradients, strict=True):
        p.add_(gradient, alpha=size / 2).add_(torch.randn_like(p), alpha=size**0.5)
