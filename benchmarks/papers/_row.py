"""What a row is: a paper's setting and numbers, our measurement of the same, and what makes it met."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# Name -> value, of one seed.
Numbers = Mapping[str, float]
Side = Literal["at most", "at least", "about"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a paper.

    Attributes:
        name: of the number that our measurement gives.
        paper: its value there.
        where: table, section or page.
        tolerance: how far the mean of our seeds may be on the wrong side of it.
        side: which side is right: an error is to be "at most" the paper's, a ratio "at least"; "about": neither.
        unit: of both.
    """

    name: str
    paper: float
    where: str
    tolerance: float
    side: Side = "at most"
    unit: str = "%"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a paper says of several numbers: which is better than which.

    Attributes:
        says: the sentence.
        names: of our numbers, the best first.
        where: table, section or page.
        tolerance: by how much the mean of a better one may be behind the next and still be called equal.
        higher: whether more is better.
        unit: of the numbers.
    """

    says: str
    names: tuple[str, ...]
    where: str
    tolerance: float = 0.0
    higher: bool = False
    unit: str = "%"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Attributes:
        title: what it is, in a few words.
        paper: authors, year and where it is found.
        setting: the paper's network, data and training.
        ours: our network, data and training, and what differs from the paper's.
        minutes: expected for a seed, on one thread of a free processor.
        measure: gives the numbers of a seed; None: `command` does.
        command: by which the row is run; "": its own.
        needs: data and hours of a GPU, where it takes these; "all" leaves such rows out.
        numbers: the paper's.
        orders: the paper's.
        seeds: to run.
        taken: the JSON of another benchmark that the numbers are taken from; `command` is then that benchmark's.
        exact: numbers that no seed changes.
        reason: for what is missed, found by experiment; "": not looked for.
    """

    title: str
    paper: str
    setting: str
    ours: str
    minutes: float = 0.0
    measure: Callable[[int], Numbers] | None = None
    command: str = ""
    needs: str = ""
    numbers: tuple[Number, ...] = ()
    orders: tuple[Order, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    taken: str = ""
    exact: bool = False
    reason: str = ""

    def facts(self, name: str) -> dict[str, Any]:
        """What the JSON has of it, besides the measurements."""
        facts = {key: value for key, value in asdict(self).items() if key != "measure"}
        if not self.command:
            facts["command"] = f"python -m benchmarks.papers run {name}"
        return {"row": name, **facts}
