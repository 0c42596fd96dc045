"""Equally spaced values for weights: how many scales a weight has, which scale, which integers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.core.layer_names import by_pattern
from gossamer.errors import BadInput

# Shares of the largest weight at which a grid may end, tried for the smallest squared error.
SHARES = 64


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


def max_scales(rows_SN: Tensor, high: int) -> Tensor:
    """max |w| / high for every row, shape (scales,). A row of zeros gets the smallest normal float, not 0."""
    return (rows_SN.abs().amax(1) / high).clamp_min(torch.finfo(rows_SN.dtype).tiny)


def mse_scales(rows_SN: Tensor, high: int) -> Tensor:
    """For every row the scale with the smallest squared error among shares of `max_scales`, shape (scales,)."""
    top = max_scales(rows_SN, high)
    best, error = top, squared_error(rows_SN, top, high)
    for share in torch.linspace(1 / SHARES, 1, SHARES).tolist():
        scale = (top * share).clamp_min(torch.finfo(top.dtype).tiny)
        found = squared_error(rows_SN, scale, high)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    return best


def squared_error(rows_SN: Tensor, scales: Tensor, high: int) -> Tensor:
    """Sum of (w - nearest value of the grid)^2 for every row, shape (scales,)."""
    codes = (rows_SN / scales[:, None]).round().clamp(-high, high)
    return (rows_SN - scales[:, None] * codes).square().sum(1)


def bits_by_layer(layers: Iterable[str], bits: int, exceptions: Mapping[str, int]) -> dict[str, int]:
    """Bits of every layer; exceptions: by name or pattern, the last that fits counts. Raises NoEffect, BadInput."""
    for pattern, other in exceptions.items():
        if not 2 <= other <= 16:
            raise BadInput(f"layer_bits: {pattern!r} = {other} must be in [2, 16]")
    layers = list(layers)
    return dict.fromkeys(layers, bits) | by_pattern(layers, exceptions, "layer_bits")
