"""Where a job stands: which of its stages it is in, and since when it runs."""

from dataclasses import dataclass, field
from time import monotonic as clock

from gossamer.core.progress import Progress
from gossamer.report.text import duration

TRYING = "trying everything on a few samples"
PRICING, ATTEMPTS = "looking for shapes that meet the goal", "training and judging"
PLANNED = PRICING, ATTEMPTS
TAKING = "taking the steps of the recipe"
TEACHING = "training the student"
MEASURING = "measuring the result"


@dataclass
class Stages:
    """Says when a stage begins. names: of all stages, in order; earlier: seconds that the job took before it was
    killed."""

    progress: Progress
    names: tuple[str, ...]
    earlier: float = 0.0
    began: float = field(default_factory=clock)
    at: int = 0

    def enter(self, name: str) -> None:
        """A stage begins; of one that has begun already, nothing is said.

        Args:
            name: one of the names.
        """
        number = self.names.index(name) + 1
        if number > self.at:
            self.at = number
            spent = duration(self.earlier + clock() - self.began)
            self.progress.say(f"stage {number} of {len(self.names)}: {name} ({spent} so far)")
