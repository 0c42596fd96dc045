"""What all searchers share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random

from gossamer.nas.result import Found
from gossamer.nas.space import Genes, Space

TRIES = 200  # drawings in which a new vector is looked for, before an old one is taken


@dataclass(frozen=True)
class Proposal:
    """What to train next.

    Attributes:
        genes: which architecture.
        share: of the full length of a training.

    Example:
        >>> Proposal((0, 2)).share
        1.0
    """

    genes: Genes
    share: float = 1.0


class Searcher(ABC):
    """Proposes architectures of a space.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.

    Example:
        >>> from gossamer.nas import MobileSpace, RandomSearch
        >>> searcher = RandomSearch(MobileSpace(channels=1, classes=10, side=28), seed=0)
        >>> searcher.ask().share
        1.0

    Attributes:
        cost: the name in `Found.costs` that searchers of a front bring down while the score goes up.
    """

    cost: str = "latency_ms"

    def __init__(self, space: Space, seed: int = 0) -> None:
        self.space, self.rng = space, Random(seed)
        self.seen: set[Genes] = set()

    @abstractmethod
    def ask(self) -> Proposal:
        """The next one to try."""

    def tell(self, found: Found) -> None:  # noqa: B027  (random search learns nothing)
        """What came of a proposal; `found.value` is None where it is outside of the limits."""

    def fresh(self) -> Genes:
        """A random architecture that was not proposed before, where there is one."""
        for _ in range(TRIES):
            genes = self.space.random(self.rng)
            if genes not in self.seen:
                break
        self.seen.add(genes)
        return genes
