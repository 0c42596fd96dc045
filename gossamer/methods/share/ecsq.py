"""Give all weights together the values that cost the fewest bits for their error: entropy-constrained quantization.

What it does: puts weights on uniform steps, then alternates between choosing for each the cheapest value (error plus
price of its code) and moving values and code lengths to what was chosen. All layers have one codebook, or each its own,
with wider steps where the loss minds less, at one price. The price is found so that the network takes
`bits_per_weight`. Weights may become zero; zeros stay. Training that follows moves the values.
Cost: gradients of `samples` training samples, and some seconds for a million weights.
When it fails: the price list is of order 0; a coder that knows the neighbours gains more, and prefers plain steps
(iterations=0). Without training, accuracy falls below about 1 bit per weight.
Equation: min sum_i h_i (w_i - c_j)^2 - lambda log2 p_j; steps sqrt(6 lambda / (h ln 2)), where dD/dR = -lambda.
Source: Choi et al. 2016, arXiv:1612.01543, section 4; Chou, Lookabaugh & Gray 1989.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Codebook, constrain, effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.share._decoded import Books, groups, held_together
from gossamer.methods.share._importance import Importance, importance_of

# A weight chooses among so many values on either side of its nearest, zero, and the one it has.
REACH = 6


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A quantized layer. weights, importance (n,) in float64; centers (K,) ascending, one of them 0; chosen (n,)."""

    weights: Tensor
    importance: Tensor
    centers: Tensor
    chosen: Tensor

    @property
    def counts(self) -> Tensor:
        """How many weights chose each center."""
        return torch.bincount(self.chosen, minlength=len(self.centers))

    @property
    def zero(self) -> int:
        """Which center is 0."""
        return int((self.centers == 0).nonzero()[0])

    @property
    def prices(self) -> Tensor:
        """-log2 p of each center, in bits."""
        return -(self.counts.clamp(min=1) / len(self.chosen)).log2()

    @property
    def distortion(self) -> float:
        """Sum of h (w - c)^2."""
        return float((self.importance * (self.weights - self.centers[self.chosen]).square()).sum())

    @property
    def bits(self) -> float:
        """Order-0 entropy of all codes, and 32 bits for each center but zero."""
        return float((self.counts * self.prices).sum()) + 32 * (len(self.centers) - 1)


def uniform(weights: Tensor, importance: Tensor, price: float) -> Levels:
    """Steps of the width at which one more bit lowers the error by `price`; centers are the members' weighted means."""
    w, h = weights.detach().flatten().double(), importance.detach().flatten().double()
    step = math.sqrt(6 * price / (float(h.mean()) * math.log(2)))
    codes = (w / step).round()
    symbols, chosen = torch.unique(torch.cat([codes, codes.new_zeros(1)]), return_inverse=True)
    return centered(Levels(weights=w, importance=h, centers=symbols, chosen=chosen[:-1]))


def centered(levels: Levels) -> Levels:
    """Centers at the weighted means of their members, zero at zero; centers that nobody chose are dropped."""
    zero, counts = levels.zero, levels.counts
    mass = torch.zeros_like(levels.centers).index_add_(0, levels.chosen, levels.importance)
    moment = torch.zeros_like(levels.centers).index_add_(0, levels.chosen, levels.importance * levels.weights)
    used = counts > 0
    used[zero] = True
    means = moment / torch.where(mass > 0, mass, torch.ones_like(mass))
    means[zero] = 0
    number = used.cumsum(0) - 1
    means, order = means[used].sort()
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return replace(levels, centers=means, chosen=rank[number[levels.chosen]])


def cheapest(levels: Levels, price: float) -> Levels:
    """Every weight at the center of the least h (w - c)^2 - price log2 p; weights that are zero stay zero."""
    centers, prices, w = levels.centers, price * levels.prices, levels.weights
    near = torch.bucketize(w, (centers[1:] + centers[:-1]) / 2)
    offered = [(near + reach).clamp(0, len(centers) - 1) for reach in range(-REACH, REACH + 1)]
    best, chosen = torch.full_like(w, torch.inf), levels.chosen
    # What a weight has comes first: it changes only for something really cheaper, so that the iteration comes to rest.
    for candidate in (levels.chosen, torch.full_like(near, levels.zero), *offered):
        cost = levels.importance * (w - centers[candidate]).square() + prices[candidate]
        better = cost < best
        best, chosen = torch.where(better, cost, best), torch.where(better, candidate, chosen)
    return replace(levels, chosen=chosen.masked_fill(w == 0, levels.zero))


def iterate(levels: Levels, price: float, iterations: int) -> Levels:
    """Choose and center in turn; `lagrangian` never grows."""
    for _ in range(iterations):
        moved = centered(cheapest(levels, price))
        if torch.equal(moved.chosen, levels.chosen) and torch.equal(moved.centers, levels.centers):
            break
        levels = moved
    return levels


def lagrangian(levels: Levels, price: float) -> float:
    """Distortion plus price times the entropy of the codes in bits."""
    return levels.distortion + price * float((levels.counts * levels.prices).sum())


def quantize(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], price: float, iterations: int
) -> dict[str, Levels]:
    """Every layer at the same price of a bit."""
    return {n: iterate(uniform(w, importance[n], price), price, iterations) for n, w in weights.items()}


def price_for(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], bits_per_weight: float, iterations: int
) -> float:
    """The lowest price found (to 1 %) at which the whole takes at most so many bits per weight, codebooks included."""
    budget = bits_per_weight * sum(w.numel() for w in weights.values())

    def fits(price: float, rounds: int) -> bool:
        return sum(levels.bits for levels in quantize(weights, importance, price, rounds).values()) <= budget

    # Everything is zero at this price, and needs no bits at all.
    high = 4 * max(float((importance[n] * w.square()).max()) for n, w in weights.items()) or 1.0
    low = high
    while fits(low, 0) and low > 1e-30 * high:
        low /= 16
    high = _lowest(lambda price: fits(price, 0), low, min(16 * low, high))
    if not iterations:
        return high
    # Iterating saves bits, so that a lower price will do.
    while not fits(high, iterations):
        high *= 1.5
    low = high / 2
    while fits(low, iterations) and low > 1e-30 * high:
        high, low = low, low / 2
    return _lowest(lambda price: fits(price, iterations), low, high)


def _lowest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The lowest price that fits, between one that doesn't and one that does."""
    while high / low > 1.01:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@dataclass(frozen=True, kw_only=True)
class ECSQ(Method):
    """bits_per_weight: over all weights of the layers, zeros and codebooks included. codebook: one for the network, or
    one for each layer. iterations: 0 for uniform steps.
    importance: what errors are weighed by; samples: of training data, to estimate it. layers, ignore: patterns."""

    stage: ClassVar[int | None] = 60
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"bits_per_weight": 4.0, "iterations": 3, "samples": 16}

    bits_per_weight: Annotated[float, Range(0, 16, open_=("low",))] = 2.0
    codebook: Books = "network"
    iterations: Annotated[int, Range(0, 10_000)] = 20
    importance: Importance = "hessian"
    samples: Annotated[int, Range(1, 10_000_000)] = 512
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def needed(self) -> Needs:
        return "weights" if self.importance == "none" else "labels"

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = {name: effective_weight(model, name) for name in weights_of(model, self.layers, self.ignore)}
        h = importance_of(model, weights, self.importance, task, context, self.samples)
        books = groups(weights, self.codebook)
        pooled, minds = (
            {names[0]: torch.cat([x[name].flatten() for name in names]) for names in books} for x in (weights, h)
        )
        with context.progress.busy("looking for the price of a bit"):
            price = price_for(pooled, minds, self.bits_per_weight, self.iterations)
        held: dict[str, Codebook] = {}
        for names, found in zip(books, quantize(pooled, minds, price, self.iterations).values()):
            chosen = dict(zip(names, torch.split(found.chosen, [weights[name].numel() for name in names])))
            indices = {name: one.view(weights[name].shape) for name, one in chosen.items()}
            held |= held_together(found.centers.to(weights[names[0]].dtype), indices)
            for name, one in chosen.items():
                zeros, bits = int((one == found.zero).sum()), float(found.prices[one].mean())
                after = f"{len(found.centers)} values, {zeros:,} zeros, {bits:.2f} bits"
                self.note(context, "constrain", name, before=f"{one.numel():,} weights", after=after)
        return constrain(model, held)
