"""Clusters of channels or filters of equal size, each near a subspace of its own."""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

STARTS = (4, 64)  # at least and at most, the more the fewer items; the first is the order that is there
ROUNDS = 12


def cluster_order(items: Tensor, clusters: int, dims: int) -> Tensor:
    """Sort items into clusters of equal size, each around a subspace of its own (k-subspaces with several starts).

    Args:
        items: shape (n, m, D), n items of m vectors each.
        clusters: number of clusters; it divides n.
        dims: dimensions of each subspace.

    Returns:
        The order of the items by cluster, shape (n,), with the least squared distances that the starts find.
    """
    n, m, size = items.shape
    flat, generator = items.reshape(n * m, size), torch.Generator().manual_seed(0)
    if n * m < size:  # only how the vectors lie to one another matters
        flat = torch.linalg.qr(flat.mT).R.mT
    vectors, each = flat.view(n, m, -1), n // clusters
    best: tuple[float, Tensor] | None = None
    for start in range(min(max(2048 // n, STARTS[0]), STARTS[1])):
        order = torch.arange(n) if start == 0 else torch.randperm(n, generator=generator)
        before = math.inf
        for _ in range(ROUNDS):
            bases = torch.linalg.svd(vectors[order].reshape(clusters, each * m, -1), full_matrices=False).Vh[:, :dims]
            off = vectors.square().sum((1, 2))[:, None] - torch.einsum("nmd,qrd->nqmr", vectors, bases).square().sum(
                (2, 3)
            )
            row, column = linear_sum_assignment(off.repeat_interleave(each, 1).cpu().numpy())
            order, now = torch.from_numpy(row[np.argsort(column)]), float(off.cpu()[row, column // each].sum())
            if now >= before * (1 - 1e-9):
                break
            before = now
        if best is None or before < best[0] * (1 - 1e-9):
            best = before, order
    assert best is not None
    return best[1].to(items.device)
