"""NSGA-II, by Optuna: a population moves towards the whole front of score and cost, not towards one point of it.

Source: Deb et al. 2002, IEEE Transactions on Evolutionary Computation 6(2), section III; Akiba et al. 2019,
arXiv:1907.10902.
"""

from typing import Any

from gossamer.nas.result import Found
from gossamer.nas.searchers._optuna import OptunaSearch

POPULATION = 12  # of a generation; the first is drawn evenly


class NSGA2Search(OptunaSearch):
    """Proposes crossings and mutations of what no other one beats in both score and cost. Needs the extra `search`.

    What is outside of the limits counts as a failed trial. The cost is `Searcher.cost`.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.

    Raises:
        MissingExtra: Optuna is not installed.

    Example:
        >>> NSGA2Search.directions
        ('maximize', 'minimize')
    """

    directions = ("maximize", "minimize")

    def sampler(self, optuna: Any, seed: int) -> Any:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)

    def objectives(self, found: Found) -> tuple[float, ...] | None:
        if found.value is None or self.cost not in found.costs:
            return None
        return found.value, found.costs[self.cost]
