"""Grids: weights with equally spaced values. How many scales a weight has, which scale, which integers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.core.layer_names import by_pattern
from gossamer.errors import BadInput

# Shares of the largest weight at which a grid may end, tried for the smallest squared error.
SHARES = 64


class Grid(Constraint):
    """Uniform quantization: scale * clamp(round(weight / scale), qmin, qmax), with qmin <= 0 <= qmax.

    The gradient passes straight through the rounding, and is zero where the weight is clamped.

    Args:
        scale: positive; a scalar, or one number for each channel, shape (size of `dim`,).
        qmin: smallest integer.
        qmax: largest integer.
        dim: the dimension of the channels.
        learned: train the scale, with the gradient of Esser et al.: round(v) - v inside, qmin or qmax outside, times
            1 / sqrt(N qmax).

    Raises:
        BadInput: for a range without 0, or a scale that is not positive.

    Source:
        Esser et al. 2020, arXiv:1902.08153, equations 3 and 4.

    Example:
        >>> import torch
        >>> Grid(0.5, -1, 1)(torch.tensor([0.2, 0.4, 3.0]))
        tensor([0.0000, 0.5000, 0.5000])
    """

    scale: Tensor

    def __init__(self, scale: Tensor | float, qmin: int, qmax: int, *, dim: int = 0, learned: bool = False) -> None:
        super().__init__()
        scale = torch.as_tensor(scale, dtype=torch.float32).detach().clone()
        if not qmin <= 0 <= qmax or qmin == qmax:
            raise BadInput(f"Grid: the integers [{qmin}, {qmax}] must be a range that holds 0")
        if scale.ndim > 1 or not bool((scale > 0).all()):
            raise BadInput("Grid: scale must be positive, a scalar or one number for each channel")
        self.qmin, self.qmax, self.dim = qmin, qmax, dim
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny)  # training may lead it through zero
        if scale.requires_grad:
            # A gradient as large as that of single weights, whatever their number: section 2.2.
            factor = (scale.numel() / weight.numel() / max(self.qmax, 1)) ** 0.5
            scale = scale.detach() + factor * (scale - scale.detach())
        if scale.ndim:
            scale = scale.view([-1 if d == self.dim else 1 for d in range(weight.ndim)])
        codes = (weight / scale).clamp(self.qmin, self.qmax)
        return scale * (codes.round().detach() + (codes - codes.detach()))


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for a weight."""

    per: Literal["tensor"] = "tensor"


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale for every index of dimension `dim`: shape (3, 8, 5, 5) and dim 0 give 3 scales, dim 1 gives 8."""

    per: Literal["channel"] = "channel"
    dim: int = 0


Granularity = PerTensor | PerChannel


def rows(weight: Tensor, granularity: Granularity) -> Tensor:
    """The weights that have a scale together, shape (scales, weights of each)."""
    match granularity:
        case PerTensor():
            return weight.reshape(1, -1)
        case PerChannel(dim=dim):
            if not 0 <= dim < weight.dim():
                raise BadInput(
                    f"PerChannel: dim = {dim} must be in [0, {weight.dim()}) for a weight {list(weight.shape)}"
                )
            return weight.movedim(dim, 0).flatten(1)
        case _:
            raise TypeError(f"granularity must be PerTensor or PerChannel, got {granularity!r}")


def grid_scale(scales: Tensor, granularity: Granularity) -> Tensor:
    """Scales as `Grid` takes them: a scalar, or one number for each channel."""
    return scales.reshape(()) if isinstance(granularity, PerTensor) else scales


def grid_dim(granularity: Granularity) -> int:
    """The dimension along which scales differ, 0 where there is one."""
    return granularity.dim if isinstance(granularity, PerChannel) else 0


def qmax(bits: int) -> int:
    """The integers of a grid are -this .. this: 2**(bits-1) - 1, so that zero is one of them."""
    return (1 << (bits - 1)) - 1


def max_scales(rows_SN: Tensor, qmax: int) -> Tensor:
    """max |w| / qmax for every row, shape (scales,). A row of zeros gets the smallest normal float, not 0."""
    return (rows_SN.abs().amax(1) / qmax).clamp_min(torch.finfo(rows_SN.dtype).tiny)


def mse_scales(rows_SN: Tensor, qmax: int) -> Tensor:
    """For every row the scale with the smallest squared error among shares of `max_scales`, shape (scales,)."""
    top = max_scales(rows_SN, qmax)
    best, error = top, grid_errors(rows_SN, top, qmax)
    for share in torch.linspace(1 / SHARES, 1, SHARES).tolist():
        scale = (top * share).clamp_min(torch.finfo(top.dtype).tiny)
        found = grid_errors(rows_SN, scale, qmax)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    return best


def grid_errors(rows_SN: Tensor, scales: Tensor, qmax: int) -> Tensor:
    """Sum of (w - nearest value of the grid)^2 for every row, shape (scales,)."""
    codes = (rows_SN / scales[:, None]).round().clamp(-qmax, qmax)
    return (rows_SN - scales[:, None] * codes).square().sum(1)


def bits_by_layer(layers: Iterable[str], bits: int, exceptions: Mapping[str, int]) -> dict[str, int]:
    """Bits of every layer; exceptions: by name or pattern, the last that fits counts. Raises NoEffect, BadInput."""
    for pattern, other in exceptions.items():
        if not 2 <= other <= 16:
            raise BadInput(f"layer_bits: {pattern!r} = {other} must be in [2, 16]")
    layers = list(layers)
    return dict.fromkeys(layers, bits) | by_pattern(layers, exceptions, "layer_bits")
