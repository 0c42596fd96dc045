"""Choices of layers within a limit, against all allocations."""

from itertools import product
from random import Random

import pytest

from gossamer.nas.allocation import allocated


def test_by_hand() -> None:
    losses, costs = [(0.0, 1.0, 9.0), (0.0, 4.0, 5.0)], [(8.0, 4.0, 2.0), (8.0, 4.0, 2.0)]
    # From (2, 2): the first layer's 9 to 1 for 2, then the second's 5 to 0 for 6 (0.83) before 5 to 4 for 2 (0.5).
    assert allocated(losses, costs, 3.9) is None
    assert allocated(losses, costs, 4.0) == (2, 2)
    assert allocated(losses, costs, 6.0) == (1, 2)
    assert allocated(losses, costs, 8.0) == (1, 1)  # what is better for its cost does not fit any more
    assert allocated(losses, costs, 12.0) == (1, 0)
    assert allocated(losses, costs, 99.0) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_it_keeps_the_limit_and_is_nearly_the_best_of_all(seed: int) -> None:
    rng = Random(seed)
    costs = [sorted((rng.uniform(1, 10) for _ in range(4)), reverse=True) for _ in range(5)]
    losses = [sorted(rng.uniform(0, 1) for _ in range(4)) for _ in range(5)]

    def sums(genes: tuple[int, ...]) -> tuple[float, float]:
        return sum(costs[i][g] for i, g in enumerate(genes)), sum(losses[i][g] for i, g in enumerate(genes))

    limit = rng.uniform(sum(row[-1] for row in costs), sum(row[0] for row in costs))
    found = allocated(losses, costs, limit)
    assert found is not None
    cost, loss = sums(found)
    best = min(sums(genes)[1] for genes in product(range(4), repeat=5) if sums(genes)[0] <= limit)
    assert cost <= limit
    # The relaxed problem differs from the best allocation by at most one change of one layer.
    assert best <= loss <= best + max(row[-1] - row[0] for row in losses)
    for layer, choice in enumerate(found):  # nothing is left that fits and is better
        for other in range(4):
            changed = sums((*found[:layer], other, *found[layer + 1 :]))
            assert changed[0] > limit or changed[1] >= loss or other == choice
