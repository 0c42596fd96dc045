"""What a search does next, as a function of the results that are there: whoever follows them decides the same.

Trial k is proposed from the results of the trials before k - concurrent + 1, in their order, and from no others, even
where more are known. Results may come in any order, from any number of processes.

A proposal outside of the limits is repaired where the space is ordered by cost (`Space.cheapest`): ever cheaper
networks, in an order that the proposal decides, up to the first that is inside. Where it is not, the searcher proposes
another one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from gossamer.core.metric import Metric
from gossamer.core.progress import Progress
from gossamer.errors import BadInput
from gossamer.nas.limit_repair import LimitRepair
from gossamer.nas.plan import LIMITS, SearchPlan
from gossamer.nas.result import Found
from gossamer.nas.searchers import Searcher
from gossamer.nas.space import Genes
from gossamer.nas.trials import TrialStep, within

SAID = 10  # proposals outside of the limits, after which a message says so
OUTSIDE = 300  # proposals in a row that are outside of the limits, before the search gives up


@dataclass
class _Slot:
    """One trial: what is trained, and what was measured before and is not trained."""

    step: TrialStep
    measured: Mapping[str, Any]
    aside: list[Found]
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
        self.aside: list[Found] = []  # measured and not trained, of the trial that is being proposed
        self.rows: dict[Genes, Mapping[str, Any]] = {}  # measured and inside, of the same
        self.asked: TrialStep | None = None  # a proposal whose costs are not known yet
        self.repair: LimitRepair | None = None  # of a proposal that is outside
        self.over = False
        self.prepared: Mapping[str, Any] | None = None  # what came of the supernet, where the searcher has one
        self.nearest: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """Whether all trials are done."""
        return (self.over or len(self.slots) == self.plan.trials) and len(self.told) == len(self.slots)

    @property
    def found(self) -> list[Found]:
        """Everything that was looked at, in the order of the proposals."""
        return [one for slot, trained in zip(self.slots, self.told) for one in (*slot.aside, trained)]

    @property
    def supernet(self) -> TrialStep | None:
        """What has to be trained before the first proposal; None where nothing is."""
        order = self.searcher.order
        return None if order is None else TrialStep("supernet", "supernet", (), self.epochs, order)

    def ready(self) -> list[TrialStep]:
        """Follow the results as far as they are there; the steps that can be done now, the first ones first."""
        while self._follow():
            pass
        steps = [self.asked] if self.asked is not None else []
        if self.supernet is not None and self.prepared is None:
            steps.append(self.supernet)
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
        if self.supernet is not None and self.prepared is None:
            self.prepared = self.results(self.supernet.key)
            if self.prepared is not None:
                self.searcher.prepare(self._of(self.supernet, self.prepared))
            return self.prepared is not None
        if self.asked is not None:
            return self._judge(self.asked)
        number = len(self.slots)
        if self.over or number == self.plan.trials:
            self._tell(number)
            return False
        if not self._tell(number - self.plan.concurrent + 1):
            return False
        if not self.aside and not self._time_is_left():
            self.progress.say(f"the time ends after {number} trainings")
            self.over = True
            return True
        proposal = self.searcher.ask()
        self._ask(proposal.genes, max(1, round(self.epochs * proposal.share)))
        return True

    def _ask(self, genes: Genes, epochs: int) -> None:
        """Wait for the costs of an architecture."""
        key = f"{len(self.slots):05d}-{len(self.aside) + len(self.rows):03d}-costs"
        self.asked = TrialStep(key, "measure", genes, epochs)

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
        self.asked, costs = None, self._of(asked, row)["costs"]
        inside = within(costs, self.limits)
        if inside:
            self.rows[asked.genes] = row
        else:
            self._put_outside(asked, row)
        if self.repair is not None:
            self.repair.tell(inside)
        elif inside:
            self._train(asked)
            return True
        else:
            self.repair = LimitRepair(list(self.searcher.space.ever_cheaper(asked.genes, Random(repr(asked.genes)))))
        self._repair(asked.epochs)
        return True

    def _repair(self, epochs: int) -> None:
        """The next step of a repair, or what came of it."""
        assert self.repair is not None
        if (genes := self.repair.asked) is not None:
            self._ask(genes, epochs)
            return
        found, self.repair = self.repair.found, None
        if found is not None:
            self.searcher.seen.add(found)
            self._train(TrialStep("", "measure", found, epochs))
        elif self.searcher.space.cheapest is not None:
            raise BadInput(f"no architecture of this space is within the limits; {self._nearest_so_far()}")

    def _train(self, chosen: TrialStep) -> None:
        """The next trial: an architecture that is within the limits."""
        step = TrialStep(f"{len(self.slots):05d}-score", "train", chosen.genes, chosen.epochs)
        row = self.rows.pop(chosen.genes)
        spared = [self._untrained(genes, other) for genes, other in self.rows.items()]
        self.slots.append(_Slot(step, row, [*self.aside, *spared]))
        self.aside, self.rows = [], {}

    def _put_outside(self, asked: TrialStep, row: Mapping[str, Any]) -> None:
        """A proposal that is outside of the limits."""
        one = self._untrained(asked.genes, row)
        self.aside.append(one)
        self._note_nearest(one.costs)
        self.searcher.tell(one)
        if len(self.aside) == OUTSIDE:
            raise BadInput(f"{OUTSIDE} architectures in a row are outside of the limits; {self._nearest_so_far()}")
        if len(self.aside) % SAID == 0:
            number = len(self.slots) + 1
            self.progress.say(f"trial {number}: {len(self.aside)} outside of the limits; {self._nearest_so_far()}")

    @staticmethod
    def _untrained(genes: Genes, row: Mapping[str, Any]) -> Found:
        return Found(genes=genes, epochs=0, value=None, costs=row["costs"], seconds=row["seconds"], words=row["words"])

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
        value = "failed" if one.value is None else self.metric.text(self.metric.merit(one.value))
        self.progress.say(f"trial {number + 1}: {value}, {costs_text(one)}: {one.words}")

    def _time_is_left(self) -> bool:
        """Whether another trial and the final training fit into the budget of time, of all processes together."""
        if self.minutes is None or not self.told:
            return True
        epoch = sum(one.seconds for one in self.told) / max(sum(one.epochs for one in self.told), 1)
        running = sum(slot.step.epochs for slot in self.slots[len(self.told) :])
        needed = epoch * (running + self.epochs + self.final_epochs)
        return bool(self.seconds + needed <= 60 * self.minutes)

    @property
    def seconds(self) -> float:
        """That everything took so far, of all processes together."""
        supernet = self.prepared["seconds"] if self.prepared is not None else 0.0
        return float(supernet + sum(one.seconds for one in self.found))

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
