"""Random search: every architecture is drawn evenly (Li & Talwalkar 2019, arXiv:1902.07638)."""

from gossamer.nas.searchers._base import Proposal, Searcher


class RandomSearch(Searcher):
    """Draws evenly, without repetition. What cannot beat it is not worth its code.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> searcher = RandomSearch(MobileSpace(channels=1, classes=10, side=28), seed=0)
        >>> searcher.ask() != searcher.ask()
        True
    """

    def ask(self) -> Proposal:
        return Proposal(self.fresh())
