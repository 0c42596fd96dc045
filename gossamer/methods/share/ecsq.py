"""Entropy-constrained scalar quantization (ECSQ): share values that minimize error plus code length.

What it does: quantizes weights to uniform steps, then alternates between two updates: each weight takes the value with
the smallest cost (error plus price of its code), and values and code lengths are computed again from these choices. All
layers share one codebook, or each has its own, with wider steps where the loss is less sensitive, at one price. The
price is searched so that the network takes `bits_per_weight`. Weights may become zero; zeros stay. Later training moves
the values.
Cost: gradients of `samples` training samples, and some seconds for a million weights.
When it fails: the code lengths are of order 0; a coder with context gains more, and prefers plain steps
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

from gossamer.constraints.apply import constrain
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.share._decoded import Books, groups, joint_codebooks
from gossamer.methods.share._importance import Importance, importance_of

# A weight chooses among so many values on either side of its nearest, zero, and the one it has.
REACH = 6


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The quantization of a layer.

    Attributes:
        weights: shape (n,), float64.
        importance: weight of each squared error, shape (n,), float64.
        centers: shape (K,), ascending; one of them is 0.
        chosen: index of each weight's center, shape (n,).
    """

    weights: Tensor
    importance: Tensor
    centers: Tensor
    chosen: Tensor

    @property
    def counts(self) -> Tensor:
        """How many weights have each center, shape (K,)."""
        return torch.bincount(self.chosen, minlength=len(self.centers))

    @property
    def zero(self) -> int:
        """Index of the center that is 0."""
        return int((self.centers == 0).nonzero()[0])

    @property
    def prices(self) -> Tensor:
        """Code length -log2 p of each center in bits, shape (K,)."""
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
    """Quantize to uniform steps; the centers are the weighted means of their members.

    Args:
        weights: any shape.
        importance: of the weights' shape.
        price: Lagrange multiplier, error per bit. The step is that at which one more bit lowers the error by `price`.

    Source: Choi et al. 2016, arXiv:1612.01543, section 4.
    """
    w, h = weights.detach().flatten().double(), importance.detach().flatten().double()
    step = math.sqrt(6 * price / (float(h.mean()) * math.log(2)))
    codes = (w / step).round()
    symbols, chosen = torch.unique(torch.cat([codes, codes.new_zeros(1)]), return_inverse=True)
    return centered(Levels(weights=w, importance=h, centers=symbols, chosen=chosen[:-1]))


def centered(levels: Levels) -> Levels:
    """Move the centers to the weighted means of their members, zero stays zero, and drop centers without members."""
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


def assign_centers(levels: Levels, price: float) -> Levels:
    """Give every weight the center with the least h (w - c)^2 - price log2 p; weights that are zero stay zero."""
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
    """Alternate `assign_centers` and `centered` until nothing changes; `lagrangian` never grows.

    Args:
        levels: the start.
        price: Lagrange multiplier, error per bit.
        iterations: the largest number of rounds.

    Source: Choi et al. 2016, arXiv:1612.01543, section 4, algorithm 1.
    """
    for _ in range(iterations):
        moved = centered(assign_centers(levels, price))
        if torch.equal(moved.chosen, levels.chosen) and torch.equal(moved.centers, levels.centers):
            break
        levels = moved
    return levels


def lagrangian(levels: Levels, price: float) -> float:
    """Return the distortion plus price times the entropy of the codes in bits."""
    return levels.distortion + price * float((levels.counts * levels.prices).sum())


def quantize_entropy_constrained(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], price: float, iterations: int
) -> dict[str, Levels]:
    """Quantize every layer at the same price of a bit.

    Args:
        weights: by name, of any shapes.
        importance: by name, of the weights' shapes.
        price: Lagrange multiplier, error per bit.
        iterations: the largest number of rounds; 0: uniform steps.
    """
    return {n: iterate(uniform(w, importance[n], price), price, iterations) for n, w in weights.items()}


def price_for(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], bits_per_weight: float, iterations: int
) -> float:
    """Return the lowest price, to 1 %, at which all layers take at most `bits_per_weight`, codebooks included.

    Args:
        weights: by name, of any shapes.
        importance: by name, of the weights' shapes.
        bits_per_weight: mean over all weights.
        iterations: as of `quantize_entropy_constrained`.
    """
    budget = bits_per_weight * sum(w.numel() for w in weights.values())

    def fits(price: float, rounds: int) -> bool:
        return (
            sum(levels.bits for levels in quantize_entropy_constrained(weights, importance, price, rounds).values())
            <= budget
        )

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
    """Return the lowest price that fits, between one that does not and one that does."""
    while high / low > 1.01:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@dataclass(frozen=True, kw_only=True)
class ECSQ(Method):
    """Entropy-constrained scalar quantization (Choi et al. 2016).

    Args:
        bits_per_weight: mean over all weights of the layers, zeros and codebooks included, in (0, 16].
        codebook: "network": one for all layers; "layer": one for each layer.
        iterations: the largest number of rounds; 0: uniform steps.
        importance: weights of the squared errors: "none", "hessian", "fisher" or "adam"; see `importance_of`.
        samples: training samples for the estimate of the importance.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = gossamer.data.tiny_network()
        >>> method = gossamer.methods.share.ECSQ(bits_per_weight=3, importance="none", layers=("fc1",))
        >>> shared, edits = method(model)
        >>> len(shared.fc1.weight.unique()) < 16
        True
    """

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
        constrained: dict[str, Codebook] = {}
        for names, found in zip(books, quantize_entropy_constrained(pooled, minds, price, self.iterations).values()):
            chosen = dict(zip(names, torch.split(found.chosen, [weights[name].numel() for name in names])))
            indices = {name: one.view(weights[name].shape) for name, one in chosen.items()}
            constrained |= joint_codebooks(found.centers.to(weights[names[0]].dtype), indices)
            for name, one in chosen.items():
                zeros, bits = int((one == found.zero).sum()), float(found.prices[one].mean())
                after = f"{len(found.centers)} values, {zeros:,} zeros, {bits:.2f} bits"
                self.note(context, EditKind.CONSTRAIN, name, before=f"{one.numel():,} weights", after=after)
        return constrain(model, constrained)
