"""One choice for each layer, so that the sum of the losses is small within a limit for the sum of the costs.

Source: Shoham & Gersho 1988, IEEE Transactions on Acoustics, Speech and Signal Processing 36(9) (allocation by the
slopes of the convex hulls); Dong et al. 2020, arXiv:1911.03852, section 3.2 (bits of layers by sums of their losses).
"""

from collections.abc import Sequence

from gossamer.nas.space import Genes


def allocated(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], limit: float) -> Genes | None:
    """The choice of every layer, by its place: first the cheapest ones, then, as long as the limit allows, the change
    that lowers the loss most for its cost.

    That is the best allocation for what it costs, until a change does not fit; what is left then is filled by smaller
    ones. Losses of layers together are not the sum of those alone: it is a start for a search.

    Args:
        losses: by layer and choice, in any unit.
        costs: by layer and choice, in any unit.
        limit: that the sum of the costs may have.

    Returns:
        A number for each layer; None where the cheapest choices cost too much.

    Example:
        >>> allocated(losses=[(0, 1), (0, 5)], costs=[(8, 2), (8, 2)], limit=12)
        (1, 0)
    """
    chosen = [min(range(len(row)), key=lambda i: (row[i], losses[layer][i])) for layer, row in enumerate(costs)]
    left = limit - sum(costs[layer][choice] for layer, choice in enumerate(chosen))
    if left < 0:
        return None
    while True:
        changes = [
            (costs[layer][new] - costs[layer][old], losses[layer][old] - losses[layer][new], layer, new)
            for layer, old in enumerate(chosen)
            for new in range(len(costs[layer]))
        ]
        fitting = [change for change in changes if change[0] <= left and change[1] > 0]
        if not fitting:
            return tuple(chosen)
        cost, _, layer, new = max(fitting, key=lambda change: (change[1] / max(change[0], 1e-300), change[1]))
        chosen[layer], left = new, left - cost
