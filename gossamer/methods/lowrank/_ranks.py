"""Rank selection: by energy, by the noise in the spectrum (EVBMF), or by a budget of cost for all layers together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gossamer.errors import BadInput

# Of a layer's time: a chain that takes more is no gain.
GAINS = 0.9
# A grid over several ranks has at most about this many points.
GRID_POINTS = 8192
# Ranks at which it is tried what they lose, where only trying tells.
PROBES = 6


@dataclass(frozen=True, kw_only=True)
class Options:
    """The ranks that a layer may get, with their costs. P options, m modes.

    Attributes:
        ranks: shape (P, m).
        macs: multiply-adds of the chain, shape (P,).
        params: weights of the chain, shape (P,).
        lost: fraction of the energy that is lost, in [0, 1], shape (P,).
        dense_macs: multiply-adds of the layer itself, which loses nothing.
        dense_params: weights of the layer itself.
        time: milliseconds of the chain, shape (P,), where they were measured.
        dense_time: milliseconds of the layer itself.
    """

    ranks: Tensor
    macs: Tensor
    params: Tensor
    lost: Tensor
    dense_macs: int
    dense_params: int
    time: Tensor | None = None
    dense_time: float = 0.0

    def paying(self) -> Tensor:
        """Return bool (P,): which chains have fewer multiply-adds, not more weights, and less time if it is known."""
        fewer = (self.macs < self.dense_macs) & (self.params <= self.dense_params)
        return fewer if self.time is None else fewer & (self.time <= GAINS * self.dense_time)


def tails(energies: Tensor, total: float) -> Tensor:
    """Return the fraction of the energy that is lost when the first r singular values are kept, for r = 0 .. R.

    Args:
        energies: squared singular values, falling, shape (R,).
        total: the sum of all squared singular values.

    Returns:
        Shape (R + 1,), from 1 to 0.
    """
    kept = torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    return (1 - kept / total).clamp(0, 1) if total > 0 else torch.zeros_like(kept)


def probed(most: int, lost: Callable[[int], float]) -> Tensor:
    """Return the fraction of the energy lost at ranks 0 .. `most`, from a few ranks at which it is computed.

    Args:
        most: the largest rank.
        lost: gives the fraction at a rank. It is called for ranks that are evenly spread in the logarithm.

    Returns:
        Shape (most + 1,), float64, never rising, linear between the computed ranks.
    """
    probes = sorted({round(most ** (n / (PROBES - 1))) for n in range(PROBES)})
    losses = np.minimum.accumulate([lost(rank) for rank in probes])
    return torch.from_numpy(np.interp(np.arange(most + 1), [0, *probes], [1, *losses]))


def rank_grid(largest: tuple[int, ...]) -> Tensor:
    """Return all combinations of ranks from 1 to `largest`, thinned out evenly to about GRID_POINTS; shape (P, m)."""
    each = max(int(GRID_POINTS ** (1 / len(largest))), 2)
    values = [
        sorted({round(1 + i * (most - 1) / (each - 1)) for i in range(each)}) if most > each else range(1, most + 1)
        for most in largest
    ]
    return torch.tensor(list(product(*values)))


def by_energy(options: Options, energy: float) -> int | None:
    """Return the option with the fewest multiply-adds that keeps this fraction of the energy; None if there is none."""
    fits = options.paying() & (1 - options.lost >= energy)
    if not bool(fits.any()):
        return None
    return int(options.macs.where(fits, torch.iinfo(torch.int64).max).argmin())


def by_budget(
    layers: Mapping[str, Options], share: float, what: str, weights: Mapping[str, float] | None = None
) -> dict[str, int | None]:
    """Choose an option for every layer so that all together keep to a budget and lose as little energy as possible.

    The product of the kept energies is maximized by bisection of a Lagrange multiplier: at each value every layer takes
    what minimizes -log(kept energy) + multiplier * cost.

    Args:
        layers: the options by layer.
        share: the budget, as a fraction of what the layers cost now.
        what: which cost: "macs", "params" or "time".
        weights: factors of the layers' logarithms; None: all 1.

    Returns:
        The number of the option by layer; None where the layer stays as it is.

    Raises:
        BadInput: no choice is cheap enough.

    Source:
        Zhang et al. 2016, arXiv:1505.06798, section 2.4 (the objective).
    """
    whole = sum(getattr(o, f"dense_{what}") for o in layers.values())
    dense = {name: getattr(o, f"dense_{what}") / whole for name, o in layers.items()}

    def choose(price: float) -> tuple[dict[str, int | None], float]:
        found, cost = dict[str, int | None](), 0.0
        for name, o in layers.items():
            costs = (getattr(o, what).double() / whole).where(o.paying(), math.inf)
            weight = 1.0 if weights is None else weights[name]
            score = -weight * torch.log((1 - o.lost).clamp_min(1e-30)) + price * costs
            best = int(score.argmin())
            found[name] = best if float(score[best]) < price * dense[name] else None
            cost += float(costs[best]) if found[name] is not None else dense[name]
        return found, cost

    low, high = 0.0, 1e12  # prices of all that the layers cost
    found, cost = choose(high)
    if cost > share:
        raise BadInput(
            f"{what} = {share}: these layers cannot be cheaper than {cost:.3f} of what they are; ask for more"
        )
    for _ in range(60):
        middle = math.sqrt(max(low, 1e-9) * high)
        trial, cost = choose(middle)
        low, high, found = (low, middle, trial) if cost <= share else (middle, high, found)
    return found


def evbmf_rank(energies: Tensor, shape: tuple[int, int], total: float | None = None) -> int:
    """Return the rank that empirical variational Bayesian matrix factorization (EVBMF) finds under Gaussian noise.

    Singular values count if their squares are above M s2 (1 + t) (1 + a / t), where L <= M are the sides, a = L / M,
    t = 2.5129 sqrt(a), and s2 is the noise variance that minimizes the free energy.

    Args:
        energies: squared singular values, falling; all of them, or the leading ones.
        shape: of the matrix.
        total: sum of all squared singular values, where only the leading ones are given.

    Source:
        Nakajima et al. 2013, JMLR 14, theorems 2 and 3 and corollary 2.
    """
    short, long = min(shape), max(shape)
    whole = float(energies.sum()) if total is None else total
    if whole <= 0:
        return 0
    a = short / long
    t = 2.5129 * math.sqrt(a)
    bound = (1 + t) * (1 + a / t)
    rest = max(whole - float(energies.sum()), 0.0)
    e = (energies.double() / whole).clamp_min(1e-14).cpu().numpy()  # in units in which the matrix has energy 1
    scale = short * long

    def free_energy(log_variance: float) -> float:
        variance = math.exp(log_variance) / scale
        x = e / (long * variance)
        noise, signal = x[x <= bound], x[x > bound]
        tau = (signal - (1 + a) + np.sqrt(np.maximum((signal - (1 + a)) ** 2 - 4 * a, 0))) / 2
        parts = (signal - tau + np.log((tau + 1) / signal) + a * np.log(tau / a + 1)).sum()
        left = (short - len(e)) * math.log(variance * scale) + rest / whole / (long * variance)
        return float((noise - np.log(noise)).sum() + parts) + left

    # The free energy has several minima: the best of a grid is refined.
    points = np.linspace(math.log(1e-12), 0.0, 200)
    best = int(np.argmin([free_energy(point) for point in points]))
    bounds = float(points[max(best - 1, 0)]), float(points[min(best + 1, len(points) - 1)])
    variance = math.exp(minimize_scalar(free_energy, bounds=bounds, method="bounded").x) / scale
    return int((e > long * variance * bound).sum())
