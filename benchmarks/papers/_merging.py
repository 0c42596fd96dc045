"""Data-free merging of the units of a LeNet's first linear layer, against leaving units out."""

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.papers._mnist import apply, error, lenet, task
from benchmarks.papers._row import Numbers, Order

SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.84)


def without(model: nn.Module, units: torch.Tensor) -> nn.Module:
    """The hidden layer's units set to zero."""
    smaller: Any = copy.deepcopy(model)
    with torch.no_grad():
        smaller.fc1.weight[units] = 0
        smaller.fc1.bias[units] = 0
    return smaller  # type: ignore[no-any-return]


def measure(seed: int, name: str) -> Numbers:
    """Errors along the curve of removed units: merged, the smallest removed, and drawn at random."""
    dense: Any = lenet(name, seed)
    data = task(seed)
    before = error(dense, data)
    found = {"error of the dense network": before}
    smallest = dense.fc1.weight.detach().norm(dim=1).argsort()
    drawn = torch.randperm(len(smallest), generator=torch.Generator().manual_seed(seed))
    for share in SHARES:
        count = round(len(smallest) * share)
        merged = apply("prune.merge", dense, seed, sparsity=share, layers=("fc1",))
        found[f"error, {share:.0%} merged"] = error(merged, data)
        found[f"error, {share:.0%} smallest removed"] = error(without(dense, smallest[:count]), data)
        found[f"error, {share:.0%} removed at random"] = error(without(dense, drawn[:count]), data)
    found["points lost, 84% merged"] = found["error, 84% merged"] - before
    return found


ORDERS = tuple(
    Order(
        says=f"{share:.0%} of the units: merged before the smallest removed",
        names=(f"error, {share:.0%} merged", f"error, {share:.0%} smallest removed"),
        where="section 5",
    )
    for share in SHARES[2:]
)
