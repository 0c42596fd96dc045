"""How many channels each group keeps, for a given pruning ratio."""

from collections.abc import Mapping

import torch
from torch import Tensor

FLOOR = 0.25  # no group is cut below this share: a global ranking by magnitude would leave a stage a single channel


def uniform_widths(sizes: Mapping[str, int], sparsity: float, *, round_to: int = 1) -> dict[str, int]:
    """The same share of every group, rounded to the nearest multiple of `round_to`, at least one multiple."""
    return {name: _rounded(size * (1 - sparsity), size, round_to) for name, size in sizes.items()}


def ranked_widths(
    scores: Mapping[str, Tensor],
    unit_costs: Mapping[str, float],
    sparsity: float,
    *,
    round_to: int = 1,
    floor: float = FLOOR,
) -> dict[str, int]:
    """Cut where importance per cost is least, over all groups together, until `sparsity` of the total cost is gone.

    scores: importance of each unit of a group, shape (units,); they are divided by their group's mean first, because
    raw magnitudes of different layers do not compare. unit_costs: what one unit of the group costs (time, MACs,
    parameters). Units go in blocks of `round_to`, the least important first, and never below `floor` of their group.
    """
    values, costs, owners, counts = [], [], [], []
    for index, (name, score) in enumerate(scores.items()):
        ordered = (score.double() / score.double().mean().clamp_min(1e-300)).sort(descending=True).values
        starts = range(_rounded(floor * len(score), len(score), round_to), len(score), round_to)
        blocks = [ordered[start : start + round_to] for start in starts]
        # Within a group blocks fall in value, so the ones cut are always its last.
        values += [float(block.mean()) / max(unit_costs[name], 1e-12) for block in blocks]
        costs += [len(block) * unit_costs[name] for block in blocks]
        counts += [len(block) for block in blocks]
        owners += [index] * len(blocks)
    total = sum(len(score) * unit_costs[name] for name, score in scores.items())
    order = torch.tensor(values, dtype=torch.float64).argsort(stable=True)
    removed = torch.tensor(costs, dtype=torch.float64)[order].cumsum(0)
    cut = order[: int((removed <= sparsity * total + 1e-9).sum())]
    owner, count = torch.tensor(owners, dtype=torch.int64), torch.tensor(counts, dtype=torch.float64)
    lost = torch.bincount(owner[cut], weights=count[cut], minlength=len(scores)).tolist()
    return {name: len(score) - int(n) for (name, score), n in zip(scores.items(), lost)}


def _rounded(wanted: float, size: int, round_to: int) -> int:
    return min(size, max(round_to, round_to * round(wanted / round_to)))
