"""k-means of scalars (exact, or Lloyd's iteration from three starts) and of vectors; shared by several methods."""

import itertools
import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.errors import unknown

Start = Literal["linear", "density", "random", "optimal"]
STARTS: tuple[str, ...] = get_args(Start)
# Above so many different values the exact program sees groups of neighbours.
GROUPS = 2**13
# Distances are computed in pieces of at most so many.
PIECE = 2**22

Floats = NDArray[np.float64]


def optimal_centers(values: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Return the centers of optimal scalar k-means: they minimize sum_i h_i min_j (x_i - c_j)^2 globally.

    Dynamic programming over the sorted values. The best border moves only to the right, so each of the k stages takes
    O(n log n). Exact for up to 8,192 different values; beyond, borders lie between groups of neighbours, and Lloyd's
    iteration on all values follows.

    Args:
        values: any shape.
        k: how many centers.
        weights: h, of the values' shape; None: 1.

    Returns:
        Ascending, shape (at most k,); fewer where there are fewer different values.

    Source: Wu 1991; Wang & Song 2011.
    """
    x, h = _distinct(values, weights)
    if len(x) <= k:
        return torch.from_numpy(x).to(values)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(term)]) for term in (h, h * x, h * x * x)])
    if len(x) > GROUPS:
        sums = sums[:, np.linspace(0, len(x), GROUPS + 1).round().astype(int)]
    edges = _borders(sums, k)
    inside = np.diff(sums[:, edges], axis=1)
    centers = torch.from_numpy(inside[1] / inside[0]).to(values)
    return lloyd(values, centers, weights) if len(x) > GROUPS else centers


def _distinct(values: Tensor, weights: Tensor | None) -> tuple[Floats, Floats]:
    """Return the different values, ascending, and the weight of each; values of weight 0 get a tiny one, to be
    covered.
    """
    x, place = np.unique(values.detach().flatten().double().cpu().numpy(), return_inverse=True)
    h = np.ones(len(place)) if weights is None else weights.detach().flatten().double().cpu().numpy()
    h = np.bincount(place.ravel(), weights=h, minlength=len(x))
    return x, np.maximum(h, 1e-12 * (h.max(initial=0.0) or 1.0))


def _borders(sums: Floats, k: int) -> NDArray[np.int64]:
    """Return the k + 1 borders of the k optimal intervals, from prefix sums of h, h x, h x^2."""
    n = sums.shape[1] - 1
    best = _cost(sums, np.zeros(n + 1, dtype=np.int64), np.arange(n + 1))
    chosen = []
    for stage in range(2, k + 1):
        best, first = _stage(sums, best, stage, n)
        chosen.append(first)
    edges = [n]
    for first in reversed(chosen):
        edges.append(int(first[edges[-1]]))
    return np.array([0, *reversed(edges)])


def _cost(sums: Floats, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Floats:
    """Return the weighted squared error of the intervals begin <= i < end about their means."""
    h, hx, hxx = sums[:, end] - sums[:, begin]
    return np.asarray(hxx - np.divide(hx * hx, h, out=np.zeros_like(h), where=h > 0))


def _stage(sums: Floats, before: Floats, stage: int, n: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the costs with one interval more for every end, and where that interval begins, by halving strides."""
    best, first = np.full(n + 1, np.inf), np.full(n + 1, n, dtype=np.int64)
    first[: stage + 1] = stage - 1
    stride = 1 << n.bit_length()
    while stride := stride // 2:
        ends = np.arange(stride, n + 1, 2 * stride)
        ends = ends[ends >= stage]
        if not len(ends):
            continue
        low = np.maximum(first[ends - stride], stage - 1)
        right = np.minimum(ends + stride, n + 1)
        high = np.minimum(np.where(right <= n, first[np.minimum(right, n)], n), ends - 1)
        counts = high - low + 1
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        owner = np.repeat(np.arange(len(ends)), counts)
        begin = np.arange(counts.sum()) - starts[owner] + low[owner]
        costs = before[begin] + _cost(sums, begin, ends[owner])
        best[ends] = np.minimum.reduceat(costs, starts)
        hits = np.flatnonzero(costs == best[ends][owner])[::-1]
        first[ends[owner[hits]]] = begin[hits]
    return best, first


def start_centers(values: Tensor, k: int, how: str, generator: torch.Generator) -> Tensor:
    """Return the initial centers of Lloyd's iteration.

    Args:
        values: any shape.
        k: how many centers.
        how: "linear": equally spaced between the extremes; "density": at equal steps of the distribution; "random": k
            of the values.
        generator: for "random".

    Returns:
        Ascending, shape (k,).

    Source: Han et al. 2015, arXiv:1510.00149, section 3.2 ("random" is its Forgy initialization).
    """
    x = values.detach().flatten()
    match how:
        case "linear":
            steps = torch.linspace(0, 1, k, dtype=torch.float64, device=x.device)
            return (x.min() + (x.max() - x.min()) * steps).to(x.dtype)
        case "density":
            places = ((torch.arange(k, device=x.device) + 0.5) / k * len(x)).long()
            return x.sort().values[places.clamp(max=len(x) - 1)]
        case "random":
            return x[torch.randperm(len(x), generator=generator)[:k].to(x.device)].sort().values
        case _:
            raise unknown("start", how, STARTS)


def lloyd(values: Tensor, centers: Tensor, weights: Tensor | None = None, iterations: int = 200) -> Tensor:
    """Run Lloyd's iteration on scalars: nearest center, weighted mean, until nothing moves. The error never grows.

    Args:
        values: any shape.
        centers: shape (k,).
        weights: of the values' shape; None: 1.
        iterations: the largest number.

    Returns:
        Ascending, shape (k,). A center without members stays where it is.
    """
    x, h = _distinct(values, weights)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(term)]) for term in (h, h * x)])
    c = np.sort(centers.detach().double().cpu().numpy())
    for _ in range(iterations):
        edges = np.concatenate([[0], np.searchsorted(x, (c[1:] + c[:-1]) / 2), [len(x)]])
        mass, moment = np.diff(sums[:, edges], axis=1)
        used = np.diff(edges) > 0
        moved = np.sort(np.where(used, moment / np.where(used, mass, 1.0), c))
        if np.array_equal(moved, c):
            break
        c = moved
    return torch.from_numpy(c).to(values)


def nearest_center(values: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest of the ascending centers, of the values' shape; int64."""
    wide = centers.double()
    return torch.bucketize(values.detach().double().contiguous(), (wide[1:] + wide[:-1]) / 2)


def cluster_vectors(
    points_MND: Tensor, k: int, generator: torch.Generator, *, restarts: int = 1, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Run k-means on M sets of N vectors each.

    It starts by greedy D^2 sampling (k-means++), so a k that is at least the number of different vectors is lossless.

    Args:
        points_MND: the vectors.
        k: centers of each set.
        generator: for the sampling.
        restarts: runs for each set, of which the one with the least squared error counts.
        iterations: the largest number, in each run.

    Returns:
        Centers (M, min(k, N), D) and indices (M, N).

    Source: Arthur & Vassilvitskii 2007, section 4 (several candidates for each center).
    """
    sets, count, width = points_MND.shape
    k = min(k, count)
    centers = torch.empty(sets, k, width, dtype=points_MND.dtype, device=points_MND.device)
    indices = torch.empty(sets, count, dtype=torch.int64, device=points_MND.device)
    least = torch.full((sets,), torch.inf, dtype=torch.float64)
    # All runs of all sets, as many at once as fit into a piece.
    runs = torch.arange(sets).repeat_interleave(restarts)
    for own in torch.split(runs, max(1, PIECE // (count * k))):
        points = points_MND[own.to(points_MND.device)].detach().double()
        c, found = _lloyd_vectors(points, k, generator, iterations)
        errors = (points - c.gather(1, found[..., None].expand_as(points))).square().sum((1, 2))
        for i, (m, error) in enumerate(zip(own.tolist(), errors.tolist())):
            if error < least[m]:
                least[m], centers[m], indices[m] = error, c[i].to(points_MND.dtype), found[i]
    return centers, indices


def _lloyd_vectors(points: Tensor, k: int, generator: torch.Generator, iterations: int) -> tuple[Tensor, Tensor]:
    """One run for each set of points (M, N, D): centers (M, k, D) and indices (M, N)."""
    c = _spread(points, k, generator)
    found = nearest_vectors(points, c)
    for _ in range(iterations):
        c = mean_vectors(points, found, c)
        previous, found = found, nearest_vectors(points, c)
        if torch.equal(previous, found):
            break
    return c, found


def _spread(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k initial centers for each set, one after the other.

    Candidates are drawn with a probability ~ squared distance to the nearest center before; the one that leaves the
    least sum of these distances is taken.
    """
    sets, count, _ = points.shape
    rows = torch.arange(sets, device=points.device)
    candidates = 2 + int(math.log(k))
    draw = torch.randint(count, (sets,), generator=generator).to(points.device)
    chosen = [points[rows, draw]]
    far = (points - chosen[0][:, None]).square().sum(2)
    for _ in itertools.repeat(None, k - 1):
        chance = torch.where(far.sum(1, keepdim=True) > 0, far, torch.ones_like(far)).cpu()
        draws = torch.multinomial(chance, candidates, replacement=True, generator=generator).to(points.device)
        tried = [torch.minimum(far, (points - points[rows, d][:, None]).square().sum(2)) for d in draws.T]
        best = torch.stack([one.sum(1) for one in tried]).argmin(0)
        chosen.append(points[rows, draws[rows, best]])
        far = torch.stack(tried)[best, rows]
    return torch.stack(chosen, 1)


def nearest_vectors(points: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest center of the same set.

    Args:
        points: shape (M, N, D).
        centers: shape (M, K, D).

    Returns:
        Shape (M, N).
    """
    distance = centers.square().sum(2)[:, None] - 2 * points @ centers.mT  # without |x|^2, which all share
    return distance.argmin(2)


def mean_vectors(points: Tensor, indices: Tensor, centers: Tensor) -> Tensor:
    """Return the mean of every center's members, shape (M, K, D); a center without members stays.

    Args:
        points: shape (M, N, D).
        indices: center of each point, shape (M, N).
        centers: shape (M, K, D).
    """
    sums = torch.zeros_like(centers).scatter_add_(1, indices[..., None].expand(-1, -1, points.shape[2]), points)
    counts = torch.zeros(centers.shape[:2], dtype=centers.dtype, device=centers.device)
    counts.scatter_add_(1, indices, torch.ones_like(indices, dtype=centers.dtype))
    return torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], centers)
