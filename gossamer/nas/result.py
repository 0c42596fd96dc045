"""What came of one architecture, and the front of those that no other one beats."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gossamer.errors import BadInput
from gossamer.nas.space import Genes


@dataclass(frozen=True, kw_only=True)
class Found:
    """One architecture, measured.

    Attributes:
        genes: which one.
        epochs: that it was trained for; 0 where it is outside of the limits.
        value: of the metric on validation data, in [0, 1] for shares, so that higher is better: of errors the negative
            (`Metric.merit`); None where it was not trained, or has no finite value.
        costs: latency_ms, macs, params, as far as they were measured.
        seconds: that all this took.
        words: the architecture in a line.

    Example:
        >>> Found(genes=(0, 1), epochs=2, value=0.9, costs={"latency_ms": 1.5}).trained
        True
    """

    genes: Genes
    epochs: int
    value: float | None
    costs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    words: str = ""

    @property
    def trained(self) -> bool:
        """Whether it has a value."""
        return self.value is not None


def front(found: Sequence[Found], cost: str) -> list[Found]:
    """The Pareto front: those than which no other one is both at least as good and cheaper, the cheapest first.

    Of one architecture that was trained for several lengths, the longest counts; and only trainings of the longest
    length that occurs are compared.

    Args:
        found: of one search.
        cost: a name in `Found.costs`.

    Returns:
        Some of `found`.

    Example:
        >>> rows = [Found(genes=(i,), epochs=1, value=v, costs={"macs": c}) for i, v, c in ((0, 0.8, 5), (1, 0.7, 9))]
        >>> [row.genes for row in front(rows, "macs")]
        [(0,)]
    """
    trained = [one for one in found if one.value is not None and cost in one.costs]
    longest = max((one.epochs for one in trained), default=0)
    best: list[Found] = []
    for one in sorted((x for x in trained if x.epochs == longest), key=lambda x: (x.costs[cost], -(x.value or 0))):
        if not best or (one.value or 0) > (best[-1].value or 0):
            best.append(one)
    return best


def pick(found: Sequence[Found], cost: str, at_most: float) -> Found:
    """The best of the front that costs no more than so much.

    Args:
        found: of one search.
        cost: a name in `Found.costs`.
        at_most: in the unit of the cost.

    Returns:
        One of `found`.

    Raises:
        BadInput: all cost more; the nearest is named.

    Example:
        >>> rows = [Found(genes=(i,), epochs=1, value=v, costs={"macs": c}) for i, v, c in ((0, 0.7, 5), (1, 0.8, 9))]
        >>> pick(rows, "macs", 8).genes
        (0,)
    """
    best = front(found, cost)
    inside = [one for one in best if one.costs[cost] <= at_most]
    if not inside:
        nearest = f"the nearest has {best[0].costs[cost]:,.4g}" if best else "nothing was trained"
        raise BadInput(f"no network of the front has {cost} of at most {at_most:,.4g}; {nearest}")
    return inside[-1]
