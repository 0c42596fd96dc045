"""The metric of a job, as its document describes it: how scores are named, written and compared."""

from dataclasses import dataclass

from gossamer.core.record import JobDocument
from gossamer.core.units import PERCENT
from gossamer.report import text


@dataclass(frozen=True, kw_only=True)
class Score:
    """How to speak of the scores of a document.

    Attributes:
        name: of the metric, as it stands in a sentence.
        unit: of its values.
        higher_is_better: False for errors.
        point: what one point is, in that unit.
        split: the data that results are reported on.
    """

    name: str
    unit: str
    higher_is_better: bool
    point: float
    split: str

    @classmethod
    def of(cls, document: JobDocument) -> "Score":
        """The score of a document."""
        task = document.task
        return cls(
            name=str(task.get("metric", "score")),
            unit=str(task.get("unit", PERCENT)),
            higher_is_better=bool(task.get("higher_is_better", True)),
            point=float(task.get("point", 1.0)),
            split=str(task.get("split", "test")),
        )

    @property
    def sign(self) -> float:
        """By which values become numbers of which the larger is the better one."""
        return 1.0 if self.higher_is_better else -1.0

    def text(self, value: float) -> str:
        """`93.20 %`, `0.1234 m`, with a true minus sign."""
        return text.score(value, self.unit)

    def lost(self, before: float, after: float) -> float:
        """How many points worse the second value is."""
        return self.sign * (before - after) / self.point

    def worse(self, value: float, points: float) -> float:
        """The value that is so many points worse."""
        return value - self.sign * points * self.point
