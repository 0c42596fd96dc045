"""Predictor-guided search: a regression forest learns what is good, and ranks many before one is trained.

Source: the scheme of White et al. 2021, arXiv:1910.11858 (BANANAS: predictor, mutations of the best as candidates),
with a random forest (Breiman 2001) as the predictor, which needs few samples and no tuning.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import require
from gossamer.nas.result import Found
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space

PARENTS = 5
CHILDREN, STRANGERS = 20, 100  # candidates: of each parent, and drawn evenly
TREES = 40


class PredictorSearch(Searcher):
    """Trains what a forest of regression trees holds to be best.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.
        start: architectures that are proposed first.
        initial: random ones before there is a predictor.
        explored: every so many proposals, one is drawn evenly: the predictor must not only see what it likes.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> searcher = PredictorSearch(MobileSpace(channels=1, classes=10, side=28), seed=0)
        >>> searcher.ask().share
        1.0
    """

    def __init__(
        self, space: Space, seed: int = 0, *, start: Sequence[Genes] = (), initial: int = 8, explored: int = 5
    ) -> None:
        super().__init__(space, seed, start=start)
        self.initial, self.explored = initial, explored
        self.known: list[Found] = []
        self.outside: set[Genes] = set()

    def ask(self) -> Proposal:
        if len(self.known) < self.initial or len(self.known) % self.explored == self.explored - 1:
            return Proposal(self.fresh())
        forest = require("sklearn.ensemble").RandomForestRegressor(
            n_estimators=TREES, random_state=self.rng.randrange(2**31), n_jobs=1
        )
        forest.fit(self._encoded([one.genes for one in self.known]), [one.value for one in self.known])
        best = sorted(self.known, key=lambda one: -(one.value or 0.0))[:PARENTS]
        candidates = [self.space.mutated(one.genes, self.rng) for one in best for _ in range(CHILDREN)]
        candidates += [self.space.random(self.rng) for _ in range(STRANGERS)]
        fresh = [genes for genes in dict.fromkeys(candidates) if genes not in self.seen]
        if not fresh:
            return Proposal(self.fresh())
        chosen = fresh[int(np.argmax(forest.predict(self._encoded(fresh))))]
        self.seen.add(chosen)
        return Proposal(chosen)

    def tell(self, found: Found) -> None:
        if found.trained:
            self.known.append(found)

    def _encoded(self, genes: list[Genes]) -> NDArray[np.float64]:
        """One column for each value of each number: values of an operation have no order."""
        offsets = np.cumsum([0, *self.space.choices[:-1]])
        rows = np.zeros((len(genes), sum(self.space.choices)))
        rows[np.arange(len(genes))[:, None], np.asarray(genes) + offsets] = 1
        return rows
