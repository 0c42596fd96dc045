"""Asynchronous successive halving (ASHA): many short trainings, of which the best are repeated longer.

Source: Li et al. 2020, arXiv:1810.05934, algorithm 2; here one at a time, and trained again from the start, because a
learning-rate schedule is as long as its training.
"""

from collections.abc import Sequence

from gossamer.nas.result import Found
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space


class HalvingSearch(Searcher):
    """Promotes the best share of each length to the next one.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.
        start: architectures that are proposed first.
        reduction: each length is so many times the one before, and one of so many is promoted.
        lengths: how many there are; the last is the full training.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> searcher = HalvingSearch(MobileSpace(channels=1, classes=10, side=28), seed=0, reduction=3, lengths=3)
        >>> round(searcher.ask().share, 3)
        0.111
    """

    def __init__(
        self, space: Space, seed: int = 0, *, start: Sequence[Genes] = (), reduction: int = 3, lengths: int = 3
    ) -> None:
        super().__init__(space, seed, start=start)
        self.reduction, self.shares = reduction, [reduction ** (i + 1 - lengths) for i in range(lengths)]
        self.done: list[dict[Genes, float]] = [{} for _ in self.shares]
        self.promoted: list[set[Genes]] = [set() for _ in self.shares]
        self.running: dict[Genes, int] = {}

    def ask(self) -> Proposal:
        for level in reversed(range(len(self.shares) - 1)):
            ranked = sorted(self.done[level], key=lambda genes: -self.done[level][genes])
            for genes in ranked[: len(ranked) // self.reduction]:
                if genes not in self.promoted[level]:
                    self.promoted[level].add(genes)
                    self.running[genes] = level + 1
                    return Proposal(genes, self.shares[level + 1])
        genes = self.fresh()
        self.running[genes] = 0
        return Proposal(genes, self.shares[0])

    def tell(self, found: Found) -> None:
        level = self.running.pop(found.genes, 0)
        if found.value is not None:
            self.done[level][found.genes] = found.value
