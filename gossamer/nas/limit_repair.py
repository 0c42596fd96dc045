"""A proposal outside of the limits, made cheaper step by step until it is inside.

Source: Wang et al. 2019, arXiv:1811.08886, section 3.1 (HAQ: where a proposal exceeds the limits, bits of layers are
lowered one after the other until it keeps them).
"""

from collections.abc import Sequence

from gossamer.nas.space import Genes


class LimitRepair:
    """Finds the first network of a chain that is inside, by bisection: each one costs no more than the one before.

    Args:
        chain: ever cheaper networks; the one before the first is known to be outside.

    Example:
        >>> repair = LimitRepair([(3,), (2,), (1,), (0,)])
        >>> while (genes := repair.asked) is not None:
        ...     repair.tell(inside=genes[0] <= 2)
        >>> repair.found
        (2,)
    """

    def __init__(self, chain: Sequence[Genes]) -> None:
        self.chain = list(chain)
        self._outside, self._inside = -1, len(self.chain)  # the last that is outside, the first that is inside

    @property
    def asked(self) -> Genes | None:
        """Whose costs have to be known next; None where the first network that is inside, or that none is, is known."""
        return None if self._inside - self._outside == 1 else self.chain[self._middle]

    def tell(self, inside: bool) -> None:
        """Whether the network that was asked for is inside."""
        if inside:
            self._inside = self._middle
        else:
            self._outside = self._middle

    @property
    def found(self) -> Genes | None:
        """The first network that is inside; None where none is."""
        return self.chain[self._inside] if self._inside < len(self.chain) else None

    @property
    def _middle(self) -> int:
        return (self._outside + self._inside) // 2
