"""Where a job stands: which of its stages it is in, and since when it runs."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic as clock

from gossamer.core.progress import Progress
from gossamer.report.text import duration

LOOKING = "looking at network and data"  # before the first stage
TRYING = "trying everything on a few samples"
PRICING, ATTEMPTS = "looking for shapes that meet the goal", "training and judging"
PLANNED = PRICING, ATTEMPTS
TAKING = "taking the steps of the recipe"
TEACHING = "training the student"
MEASURING = "measuring the result"


@dataclass
class Stages:
    """Says when a stage begins, and is shown as busy with it until the next one, so that no part of a job is silent.
    names: of all stages, in order; earlier: seconds that the job took before it was killed."""

    progress: Progress
    names: tuple[str, ...]
    earlier: float = 0.0
    began: float = field(default_factory=clock)
    at: int = 0
    shown: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self.shown.close()

    def enter(self, name: str) -> None:
        """A stage begins; of one that has begun already, nothing is said.

        Args:
            name: one of the names.
        """
        number = self.names.index(name) + 1
        if number > self.at:
            self.at = number
            spent = duration(self.earlier + clock() - self.began)
            label = f"stage {number} of {len(self.names)}: {name}"
            self.shown.close()
            self.progress.say(f"{label} ({spent} so far)")
            self.shown.enter_context(self.progress.busy(label))
