"""Regularized evolution: the best of a few parents is mutated, the oldest one dies.

Source: Real et al. 2019, arXiv:1802.01548, algorithm 1.
Dying by age instead of by score keeps networks from staying because of one lucky training.
"""

from collections import deque
from collections.abc import Sequence

from gossamer.nas.result import Found
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space


class Evolution(Searcher):
    """Aging evolution.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.
        start: architectures that are proposed first; the others of the first population are their mutations.
        population: how many live at a time; so many random ones come first, where there is no start.
        tournament: how many are drawn, of which the best becomes a parent.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> searcher = Evolution(MobileSpace(channels=1, classes=10, side=28), seed=0, population=4, tournament=2)
        >>> searcher.ask().share
        1.0
    """

    def __init__(
        self, space: Space, seed: int = 0, *, start: Sequence[Genes] = (), population: int = 12, tournament: int = 4
    ) -> None:
        super().__init__(space, seed, start=start)
        self.size, self.tournament = population, tournament
        self.population: deque[Found] = deque(maxlen=population)  # the oldest falls out

    def ask(self) -> Proposal:
        if len(self.population) >= self.size:
            drawn = self.rng.sample(list(self.population), min(self.tournament, self.size))
            parent = max(drawn, key=lambda one: one.value or 0.0).genes
        elif self.start:
            parent = self.rng.choice(self.start)
        else:
            return Proposal(self.fresh())
        return Proposal(self.unseen(lambda: self.space.mutated(parent, self.rng)))

    def tell(self, found: Found) -> None:
        if found.trained:  # what is outside of the limits was never trained, and has no children
            self.population.append(found)
