"""A goal of time, multiply-adds or parameters: the fastest network within the budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gossamer.core.batches import unaugmented
from gossamer.core.goal import FROM_MODULES
from gossamer.core.record import Curve, Edit, Record, Trial, to_json
from gossamer.jobs import exporting
from gossamer.jobs.attempts import Attempts, Delivery, timed
from gossamer.jobs.schedule import JobSchedule, planned_share
from gossamer.jobs.stages import ATTEMPTS, PRICING
from gossamer.jobs.trained_alternatives import binary_steps, sparse_steps, trained_otherwise, within_reach
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.modules.cost import total_macs
from gossamer.search.axes import Steps
from gossamer.search.binary_advice import binarized
from gossamer.search.bisection import Point, bracket, near_miss, next_cost_ratio, within_budget
from gossamer.search.checkpoint_store import take_steps
from gossamer.search.cost_model import SPOILED, CostEstimate, CostModel
from gossamer.search.exports import Exports
from gossamer.search.plan import Planner, shape_key, shape_of
from gossamer.search.tournament import trial_row
from gossamer.train import recalibrate
from gossamer.train.distillation import kept_outputs
from gossamer.train.loop import find_rate
from gossamer.train.train_mode import teacher_terms

TRAININGS = 6  # whole recoveries of one job, at most
HARDER = 1.05  # times: at least so much further is cut when a result just misses, else the same shape is found again
MOST_OUTPUTS = 2**28  # bytes of a teacher's outputs that are kept
SHORT = 0.5  # times the usual rate, in these: 900 steps ended within 0.1 points of one another at 0.3 to 1 times it


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A network that was trained, deployed and judged. cost_ratio: what it costs over what the goal allows. drop:
    points lost on validation."""

    name: str
    steps: Steps
    cost_ratio: float
    drop: float
    edits: list[Edit]


# Of the usual planner, the minutes of a search and the seconds of a training step: what plans in its place.
PlannerOf = Callable[[Planner, float, float], Planner]


class ShapeSearch:
    """Plans for the goal, takes the steps, and where that costs too much steps back: between the fastest network within
    the budget and the slowest one outside, until the budget is spent. What just misses the budget is trained on.

    All decisions are by validation data, from numbers that are in the store. search: minutes for a search of the
    neighbourhood instead of the tournament, which is planned by what `planner_of` gives; None: the tournament.
    """

    def __init__(
        self,
        attempts: Attempts,
        recover: RecoveryDistillation,
        search: float | None = None,
        planner_of: PlannerOf | None = None,
    ) -> None:
        self.attempts, self.recover, self.goal, self.context = attempts, recover, attempts.goal, attempts.context
        original, task, store = attempts.original, attempts.task, attempts.store
        self.schedule = JobSchedule(
            original=original,
            task=task,
            goal=self.goal,
            context=self.context,
            store=store,
            seconds=attempts.seconds,
            recover=recover,
        )
        attempts.stages.enter(PRICING)
        with timed(attempts.seconds, "plan"):
            self.cost_model, self.int8 = self._make_cost_model()
            self.whole: CostEstimate = self.cost_model(
                "original int8=True" if self.int8 else "original", lambda: original
            )
            self._keep_outputs()
            steps = self.schedule.first_steps()
        self.context.progress.say(self.schedule.estimate(TRAININGS, attempts.seconds["plan"] / 3, search))
        reference = attempts.reference.value
        self.margin = planned_share(self.goal, steps)
        about = self.cost_model, recover, reference, steps, self.margin, self.schedule.planning()
        self.planner = Planner(original, task, self.context, store, *about)
        if search is not None and planner_of is not None:
            step = self.schedule.seconds_per_step(total_macs(original, task.example_inputs))
            self.planner = planner_of(self.planner, search, step)
        self.tried: list[Attempt] = []
        self.bounds: list[Point] = []  # cost ratios for which there is no new shape
        self.trainings, self.planned = 0, 1.0  # the cost ratio that the attempt under way is planned for
        self.pushed = self.out_of_time = False
        self.gain = math.inf  # points that a longer recovery may bring, as far as that is known
        self.last: tuple[str, exporting.ExportedArtifacts] | None = None  # whose files are in the folder

    def _keep_outputs(self) -> None:
        """Ask the teacher once for what it says of the training samples, where trainings see these several times."""
        folder, teacher = self.attempts.folder / "work" / "teacher", self.context.teacher_or_original
        plain = unaugmented(self.attempts.task.train)
        if plain is None or teacher is None or not self.schedule.repeats():
            return
        if kept_outputs(teacher, plain, folder, self.context.progress, most=MOST_OUTPUTS):
            self.context = replace(self.context, cache=folder)
            self.schedule = replace(self.schedule, remembered=True)

    def search(self) -> Delivery:
        """The fastest network within the budget."""
        relaxation: float | None = 1.0
        while relaxation is not None and self.trainings < TRAININGS and not self.out_of_time and self._time_is_left():
            self._approach(relaxation)
            relaxation = self._next(relaxation)
        best = self._best()
        if best is None and () not in [attempt.steps for attempt in self.tried]:
            best = self._attempt((), "deployment alone")
            best = best if best and within_budget(best.drop, self.goal.max_drop) else None
        if best is None:
            return self.attempts.untouched()
        return Delivery(steps=best.steps, result=self._exported(best), edits=best.edits)

    def _best(self) -> Attempt | None:
        inside = [attempt for attempt in self.tried if within_budget(attempt.drop, self.goal.max_drop)]
        return min(inside, key=lambda attempt: attempt.cost_ratio, default=None)

    def _approach(self, relaxation: float) -> None:
        """Plan for the goal with `relaxation` times what it allows, and try that. A near miss is trained on."""
        steps: Steps | None = ()
        self.planned = self.margin * relaxation
        if self.whole.worst_ratio > self.margin * relaxation:
            with timed(self.attempts.seconds, "plan"):
                steps = self._plan(relaxation)
        self.attempts.stages.enter(ATTEMPTS)
        same = [one.drop for one in self.tried if steps is not None and shape_of(one.steps) == shape_of(steps)]
        if steps is None or same:
            if steps is None:
                self.context.progress.say(f"no shape reaches the goal with {relaxation:.2f} times what it allows")
            over = same and not within_budget(min(same), self.goal.max_drop)
            self.bounds.append(Point(relaxation, min(same) if over else math.inf))
            return
        found = self._recovered(steps) if steps else self._attempt((), self._next_name)
        self.trainings += 1
        if found is not None and steps and self.trainings < TRAININGS:
            self._train_on(found)
            if len(self.tried) == 1:
                self._train_otherwise(found)

    @property
    def _next_name(self) -> str:
        return f"attempt {self.trainings + 1}"

    def _recovered(self, steps: Steps) -> Attempt | None:
        """The attempt with these steps and a recovery after them; None where that fails or there is no time for it."""
        name = self._next_name
        recovery = self.schedule.recovery(name, self.planner.macs(steps))
        if recovery is None:
            self.out_of_time = True
            competed = shape_of(steps) != steps  # its short training may have been enough
            so = ", it is judged as the tournament left it" if competed else ""
            self.context.progress.say(f"{name}: too little time is left to train it{so}")
            return self._attempt(steps, name) if competed else None
        if not recovery.trains:  # the tournament, where there was one, has put it behind the shape already
            return self._attempt((*shape_of(steps), recovery), name)
        if recovery.lr is None and not self.schedule.searches_rate(recovery):
            recovery = replace(recovery, lr=SHORT * self.planner.tournament.usual_lr)
        elif recovery.lr is None:
            lr = self.attempts.trials(name, shape_key(steps), self._rate, steps, recovery)
            if lr is None:
                return None
            rest = self.schedule.recovery(f"{name}, its rate known", self.planner.macs(steps))  # the trials took time
            recovery = replace(rest or recovery, lr=lr)
        return self._attempt((*steps, recovery), name)

    def _rate(self, steps: Steps, recovery: RecoveryDistillation) -> float:
        """The learning rate of a recovery, looked for once for every kind of shape."""

        def look() -> float:
            task, scratch = recovery.data(self.attempts.task), self.context.fork()
            model = take_steps(self.attempts.original, steps, self.attempts.task, scratch, self.attempts.store)
            recalibrate(model, task.calibration)
            distillation_options = {"temperature": recovery.temperature, "alpha": recovery.alpha}
            loss_terms = (
                teacher_terms(teacher, model, task, self.context, **distillation_options)
                if (teacher := self.context.teacher_or_original)
                else []
            )
            return find_rate(
                model, task, recovery.training(task), self.context, loss_terms=loss_terms, label=recovery.name()
            )

        kind = next(iter(self.planner.won), "any shape")
        with timed(self.attempts.seconds, "learning rate"):
            return float(self.attempts.store.get_or_compute(f"learning rate of {kind}", look))

    def _train_on(self, found: Attempt) -> None:
        """A longer recovery of a near miss, unless one before has shown that it brings less."""
        over = found.drop - self.goal.max_drop
        if not self.recover.trains or not near_miss(found.drop, self.goal.max_drop) or over > self.gain:
            return
        self.context.progress.say(f"{found.name} just misses the budget: training it on")
        longer = self._recovered(found.steps)
        self.trainings += 1
        self.gain = found.drop - longer.drop if longer else 0.0

    def _train_otherwise(self, found: Attempt) -> None:
        """Another training in about as many epochs, where the first cut has lost too much and there is time for this
        and one more."""
        recovery, name = found.steps[-1], self._next_name
        lost = not within_budget(found.drop, self.goal.max_drop)
        if self.goal.time_budget is None or not lost or not isinstance(recovery, RecoveryDistillation):
            return
        steps = self._alternative(found, recovery) if recovery.trains else ()
        if not steps or self.schedule.left(name) < 2 * self.schedule.seconds_of(recovery):
            return
        self.context.progress.say(f"{found.name} lost too much: {steps[-1].name()} in the place of the cut")
        self._attempt(steps, name)
        self.trainings += 1

    def _alternative(self, found: Attempt, recovery: RecoveryDistillation) -> Steps:
        """Binary layers where they meet a goal of time on the runtime that has kernels for them, before any training;
        else channels that are emptied until the network costs as much as the cut one."""
        if self.goal.runtime == "binary" and self.goal.time_gains:
            bits, name = binarized(self.attempts.original), "binary layers"
            estimate = self.attempts.trials(name, name, self.cost_model, name, lambda: bits.model)
            if bits.layers and estimate is not None and estimate.worst_ratio <= 1:
                return binary_steps(recovery, self.attempts.task)
        if not within_reach(found.drop, self.goal.max_drop, self.planner.won, self.goal):
            return ()
        return sparse_steps(recovery, self.planner.macs(shape_of(found.steps)), self.goal, self.attempts.task)

    def _plan(self, relaxation: float) -> Steps | None:
        """The kind of shape that won the tournament of the goal is taken for an easier one, too."""
        if self.tried and self.planner.won:
            steps = self.planner.plan(self.whole, relaxation=relaxation, kinds=tuple(self.planner.won))
            if steps is not None:
                return steps
        return self.planner.plan(self.whole, relaxation=relaxation)

    def _next(self, relaxation: float) -> float | None:
        """How far the next attempt may exceed the goal; None where there is nothing more to try."""
        budget = self.goal.max_drop
        points = [*(Point(attempt.cost_ratio, attempt.drop) for attempt in self.tried), *self.bounds]
        if not points:
            return relaxation  # what was planned has failed: there may be another shape
        uncut = next((one.cost_ratio for one in self.tried if not one.steps), self.whole.worst_ratio)
        inside, outside = bracket(points, Point(uncut, 0.0), budget)
        if inside.cost_ratio <= 1:
            return None
        if outside is None:
            return self._harder()
        cost_ratio = next_cost_ratio(inside, outside, budget)
        if cost_ratio is None:
            return None
        self.context.progress.say(
            f"stepping back to {cost_ratio:.2f} times what the goal allows: {inside.drop:.2f} points are lost at "
            f"{inside.cost_ratio:.2f}, {outside.drop:.2f} at {outside.cost_ratio:.2f}"
        )
        return cost_ratio / self.margin  # the plan keeps that much room

    def _harder(self) -> float | None:
        """Once more, cutting further, because what was within the budget turned out slower than it was planned."""
        best = self._best()
        if self.pushed or best is None:
            return None
        cost_ratio, self.pushed = best.cost_ratio, True
        self.context.progress.say(f"the result costs {cost_ratio:.2f} times what the goal allows: cutting further")
        if cost_ratio > SPOILED or not best.steps:
            self.cost_model.measure_again()
            self.whole = self.cost_model(
                "original int8=True" if self.int8 else "original", lambda: self.attempts.original
            )
        return 1 / min(max(cost_ratio, HARDER), SPOILED)

    def _time_is_left(self) -> bool:
        """Whether another attempt ends within the goal's budget of time: a short training where the time says how long
        it is, else one as long as the mean so far."""
        if self.goal.time_budget is None or not self.trainings:
            return True
        if self.schedule.by_time:
            # What is tried next is no smaller than what lost too much.
            cuts = [shape_of(one.steps) for one in self.tried if one.steps and not trained_otherwise(one.steps)]
            sizes = [self.planner.macs(steps) for steps in cuts]
            if not sizes or self.schedule.time_for(f"a plan after {self.trainings}", min(sizes)):
                return True
            self.context.progress.say("too little time is left for another training")
            return False
        left = self.schedule.left(f"attempt {self.trainings + 1}")
        if left < self.schedule.spent() / self.trainings:
            self.context.progress.say(f"{left / 60:.1f} minutes are left, too few for another attempt")
            return False
        return True

    def _attempt(self, steps: Steps, name: str) -> Attempt | None:
        """The network after the steps, trained, deployed and judged; None where any of that fails."""
        trained_on = any(shape_of(one.steps) == shape_of(steps) for one in self.tried)
        key = f"{name}: {steps!r}" if trained_on or not steps else shape_key(steps)
        remember = partial(self.attempts.store.get_or_compute, f"outcome of {name}")
        known: Any = self.attempts.trials(name, key, remember, partial(self._outcome, steps, name))
        if known is None:
            return None
        self.context.log.trials.extend(Trial(**row) for row in known["states"])
        self.context.log.curves.extend(Curve(**row | {"name": f"{name}, {row['name']}"}) for row in known["curves"])
        edits = [*(Edit.parse(row) for row in known["edits"]), *(self.planner.left(steps) if steps else ())]
        found = Attempt(name=name, steps=steps, cost_ratio=known["cost_ratio"], drop=known["drop"], edits=edits)
        self.tried.append(found)
        return found

    def _outcome(self, steps: Steps, name: str) -> dict[str, Any]:
        """What an attempt gives, as JSON values. Its cost is that of the precision which would be deployed: where the
        budget was lost in float32 already and int8 was not made, the estimate in int8 counts."""
        own = self.context.fork()
        self.last = None
        model = self.attempts.take(steps, name, own)
        result = self.attempts.deploy(model, name, int8=self.int8, compact=False)
        self.last = (name, result)
        with timed(self.attempts.seconds, "estimates"):
            alike = (result.precision == "int8") == self.int8
            shipped = partial(self.cost_model.shipped, result.deployed, result.model, result.precision)
            estimate = shipped(planned=self.planned) if alike else self.cost_model(name, lambda: result.model)
        drop = result.drop.points
        trial = trial_row(
            name,
            estimate,
            result.scores.shown,
            self.goal.runtime,
            drop=drop,
            accepted=within_budget(drop, self.goal.max_drop),
        )
        rows = {"edits": to_json(own.log.edits), "states": to_json([trial]), "curves": to_json(own.log.curves)}
        return {"cost_ratio": estimate.worst_ratio, "drop": drop, **rows}

    def _exported(self, attempt: Attempt) -> exporting.ExportedArtifacts:
        """The attempt as it is deployed, all its files in the folder."""
        if self.last is not None and self.last[0] == attempt.name:
            with timed(self.attempts.seconds, f"deploy {attempt.name}"):
                where = self.attempts.task, self.context, self.attempts.folder
                return exporting.with_compact(self.last[1], *where)
        scratch = self.context.fork()
        model = self.attempts.take(attempt.steps, attempt.name, scratch)
        return self.attempts.deploy(model, attempt.name, int8=self.int8)

    def _make_cost_model(self) -> tuple[CostModel, bool]:
        """A cost_model in the precision that is faster here, or smaller where the goal does not ask for time."""
        exports = Exports(self.attempts.task)
        plain = self._priced(exports, int8=False)
        if self.goal.runtime in FROM_MODULES:
            return plain, False  # these run float32
        small, original = self._priced(exports, int8=True), self.attempts.original
        before = plain("original", lambda: original)
        key = "original int8=True"
        after = self.attempts.trials("int8", key, small, key, lambda: original)
        if after is not None and after.worst_ratio <= before.worst_ratio:
            return small, True
        self.context.progress.say("int8 is not faster than float32 here: it is left out")
        return plain, False

    def _priced(self, exports: Exports, *, int8: bool) -> CostModel:
        attempts, folder = self.attempts, self.attempts.folder / "work"
        networks = attempts.original, attempts.task, self.goal, attempts.store
        return CostModel(*networks, folder, int8=int8, exports=exports)

    def why(self, rows: Sequence[Record]) -> list[str]:
        """Why the goal was missed, and what is reachable: from the attempts and the measured rows."""
        return [*self._reached(), *exporting.other_runtimes(self.goal, list(rows)), *self._limits()]

    def _reached(self) -> list[str]:
        """What is reachable at which loss."""
        points = sorted(self.tried, key=lambda attempt: -attempt.cost_ratio)
        listed = [f"{self._cost(one.cost_ratio)} at {one.drop:.2f} points" for one in points]
        return [f"tried, with what was lost on validation: {'; '.join(listed)}"] if listed else []

    def _cost(self, cost_ratio: float) -> str:
        """A cost ratio in the unit of the goal, where it has one."""
        [gain, *others] = self.goal.shape_gains
        asked = self.goal.shape_gains[gain]
        if others:
            return f"{cost_ratio:.2f} times what the goal allows"
        if gain == "speedup":
            return f"{asked / cost_ratio:.2f}x"
        return f"{cost_ratio * asked:.2f} ms" if gain == "latency_ms" else f"{cost_ratio * asked:,.0f} {gain}"

    def _limits(self) -> list[str]:
        """What the precision alone gains here."""
        if not self.goal.time_gains or self.whole.speedup is None:
            return []
        runtime = self.goal.runtime
        if not self.int8:
            return [f"{runtime} runs this network no faster in int8 here; all has to come from its shape"]
        gained = f"int8 alone runs {self.whole.speedup:.2f} times as fast as float32 on {runtime} here"
        return [f"{gained}; the rest has to come from a smaller network"]
