"""Which input channels of a layer can be left out, from the Gram matrix of its inputs.

The layer computes Y = X W. Its inputs X come in channels, of one column each or of several (the taps of a kernel). All
that is asked of the data is G = X^T X and R = X^T Y.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import require

SWAPS = 30  # exchanges that the local search may make


@dataclass(frozen=True, kw_only=True, eq=False)
class GramSystem:
    """Sums over the data for one layer that reads the channels, float64.

    Attributes:
        same: G, shape (D, D).
        cross: R, shape (D, O).
        weight: W, shape (D, O).
        channels: the channel of every column, shape (D,), -1 for columns that always stay (the bias).
        energy: the sum of squares of the outputs; the errors of several layers are compared relative to it.
    """

    same: Tensor
    cross: Tensor
    weight: Tensor
    channels: Tensor
    energy: float


def contributions(systems: Sequence[GramSystem], count: int) -> tuple[Tensor, Tensor]:
    """Inner products of what each channel gives to the outputs, Z_i = X_i W_i, summed over layers.

    Args:
        systems: the layers that read the channels.
        count: of the channels.

    Returns:
        <Z_i, Z_j>, shape (count, count), and <Z_i, Y> without what the columns that always stay give, shape (count,).
    """
    inner = torch.zeros(count + 1, count + 1, dtype=torch.double)  # the last place is for columns that always stay
    outer = torch.zeros(count + 1, dtype=torch.double)
    for one in systems:
        place = torch.where(one.channels < 0, count, one.channels)
        fixed = one.channels < 0
        products = one.same * (one.weight @ one.weight.T)
        rows = torch.zeros(count + 1, len(place), dtype=torch.double).index_add_(0, place, products)
        inner.index_add_(1, place, rows / one.energy)
        wanted = one.cross - one.same[:, fixed] @ one.weight[fixed]
        outer.index_add_(0, place, (wanted * one.weight).sum(1) / one.energy)
    return inner[:-1, :-1], outer[:-1]


def lasso_path(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """The whole regularization path of min_b |Y - sum_i b_i Z_i|^2 / 2 + lambda |b|_1, by least angle regression.

    Args:
        inner: <Z_i, Z_j>, shape (n, n).
        outer: <Z_i, Y>, shape (n,).

    Returns:
        The breakpoints of lambda, falling, shape (points,), and the solutions there, shape (n, points).

    Source: Efron et al. 2004, Annals of Statistics 32.
    """
    path = require("sklearn.linear_model").lars_path_gram
    alphas, _, coefficients = path(outer.numpy(), inner.numpy(), n_samples=1, method="lasso")
    return torch.from_numpy(np.ascontiguousarray(alphas)), torch.from_numpy(np.ascontiguousarray(coefficients))


def lasso_channels(inner: Tensor, outer: Tensor, keep: int) -> list[int]:
    """The channels whose coefficients are not zero at the first point of the path with at least `keep` of them, the
    largest if there are more; where the path ends before, those that help most are added.

    Source: He et al. 2017, arXiv:1707.06168, section 3.1.
    """
    _, solutions = lasso_path(inner, outer)
    sizes = solutions.count_nonzero(0)
    enough = (sizes >= keep).nonzero().flatten()
    point = int(enough[0]) if len(enough) else len(sizes) - 1
    strength = (solutions[:, point].abs() * inner.diagonal().clamp_min(0).sqrt()).tolist()
    rest = outer.abs().tolist()
    order = sorted(range(len(strength)), key=lambda i: (-strength[i], -rest[i]))
    return sorted(order[:keep])


def greedy_channels(inner: Tensor, keep: int) -> list[int]:
    """Remove one channel after the other, so that what all removed ones gave together stays as small as possible.

    Source: Luo et al. 2017, arXiv:1707.06342, section 3.2.2.
    """
    gone, left = list[int](), list(range(len(inner)))
    shared = torch.zeros(len(inner), dtype=torch.double)  # <Z_i, sum of the removed>
    while len(left) > keep:
        rise = inner.diagonal() + 2 * shared
        worst = min(left, key=lambda i: float(rise[i]))
        left.remove(worst)
        gone.append(worst)
        shared = shared + inner[:, worst]
    return left


def explained(system: GramSystem, kept: Sequence[int], *, damp: float) -> float:
    """How much of the outputs' energy the best weights on these channels explain: R_S^T (G_SS + damp)^-1 R_S."""
    columns = _columns(system, kept)
    gram = _damped(system, damp)[columns][:, columns]
    cross = system.cross[columns]
    return float((cross * torch.linalg.solve(gram, cross)).sum()) / system.energy


def unexplained(systems: Sequence[GramSystem], kept: Sequence[int], *, damp: float = 1e-5) -> float:
    """The error that is left after the weights are fitted to the kept channels, relative to the energy of the outputs,
    summed over layers."""
    return sum(1 - explained(one, kept, damp=damp) for one in systems)


def best_channels(
    systems: Sequence[GramSystem],
    count: int,
    keep: int,
    *,
    damp: float = 1e-5,
    starts: Sequence[Sequence[int]] = (),
    swaps: int = SWAPS,
) -> list[int]:
    """The channels on which the weights can be fitted best: backward elimination, then exchanges of pairs.

    Args:
        systems: the layers that read the channels.
        count: of the channels.
        keep: how many stay.
        damp: ridge relative to the mean square of a column.
        starts: other choices to begin the exchanges from; the best of all begins.
        swaps: exchanges at most.

    Returns:
        The kept channels, sorted; their error is at most that of every start.

    Source: Meng et al. 2024, arXiv:2403.12983, section 3 (local search on the layer-wise quadratic).
    """
    choices = [eliminate(systems, count, keep, damp=damp), *map(sorted, starts)]
    errors = [unexplained(systems, choice, damp=damp) for choice in choices]
    error = min(errors)
    kept = choices[errors.index(error)]
    for _ in range(swaps):
        gains, losses = _gains(systems, count, kept, damp=damp)
        outside = [i for i in range(count) if i not in set(kept)]
        if not outside or not kept:
            break
        # The gain of one and the loss of another are exact alone; together they are tried, the most promising first.
        pairs = sorted((float(losses[i] - gains[j]), i, j) for i in kept for j in outside)[:4]
        better = None
        for _, i, j in pairs:
            trial = sorted({*kept, j} - {i})
            new = unexplained(systems, trial, damp=damp)
            if new < error - 1e-12:
                better = (trial, new)
                break
        if better is None:
            break
        kept, error = better
    return kept


def eliminate(systems: Sequence[GramSystem], count: int, keep: int, *, damp: float = 1e-5) -> list[int]:
    """Remove one channel after the other, each time the one whose loss the other weights make up for best."""
    states = [_Inverse(one, list(range(count)), damp) for one in systems]
    left = list(range(count))
    while len(left) > keep:
        losses = torch.stack([state.losses(left) for state in states]).sum(0)
        worst = left[int(losses.argmin())]
        left.remove(worst)
        for state in states:
            state.remove(worst)
    return left


class _Inverse:
    """(G_SS + damp)^-1 and the fitted weights of one layer, while channels leave."""

    def __init__(self, system: GramSystem, kept: Sequence[int], damp: float) -> None:
        columns = _columns(system, kept)
        self.channels, self.energy = system.channels[columns], system.energy
        self.inverse = torch.linalg.inv(_damped(system, damp)[columns][:, columns])
        self.weight = self.inverse @ system.cross[columns]
        self.blocks = {channel: (self.channels == channel).nonzero().flatten() for channel in kept}

    def losses(self, channels: Sequence[int]) -> Tensor:
        """How much less is explained without each of the channels: W_i^T (H_ii)^-1 W_i, relative."""
        found = []
        for channel in channels:
            at = self.blocks[channel]
            part = self.weight[at]
            found.append((part * torch.linalg.solve(self.inverse[at][:, at], part)).sum() / self.energy)
        return torch.stack(found)

    def remove(self, channel: int) -> None:
        """Leave a channel out; its columns of the inverse become zero."""
        at = self.blocks.pop(channel)
        share = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at]).T
        self.weight -= share @ self.weight[at]
        self.inverse -= share @ self.inverse[at]


def _gains(systems: Sequence[GramSystem], count: int, kept: Sequence[int], *, damp: float) -> tuple[Tensor, Tensor]:
    """How much more would be explained with each channel, and how much less without each of those that are kept."""
    gains, losses = torch.zeros(count, dtype=torch.double), torch.zeros(count, dtype=torch.double)
    for one in systems:
        state = _Inverse(one, kept, damp)
        losses[list(kept)] += state.losses(kept)
        inside = _columns(one, kept)
        gram = _damped(one, damp)
        outside = [i for i in range(count) if i not in set(kept)]
        columns = torch.cat([(one.channels == i).nonzero().flatten() for i in outside]) if outside else inside[:0]
        bridge = gram[inside][:, columns]
        rest = one.cross[columns] - bridge.T @ state.weight
        schur = gram[columns][:, columns] - bridge.T @ (state.inverse @ bridge)
        for i in outside:
            at = (one.channels[columns] == i).nonzero().flatten()
            gains[i] += (rest[at] * torch.linalg.solve(schur[at][:, at], rest[at])).sum() / one.energy
    return gains, losses


def _columns(system: GramSystem, kept: Sequence[int]) -> Tensor:
    wanted = torch.isin(system.channels, torch.tensor(list(kept), dtype=system.channels.dtype))
    return (wanted | (system.channels < 0)).nonzero().flatten()


def _damped(system: GramSystem, damp: float) -> Tensor:
    ridge = damp * system.same.diagonal().mean().clamp_min(1e-30)
    return system.same + ridge * torch.eye(len(system.same), dtype=torch.double)


def refit(system: GramSystem, kept: Sequence[int], *, damp: float) -> Tensor:
    """The weights that fit the outputs best on the kept channels, shape (D, O), zero elsewhere.

    The ridge is on the change: with all channels kept and outputs that are met, nothing changes.
    """
    columns = _columns(system, kept)
    gram = system.same[columns][:, columns]
    rest = system.cross[columns] - gram @ system.weight[columns]
    weight = torch.zeros_like(system.cross)
    change = torch.linalg.solve(_damped(system, damp)[columns][:, columns], rest)
    weight[columns] = system.weight[columns] + change
    return weight
