"""Regularized evolution: the best of a few parents is mutated, the oldest one dies.

Source: Real et al. 2019, arXiv:1802.01548, algorithm 1.
Dying by age instead of by score keeps networks from staying because of one lucky training.
"""

from collections import deque

from gossamer.nas.result import Found
from gossamer.nas.searchers._base import TRIES, Proposal, Searcher
from gossamer.nas.space import Space


class Evolution(Searcher):
    """Aging evolution.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.
        population: how many live at a time; so many random ones come first.
        tournament: how many are drawn, of which the best becomes a parent.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> searcher = Evolution(MobileSpace(channels=1, classes=10, side=28), seed=0, population=4, tournament=2)
        >>> searcher.ask().share
        1.0
    """

    def __init__(self, space: Space, seed: int = 0, *, population: int = 12, tournament: int = 4) -> None:
        super().__init__(space, seed)
        self.size, self.tournament = population, tournament
        self.population: deque[Found] = deque(maxlen=population)  # the oldest falls out

    def ask(self) -> Proposal:
        if len(self.population) < self.size:
            return Proposal(self.fresh())
        drawn = self.rng.sample(list(self.population), min(self.tournament, self.size))
        parent = max(drawn, key=lambda one: one.value or 0.0)
        for _ in range(TRIES):
            child = self.space.mutated(parent.genes, self.rng)
            if child not in self.seen:
                break
        self.seen.add(child)
        return Proposal(child)

    def tell(self, found: Found) -> None:
        if found.trained:  # what is outside of the limits was never trained, and has no children
            self.population.append(found)
