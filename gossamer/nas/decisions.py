"""What a search does next, as a function of the results that are there: whoever follows them decides the same.

Trial k is proposed from the results of the trials before k - concurrent + 1, in their order, and from no others, even
where more are known. Results may come in any order, from any number of processes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gossamer.core.metric import Metric
from gossamer.core.progress import Progress
from gossamer.errors import BadInput
from gossamer.nas.plan import LIMITS, SearchPlan
from gossamer.nas.result import Found
from gossamer.nas.searchers import Searcher
from gossamer.nas.trials import TrialStep, within

SAID = 10  # proposals outside of the limits, after which a message says so
OUTSIDE = 300  # proposals in a row that are outside of the limits, before the search gives up


@dataclass
class _Slot:
    """One trial: what was proposed and is outside of the limits, and what is trained."""

    step: TrialStep
    measured: Mapping[str, Any]
    outside: list[Found] = field(default_factory=list)
    said: bool = False


class Decisions:
    """The decisions of one search.

    Args:
        searcher: that proposes.
        plan: how many trials, and how many of them at once.
        epochs: of a full training, and of the final one.
        limits: by the names of costs.
        minutes: that all trials and the final training may take together; None: no limit.
        results: what came of a step, by its key; None where nobody has done it yet.
        metric: for messages.
        progress: where is said what came of a trial.
    """

    def __init__(
        self,
        searcher: Searcher,
        plan: SearchPlan,
        epochs: tuple[int, int],
        *,
        limits: dict[str, float],
        minutes: float | None,
        results: Callable[[str], Mapping[str, Any] | None],
        metric: Metric,
        progress: Progress,
    ) -> None:
        self.searcher, self.plan, self.limits, self.minutes, self.results = searcher, plan, limits, minutes, results
        self.epochs, self.final_epochs = epochs
        self.metric, self.progress = metric, progress
        self.slots: list[_Slot] = []
        self.told: list[Found] = []  # of trials whose results the searcher knows
        self.outside: list[Found] = []  # of the trial that is being proposed
        self.asked: TrialStep | None = None  # a proposal whose costs are not known yet
        self.over = False
        self.nearest: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """Whether all trials are done."""
        return (self.over or len(self.slots) == self.plan.trials) and len(self.told) == len(self.slots)

    @property
    def found(self) -> list[Found]:
        """Everything that was looked at, in the order of the proposals."""
        return [one for slot, trained in zip(self.slots, self.told) for one in (*slot.outside, trained)]

    def ready(self) -> list[TrialStep]:
        """Follow the results as far as they are there; the steps that can be done now, the first ones first."""
        while self._follow():
            pass
        steps = [self.asked] if self.asked is not None else []
        for number, slot in enumerate(self.slots):
            row = self.results(slot.step.key)
            if row is None:
                steps.append(slot.step)
            elif not slot.said:
                slot.said = True
                self._say(number, self._trained(slot, row))
        return steps

    def _follow(self) -> bool:
        """One decision; False where a result is missing for it, or none is left."""
        if self.asked is not None:
            return self._judge(self.asked)
        number = len(self.slots)
        if self.over or number == self.plan.trials:
            self._tell(number)
            return False
        if not self._tell(number - self.plan.concurrent + 1):
            return False
        if not self.outside and not self._time_is_left():
            self.progress.say(f"the time ends after {number} trainings")
            self.over = True
            return True
        proposal = self.searcher.ask()
        epochs = max(1, round(self.epochs * proposal.share))
        key = f"{number:05d}-{len(self.outside):03d}-costs"
        self.asked = TrialStep(key, "measure", proposal.genes, epochs)
        return True

    def _tell(self, count: int) -> bool:
        """Tell the searcher the results of the first so many trials; False where one is missing."""
        while len(self.told) < count:
            slot = self.slots[len(self.told)]
            row = self.results(slot.step.key)
            if row is None:
                return False
            one = self._trained(slot, self._of(slot.step, row))
            self.told.append(one)
            self.searcher.tell(one)
        return True

    def _judge(self, asked: TrialStep) -> bool:
        """Whether a proposal is trained, once its costs are known."""
        row = self.results(asked.key)
        if row is None:
            return False
        self.asked, number = None, len(self.slots)
        costs = self._of(asked, row)["costs"]
        if within(costs, self.limits):
            step = TrialStep(f"{number:05d}-score", "train", asked.genes, asked.epochs)
            self.slots.append(_Slot(step, row, self.outside))
            self.outside = []
            return True
        one = Found(genes=asked.genes, epochs=0, value=None, costs=costs, seconds=row["seconds"], words=row["words"])
        self.outside.append(one)
        self._note_nearest(costs)
        self.searcher.tell(one)
        if len(self.outside) == OUTSIDE:
            raise BadInput(f"{OUTSIDE} architectures in a row are outside of the limits; {self._nearest_so_far()}")
        if len(self.outside) % SAID == 0:
            self.progress.say(
                f"trial {number + 1}: {len(self.outside)} outside of the limits; {self._nearest_so_far()}"
            )
        return True

    def _of(self, step: TrialStep, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result, which is of what was proposed here."""
        if tuple(row["genes"]) != step.genes:
            raise BadInput(
                f"{step.key}: another architecture was proposed there than here, from the same results; "
                "all workers need the same versions of Python and of the libraries"
            )
        return row

    def _trained(self, slot: _Slot, row: Mapping[str, Any]) -> Found:
        measured = slot.measured
        return Found(
            genes=slot.step.genes,
            epochs=row["epochs"],
            value=row["value"],
            costs=measured["costs"],
            words=measured["words"],
            seconds=measured["seconds"] + row["seconds"],
        )

    def _say(self, number: int, one: Found) -> None:
        value = "failed" if one.value is None else self.metric.text(one.value)
        self.progress.say(f"trial {number + 1}: {value}, {costs_text(one)}: {one.words}")

    def _time_is_left(self) -> bool:
        """Whether another trial and the final training fit into the budget of time, of all processes together."""
        if self.minutes is None or not self.told:
            return True
        epoch = sum(one.seconds for one in self.told) / max(sum(one.epochs for one in self.told), 1)
        running = sum(slot.step.epochs for slot in self.slots[len(self.told) :])
        needed = epoch * (running + self.epochs + self.final_epochs)
        return bool(sum(one.seconds for one in self.found) + needed <= 60 * self.minutes)

    def _note_nearest(self, costs: dict[str, float]) -> None:
        def far(one: dict[str, float]) -> float:
            return max(one[name] / limit if name in one else math.inf for name, limit in self.limits.items())

        if not self.nearest or far(costs) < far(self.nearest):
            self.nearest = costs

    def _nearest_so_far(self) -> str:
        found = ", ".join(f"{name} {value:,.4g}" for name, value in self.nearest.items())
        return f"the nearest has {found}; allowed: {limits_text(self.limits)}"


def limits_text(limits: Mapping[str, float]) -> str:
    """Limits in a line."""
    return ", ".join(f"{name} {value:,.4g}" for name, value in limits.items()) or "none"


def costs_text(one: Found) -> str:
    """What an architecture costs, in a line."""
    return ", ".join(f"{one.costs[name]:,.4g} {unit}" for name, unit in LIMITS.items() if name in one.costs)
