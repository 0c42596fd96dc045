"""What all searchers share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

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
        start: architectures that are proposed first, such as one that is known to be good.

    Raises:
        BadInput: an architecture of the start is not of this space.

    Example:
        >>> from gossamer.nas import MobileSpace, RandomSearch
        >>> searcher = RandomSearch(MobileSpace(channels=1, classes=10, side=28), seed=0)
        >>> searcher.ask().share
        1.0

    Attributes:
        cost: the name in `Found.costs` that searchers of a front bring down while the score goes up.
        order: of the gradient by which a supernet is trained before the first proposal; None: there is no supernet.
    """

    cost: str = "latency_ms"
    order: ClassVar[int | None] = None

    def __init__(self, space: Space, seed: int = 0, *, start: Sequence[Genes] = ()) -> None:
        self.space, self.rng = space, Random(seed)
        self.start = tuple(dict.fromkeys(space.checked(genes) for genes in start))
        self.seen: set[Genes] = set()

    @abstractmethod
    def ask(self) -> Proposal:
        """The next one to try."""

    def prepare(self, found: Mapping[str, Any]) -> None:  # noqa: B027  (most searchers have no supernet)
        """What the training of the supernet gave; called once, before the first proposal."""

    def tell(self, found: Found) -> None:  # noqa: B027  (random search learns nothing)
        """What came of a proposal; `found.value` is None where it is outside of the limits."""

    def fresh(self) -> Genes:
        """The next one of the start; then a random one that was not proposed before, where there is one."""
        return self.unseen(lambda: self.space.random(self.rng))

    def unseen(self, draw: Callable[[], Genes]) -> Genes:
        """The next one of the start; then what is drawn and was not proposed before, where there is such a one."""
        genes = next((one for one in self.start if one not in self.seen), None)
        for _ in range(TRIES):
            if genes is not None and genes not in self.seen:
                break
            genes = draw()
        assert genes is not None
        self.seen.add(genes)
        return genes
