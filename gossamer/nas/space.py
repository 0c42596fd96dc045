"""What a space of architectures is: vectors of whole numbers, and the networks that they name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from random import Random

from torch import nn

from gossamer.errors import BadInput

Genes = tuple[int, ...]


class Space(ABC):
    """Networks by vectors of whole numbers, each number from 0 up to one less than its entry of `choices`.

    Searchers know nothing of networks but these numbers. Several vectors may name the same network; `canonical` gives
    one of them. A space whose numbers are ordered by cost says so by `cheapest`: then a search repairs what is outside
    of its limits.

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
    def cheapest(self) -> Genes | None:
        """The network that costs least, where every number is ordered by cost: the nearer it is to its value here, the
        less networks cost in every respect. None: there is no such order."""
        return None

    def cheaper(self, genes: Genes, rng: Random) -> Genes | None:
        """A network that costs no more: one number, any one, a step nearer to that of `cheapest`.

        Args:
            genes: in canonical form.
            rng: that draws which number.

        Returns:
            Another network; None where there is no cheaper one, or none is known.
        """
        goal = self.cheapest
        if goal is None:
            return None
        places = [place for place, (gene, last) in enumerate(zip(genes, goal)) if gene != last]
        for place in rng.sample(places, len(places)):
            step = 1 if goal[place] > genes[place] else -1
            found = self.canonical((*genes[:place], genes[place] + step, *genes[place + 1 :]))
            if found != genes:  # the number may be one that nothing uses
                return found
        return None

    def ever_cheaper(self, genes: Genes, rng: Random) -> Iterator[Genes]:
        """Networks from this one, which is left out, to `cheapest`, each of which costs no more than the one before."""
        found = self.cheaper(genes, rng)
        while found is not None:
            yield found
            found = self.cheaper(found, rng)

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
