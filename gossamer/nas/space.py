"""What a space of architectures is: vectors of whole numbers, and the networks that they name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random

from torch import nn

from gossamer.errors import BadInput

Genes = tuple[int, ...]


class Space(ABC):
    """Networks by vectors of whole numbers, each number from 0 up to one less than its entry of `choices`.

    Searchers know nothing of networks but these numbers. Several vectors may name the same network; `canonical` gives
    one of them.

    Example:
        >>> from gossamer.nas import MobileSpace
        >>> space = MobileSpace(channels=1, classes=10, side=28)
        >>> genes = space.random(Random(0))
        >>> space.mutated(genes, Random(1)) != genes, len(genes) == len(space.choices)
        (True, True)
    """

    @property
    @abstractmethod
    def choices(self) -> tuple[int, ...]:
        """How many values each number has."""

    @abstractmethod
    def build(self, genes: Genes) -> nn.Module:
        """The network, with fresh weights."""

    @abstractmethod
    def words(self, genes: Genes) -> str:
        """The network in a line that can be read."""

    def canonical(self, genes: Genes) -> Genes:
        """One vector for all those that name the same network."""
        return genes

    @property
    def size(self) -> int:
        """How many vectors there are."""
        return math.prod(self.choices)

    def checked(self, genes: Sequence[int]) -> Genes:
        """The vector, in its canonical form.

        Raises:
            BadInput: it is not of this space.
        """
        found = tuple(genes)
        if len(found) != len(self.choices) or any(not 0 <= g < n for g, n in zip(found, self.choices)):
            rule = f"{len(self.choices)} whole numbers, each from 0 to one less than {self.choices}"
            raise BadInput(f"{found} is no architecture of this space; it takes {rule}")
        return self.canonical(found)

    def random(self, rng: Random) -> Genes:
        """A vector drawn evenly."""
        return self.canonical(tuple(rng.randrange(n) for n in self.choices))

    def mutated(self, genes: Genes, rng: Random) -> Genes:
        """Another network: one number changed, or more where that changes nothing that is used.

        Raises:
            BadInput: the space has one network alone.
        """
        found = list(genes)
        places = [i for i, n in enumerate(self.choices) if n > 1]
        if not places:
            raise BadInput("the space has one architecture alone: there is nothing to search")
        while True:
            place = rng.choice(places)
            found[place] = rng.choice([g for g in range(self.choices[place]) if g != found[place]])
            changed = self.canonical(tuple(found))
            if changed != self.canonical(genes):
                return changed
