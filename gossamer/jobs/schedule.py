"""How long the trainings of a job are where only its time is given: as many steps as fit, and at least some 400."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from time import monotonic as clock

from torch import nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.goal import Goal
from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.errors import Diverged
from gossamer.methods._training import AUGMENTED_FROM, LEAST_STEPS
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.modules.cost import total_macs
from gossamer.report.text import duration
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CAREFUL_MARGIN, SAFETY_MARGIN
from gossamer.train import Training, TrainingStep, fit
from gossamer.train.rate_search import has_few_data
from gossamer.train.train_mode import teacher_terms

FINISH = 0.18  # of the time: to measure the result and to write its files
DEPLOY = 0.04  # of the time: to export, quantize and judge one attempt
ENOUGH = 3 * LEAST_STEPS  # steps: few data are not gone through more often, however much time is left
FEWEST = LEAST_STEPS // 4  # steps: a shorter training is not worth an attempt
SHAPES = 20  # shapes of one plan, about
PLANNING = 0.25  # of the time: after it no further shapes are looked at
SEARCHED_FROM = 2000  # steps by time: shorter trainings cannot spare the 160 that trials of learning rates take
FEW_SEARCHED_FROM = 600  # the same of few data, where the usual rate can destroy what the network has learned elsewhere
TIMED = 8  # steps that are timed; the first two are not counted


def planned_share(goal: Goal, steps: int | None) -> float:
    """How much of what the goal allows a shape may cost. Times differ from one measurement to the next, and in a job
    too short for a second training nothing mends a network that turned out too slow.

    Args:
        goal: of the job.
        steps: of the first training, where the time says how long it is.

    Returns:
        The share, below 1.
    """
    return CAREFUL_MARGIN if goal.time_gains and steps is not None and steps < SEARCHED_FROM else SAFETY_MARGIN


@dataclass(frozen=True, kw_only=True)
class JobSchedule:
    """Divides the time of a job among its trainings. All that was measured is in the store, so that a job that goes
    on trains as long as it would have. seconds: of the parts of the job so far. remembered: whether the teacher's
    outputs are kept, so that short trainings do not run it."""

    original: nn.Module
    task: Task
    goal: Goal
    context: Context
    store: CheckpointStore
    seconds: dict[str, float]
    recover: RecoveryDistillation
    remembered: bool = False

    @property
    def by_time(self) -> bool:
        """Whether lengths follow from the time: where it is limited and nobody gave the epochs."""
        return self.goal.time_budget is not None and self.recover.epochs is None and self.recover.trains

    def spent(self) -> float:
        """Seconds of the job so far."""
        return sum(self.seconds.values())

    def left(self, moment: str) -> float:
        """Seconds that trainings may still take, as of a moment of this name."""
        total = 60 * (self.goal.time_budget or math.inf)
        spent: float = self.store.get_or_compute(f"seconds before {moment}", self.spent)
        return total * (1 - FINISH) - spent

    def planning(self) -> float:
        """Seconds in which shapes may be looked at."""
        return PLANNING * 60 * (self.goal.time_budget or math.inf)

    def recovery(self, name: str, macs: int) -> RecoveryDistillation | None:
        """The recovery of the attempt of this name; None where the time is too short for one. What a network learns in
        too short a training says little of it: the first has most of the time.

        Args:
            name: of the attempt.
            macs: multiply-adds of its network.

        Returns:
            As it was asked for, or with the steps that fit: two thirds of these where that leaves 400 for a second
            training, and no more than the usual epochs, or 1,200 steps where these are fewer.
        """
        if not self.by_time:
            return self.recover
        fits = self._steps_in(self._for_training(name), macs)
        if fits < FEWEST:
            return None
        first = fits * 2 // 3
        return replace(self.recover, steps=min(first if fits - first >= LEAST_STEPS else fits, self._most()))

    def searches_rate(self, recovery: RecoveryDistillation) -> bool:
        """Whether a recovery is long enough for trials of learning rates."""
        if recovery.steps is None:
            return True
        few = has_few_data(self.task.train, self.context.seed, recovery.steps)
        return recovery.steps >= (FEW_SEARCHED_FROM if few else SEARCHED_FROM)

    def first_steps(self) -> int | None:
        """About how many steps the first recovery will have, for the length of the tournament before it; None where
        epochs say it."""
        if not self.by_time:
            return None
        macs = total_macs(self.original, self.task.example_inputs)
        return max(min(self._steps_in(self.left("the plan") * 2 / 3, macs), self._most()), 1)

    def repeats(self) -> bool:
        """Whether the first recovery sees the same samples several times."""
        steps = self.first_steps()
        recover = self.recover if steps is None else replace(self.recover, steps=steps)
        return recover.passes(self.task) > 1 and recover.repeated(self.task) is not None

    def time_for(self, moment: str, macs: int) -> bool:
        """Whether a recovery of a network of so many multiply-adds would still fit."""
        return not self.by_time or self._steps_in(self._for_training(moment), macs) >= FEWEST

    def _most(self) -> int:
        """Steps of a training, however much time there is."""
        return max(self.recover.passes(self.task) * len(self.task.train), ENOUGH)

    def estimate(self, trainings: int, shape_seconds: float, search: float | None = None) -> str:
        """What will be tried and how long that takes, for the start of a job.

        Args:
            trainings: recoveries, at most.
            shape_seconds: to estimate the cost of one shape.
            search: minutes of a search of the neighbourhood; None: a tournament.

        Returns:
            One line.
        """
        if search is not None:
            return f"the neighbourhood is trained and searched for {duration(60 * search)}; the recoveries follow"
        macs = total_macs(self.original, self.task.example_inputs)
        steps = self.first_steps() or self.recover.passes(self.task) * len(self.task.train)
        count = max(1, min(SHAPES, round(self.planning() / max(shape_seconds, 1e-3)))) if self.by_time else SHAPES
        shapes = count * shape_seconds
        parts = [f"some {count} shapes are estimated ({duration(shapes)})", "those that meet the goal compete"]
        if not self.recover.trains:
            return f"estimate: about {duration(1.5 * shapes)}: {', '.join(parts)}; nothing is trained"
        one = steps * self.seconds_per_step(macs)
        parts.append(f"then up to {trainings} trainings of about {steps:,} steps ({duration(one)} each)")
        whole = (
            f"within {duration(60 * self.goal.time_budget)}"
            if self.by_time and self.goal.time_budget
            else (f"about {duration(shapes + 1.5 * one)} to {duration(shapes + (trainings + 0.5) * one)}")
        )
        return f"estimate: {whole}: {', '.join(parts)}"

    def _for_training(self, moment: str) -> float:
        return self.left(moment) - 60 * DEPLOY * (self.goal.time_budget or 0.0)

    def _steps_in(self, seconds: float, macs: int) -> int:
        """Steps of one training; long ones run the teacher, because they see augmented samples."""
        asked = int(seconds / self.seconds_per_step(macs))
        if not self.remembered:
            return max(asked, 0)
        short = AUGMENTED_FROM * len(self.task.train) - 1
        return max(asked, min(int(seconds / self.seconds_per_step(macs, taught=False)), short), 0)

    def seconds_per_step(self, macs: int, *, taught: bool = True) -> float:
        """Of the training of a network of so many multiply-adds, by those of the original: one run of the teacher, if
        it is asked, and three as long as one run of the student."""
        measured: float = self.store.get_or_compute("seconds per step", self._measured)
        whole = total_macs(self.original, self.task.example_inputs)
        return measured * (whole * taught + 3 * macs) / (4 * max(whole, 1))

    def seconds_of(self, recovery: RecoveryDistillation) -> float:
        """Of a training as long as this recovery, of the original: networks that are emptied are large at first."""
        steps = recovery.steps or recovery.passes(self.task) * len(self.task.train)
        return steps * self.seconds_per_step(total_macs(self.original, self.task.example_inputs))

    def _measured(self) -> float:
        """Seconds of one step in which the original learns from itself."""
        times = list[float]()
        context = self.context.fork(folder=None, devices=1, progress=Silent())
        student = RecoveryDistillation(steps=TIMED).data(self.task)
        training = Training(epochs=math.ceil(TIMED / len(student.train)), lr=1e-9, keep="last", evaluate_every=TIMED)
        model = copy_network(self.original)
        distillation_options = {"temperature": self.recover.temperature, "alpha": self.recover.alpha}
        loss_terms = teacher_terms(self.original, model, student, context, **distillation_options)

        def note(step: TrainingStep) -> None:
            times.append(clock())

        with suppress(Diverged):  # the training itself says so
            fit(model, replace(student, validation=[]), training, context, loss_terms=loss_terms, after_step=note)
        gaps = sorted(after - before for before, after in pairwise(times[1:]))
        return gaps[len(gaps) // 2] if gaps else 1.0
