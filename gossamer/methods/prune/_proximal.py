"""Rules that shrink groups: proximal steps in closed form, and their relatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.train.sparsity import Shrinking

TINY = 1e-30


def soft_threshold(values: Tensor, amount: Tensor | float) -> Tensor:
    """Return the proximal operator of amount * |x|: argmin |x - values|^2 / 2 + amount |x|, element by element."""
    return values.sign() * (values.abs() - amount).clamp_min(0)


def group_factors(norms: Tensor, amounts: Tensor) -> Tensor:
    """Return what the proximal operator of amount * |x|_2 multiplies each group with: max(0, 1 - amount / norm).

    Args:
        norms: Euclidean norms of the groups, shape (groups,).
        amounts: shape (groups,).

    Returns:
        Factors in [0, 1], shape (groups,); exactly 0 where the norm is not above the amount.

    Source: Yuan & Lin 2006, Journal of the Royal Statistical Society B 68.
    """
    return torch.where(norms > amounts, 1 - amounts / norms.clamp_min(TINY), 0.0)


def hyperbolic_slope(sums: Tensor, sharpness: float) -> Tensor:
    """Return the derivative of w / (1 + sharpness * w) at the sum w of a group's magnitudes.

    Source: Hanson & Pratt 1988, NIPS 1, equation 5.
    """
    return 1 / (1 + sharpness * sums).square()


def exponential_slope(sums: Tensor, sharpness: float) -> Tensor:
    """Return the derivative of (1 - exp(-sharpness * w)) / sharpness at the sum w of a group's magnitudes.

    Source: Hanson & Pratt 1988, NIPS 1, equation 6, divided by the sharpness so that it begins with slope 1.
    """
    return (-sharpness * sums).exp()


@dataclass(frozen=True)
class GroupLasso:
    """The proximal step of amount * ((1 - alpha) |x|_2 + alpha |x|_1 / sqrt(size)): soft threshold, then group.

    Attributes:
        alpha: share of the l1 norm, in [0, 1].
        gradual: whether only the groups that have to go are shrunk.
    """

    alpha: float = 0.0
    gradual: bool = False

    def __call__(self, step: Shrinking) -> None:
        if self.alpha:
            own = step.amounts / step.groups.sizes(step.parameters).clamp_min(1).sqrt()
            soften(step, self.alpha * own)
        norms = step.groups.norms(step.parameters)
        factors = group_factors(norms, (1 - self.alpha) * step.amounts)
        step.groups.scale(step.parameters, factors.where(step.chosen, 1.0) if self.gradual else factors)


def soften(step: Shrinking, amounts: Tensor) -> None:
    """Soft threshold of all carriers by the amounts of their groups, shape (groups,), in place."""
    for name in step.groups.carried:
        value = step.parameters[name]
        value.copy_(soft_threshold(value, step.groups.spread(name, amounts, 0.0)))


@dataclass(frozen=True)
class Magnitudes:
    """The proximal step of the l1 norm of the carriers."""

    def __call__(self, step: Shrinking) -> None:
        soften(step, step.amounts)


@dataclass(frozen=True)
class Biased:
    """The proximal step of a bias that grows with a group's sum of magnitudes and levels off.

    The bias is concave. Its tangent, which is a weighted l1 norm, is not below it: a step along the tangent never
    makes the bias larger.

    Attributes:
        bias: "hyperbolic" or "exponential".
        sharpness: how soon it levels off, for a group of the mean sum of its layer. Sums grow with the number of a
            unit's weights: without the mean, exp(-sum) of a unit of 784 inputs is zero, and nothing would shrink.
    """

    bias: str
    sharpness: float

    def __call__(self, step: Shrinking) -> None:
        sums = step.groups.sums({name: step.parameters[name].abs() for name in step.groups.carried})
        slope = hyperbolic_slope if self.bias == "hyperbolic" else exponential_slope
        soften(step, step.amounts * slope(sums / layer_means(sums, step.groups.names), self.sharpness))


def layer_means(sums: Tensor, names: Sequence[str]) -> Tensor:
    """The mean of the sums above zero of the groups of the same name, for every group; shape (groups,)."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    layer = torch.tensor([numbers[name] for name in names], device=sums.device)
    total, count = (sums.new_zeros(len(numbers)).index_add_(0, layer, x) for x in (sums, (sums > 0).to(sums.dtype)))
    return (total / count.clamp_min(1)).clamp_min(TINY)[layer]


@dataclass(frozen=True)
class Growing:
    """Decay of the chosen groups, stronger for smaller ones: x <- (1 - amount * base^(1 - importance)) x.

    Attributes:
        base: how much stronger the decay of the least important group is than that of the most important.
    """

    base: float

    def __call__(self, step: Shrinking) -> None:
        norms = step.groups.norms(step.parameters)
        span = (norms.max() - norms.min()).clamp_min(TINY)
        decay = step.amounts * self.base ** ((norms.max() - norms) / span)
        step.groups.scale(step.parameters, torch.where(step.chosen, 1 - decay.clamp(0, 0.5), 1.0))


@dataclass(frozen=True)
class HalfSpace:
    """Half-space projection of the chosen groups: a step along -x / |x|, then zero where the result has left the half
    space of the last values.

    Attributes:
        margin: the group becomes zero if <new, last> < margin * |last|^2.
    """

    margin: float

    def __call__(self, step: Shrinking) -> None:
        norms = step.groups.norms(step.parameters)
        factors = torch.where(step.chosen, 1 - step.amounts / norms.clamp_min(TINY), 1.0)
        step.groups.scale(step.parameters, factors)
        last = {name: step.previous[name] for name in step.groups.carried}
        inner = step.groups.sums({name: step.parameters[name] * last[name] for name in last})
        left = step.chosen & (inner < self.margin * step.groups.norms(last).square())
        step.groups.scale(step.parameters, torch.where(left, 0.0, 1.0).to(norms))
