"""A goal of time, multiply-adds or parameters: the fastest network within the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gossamer.core.record import Curve, Edit, Record, Trial, to_json
from gossamer.jobs import exporting
from gossamer.jobs.attempts import Attempts, timed
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.search.axes import Steps
from gossamer.search.bisection import Point, bracket, fits, near_miss, next_need
from gossamer.search.cost_model import AIM, CostEstimate, CostModel
from gossamer.search.plan import Planner, shape_key, state

TRAININGS = 6  # whole recoveries of one job, at most
HARDER = 1.05  # times: at least so much further is cut when a result just misses, else the same shape is found again
SPOILED = 1.2  # times the need that was planned for: more, and the measurements that it was planned by are wrong


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A network that was trained, deployed and judged. tag: under which its steps are in the journal. need: what it
    costs over what the goal allows. drop: points lost on validation."""

    name: str
    tag: str
    steps: Steps
    need: float
    drop: float
    edits: list[Edit]


class ShapeSearch:
    """Plans for the goal, takes the steps, and where that costs too much steps back: between the fastest network within
    the budget and the slowest one outside, until the budget is spent. What just misses the budget is trained on.

    All decisions are by validation data, from numbers that are in the journal.
    """

    def __init__(self, attempts: Attempts, recover: RecoveryDistillation) -> None:
        self.attempts, self.recover, self.goal, self.context = attempts, recover, attempts.goal, attempts.context
        self.pricer, self.int8 = self._pricer()
        self.whole: CostEstimate = self.pricer("original", lambda: attempts.original)
        reference = 100 * float(attempts.reference.mean())
        self.planner = Planner(
            attempts.original, attempts.task, self.context, attempts.journal, self.pricer, recover, reference
        )
        self.tried: list[Attempt] = []
        self.bounds: list[Point] = []  # needs for which there is no new shape
        self.trainings = 0
        self.pushed = False
        self.gain = math.inf  # points that a longer recovery may bring, as far as that is known
        self.last: tuple[str, exporting.ExportedArtifacts] | None = None  # whose files are in the folder

    def search(self) -> tuple[Steps, exporting.ExportedArtifacts]:
        """The steps to the fastest network within the budget, and that network, deployed."""
        ease: float | None = 1.0
        while ease is not None and self.trainings < TRAININGS and self._time_is_left():
            self._approach(ease)
            ease = self._next(ease)
        best = self._best()
        if best is None and () not in [attempt.steps for attempt in self.tried]:
            best = self._attempt((), "deployment alone")
            best = best if best and fits(best.drop, self.goal.max_drop) else None
        if best is None:
            self.context.log.edits[:] = self.attempts.trials.rows()
            return (), self.attempts.untouched()
        self.context.log.edits[:] = best.edits
        return best.steps, self._delivered(best)

    def _best(self) -> Attempt | None:
        inside = [attempt for attempt in self.tried if fits(attempt.drop, self.goal.max_drop)]
        return min(inside, key=lambda attempt: attempt.need, default=None)

    def _approach(self, ease: float) -> None:
        """Plan for the goal with `ease` times what it allows, and try that. A near miss is trained on."""
        steps: Steps | None = ()
        if self.whole.worst > AIM * ease:
            with timed(self.attempts.seconds, "plan"):
                steps = self._plan(ease)
        same = [one.drop for one in self.tried if one.steps in (steps, (*(steps or ()), self.recover))]
        if steps is None or same:
            if steps is None:
                self.context.progress.say(f"no shape reaches the goal with {ease:.2f} times what it allows")
            over = same and not fits(min(same), self.goal.max_drop)
            self.bounds.append(Point(ease, min(same) if over else math.inf))
            return
        found = self._attempt(steps, f"attempt {self.trainings + 1}")
        self.trainings += 1
        if found is not None and steps and self.trainings < TRAININGS:
            self._train_on(found)

    def _train_on(self, found: Attempt) -> None:
        """A longer recovery of a near miss, unless one before has shown that it brings less."""
        over = found.drop - self.goal.max_drop
        if not near_miss(found.drop, self.goal.max_drop) or over > self.gain:
            return
        self.context.progress.say(f"{found.name} just misses the budget: training it on")
        longer = self._attempt((*found.steps, self.recover), f"attempt {self.trainings + 1}", tag=found.tag)
        self.trainings += 1
        self.gain = found.drop - longer.drop if longer else 0.0

    def _plan(self, ease: float) -> Steps | None:
        """The kind of shape that won the race of the goal is taken for an easier one, too."""
        if self.tried and self.planner.won:
            steps = self.planner.plan(self.whole, ease=ease, kinds=tuple(self.planner.won))
            if steps is not None:
                return steps
        return self.planner.plan(self.whole, ease=ease)

    def _next(self, ease: float) -> float | None:
        """How far the next attempt may exceed the goal; None where there is nothing more to try."""
        budget = self.goal.max_drop
        points = [*(Point(attempt.need, attempt.drop) for attempt in self.tried), *self.bounds]
        if not points:
            return ease  # what was planned has failed: there may be another shape
        inside, outside = bracket(points, Point(self.whole.worst, 0.0), budget)
        if inside.need <= 1:
            return None
        if outside is None:
            return self._harder()
        need = next_need(inside, outside, budget)
        if need is None:
            return None
        self.context.progress.say(
            f"stepping back to {need:.2f} times what the goal allows: at {inside.need:.2f} {inside.drop:.2f} points "
            f"are lost, at {outside.need:.2f} {outside.drop:.2f}"
        )
        return need / AIM  # the plan keeps that much room

    def _harder(self) -> float | None:
        """Once more, cutting further, because what was within the budget turned out slower than it was planned."""
        best = self._best()
        if self.pushed or best is None or not best.steps:
            return None
        need, self.pushed = best.need, True
        self.context.progress.say(f"the result needs {need:.2f} times what the goal allows: cutting further")
        if need > SPOILED:
            self.pricer.measure_anew()
            self.whole = self.pricer("original", lambda: self.attempts.original)
        return 1 / min(max(need, HARDER), SPOILED)

    def _time_is_left(self) -> bool:
        """Whether another attempt, as long as the mean one so far, ends within the goal's budget of time."""
        if self.goal.time_budget is None or not self.trainings:
            return True
        spent = self.attempts.journal.remember(f"seconds before attempt {self.trainings + 1}", self._spent)
        left = 60 * self.goal.time_budget - spent
        if left < spent / self.trainings:
            self.context.progress.say(f"{left / 60:.1f} minutes are left, too few for another attempt")
            return False
        return True

    def _spent(self) -> float:
        return sum(self.attempts.seconds.values())

    def _attempt(self, steps: Steps, name: str, *, tag: str = "") -> Attempt | None:
        """The network after the steps, trained, deployed and judged; None where any of that fails. tag: of an attempt
        that began with the same steps."""
        key = f"{name}: {steps!r}" if tag or not steps else shape_key(steps[:-1])
        remember = partial(self.attempts.journal.remember, f"outcome of {name}")
        known: Any = self.attempts.trials(name, key, remember, partial(self._outcome, steps, name, tag or name))
        if known is None:
            return None
        self.context.log.trials.extend(Trial(**row) for row in known["states"])
        self.context.log.curves.extend(Curve(**row | {"name": f"{name}, {row['name']}"}) for row in known["curves"])
        edits = [*(Edit.parse(row) for row in known["edits"]), *(self.planner.left(steps) if steps else ())]
        found = Attempt(name=name, tag=tag or name, steps=steps, need=known["need"], drop=known["drop"], edits=edits)
        self.tried.append(found)
        return found

    def _outcome(self, steps: Steps, name: str, tag: str) -> dict[str, Any]:
        """What an attempt gives, as JSON values."""
        own = self.context.apart()
        self.last = None
        model = self.attempts.take(steps, tag, own)
        result = self.attempts.deploy(model, name, int8=self.int8)
        self.last = (name, result)
        quote = self.pricer(name, lambda: result.model)
        sizes = [need for gain, need in quote.needs.items() if gain not in self.goal.time_gains]
        need = max([self.pricer.check(result.deployed, result.model, result.precision), *sizes])
        top1, drop = 100 * float(result.scores.mean()), result.drop.points
        mark = state(name, quote, top1, self.pricer, drop=drop, accepted=fits(drop, self.goal.max_drop))
        rows = {"edits": to_json(own.log.edits), "states": to_json([mark]), "curves": to_json(own.log.curves)}
        return {"need": need, "drop": drop, **rows}

    def _delivered(self, attempt: Attempt) -> exporting.ExportedArtifacts:
        """The attempt as it is deployed, its files in the folder."""
        if self.last is not None and self.last[0] == attempt.name:
            return self.last[1]
        scratch = self.context.apart()
        model = self.attempts.take(attempt.steps, attempt.tag, scratch)
        return self.attempts.deploy(model, attempt.name, int8=self.int8)

    def _pricer(self) -> tuple[CostModel, bool]:
        """A pricer in the precision that is faster here, or smaller where the goal does not ask for time."""
        plain = self._priced(int8=False)
        if self.goal.runtime in ("torch", "torch.compile"):
            return plain, False  # these run float32
        small, original = self._priced(int8=True), self.attempts.original
        before = plain("original int8=False", lambda: original)
        key = "original int8=True"
        after = self.attempts.trials("int8", key, small, key, lambda: original)
        if after is not None and after.worst <= before.worst:
            return small, True
        self.context.progress.say("int8 is not faster than float32 here: it is left out")
        return plain, False

    def _priced(self, *, int8: bool) -> CostModel:
        attempts = self.attempts
        return CostModel(
            attempts.original, attempts.task, self.goal, attempts.journal, attempts.folder / "work", int8=int8
        )

    def why(self, rows: Sequence[Record]) -> list[str]:
        """Why the goal was missed, and what is reachable: from the attempts and the measured rows."""
        return [*self._reached(), *exporting.other_runtimes(self.goal, list(rows)), *self._limits()]

    def _reached(self) -> list[str]:
        """What is reachable at which loss."""
        points = sorted(self.tried, key=lambda attempt: -attempt.need)
        listed = [f"{self._cost(one.need)} at {one.drop:.2f} points" for one in points]
        return [f"tried, with what was lost on validation: {'; '.join(listed)}"] if listed else []

    def _cost(self, need: float) -> str:
        """A need in the unit of the goal, where it has one."""
        [gain, *others] = self.goal.shape_gains
        asked = self.goal.shape_gains[gain]
        if others:
            return f"{need:.2f} times what the goal allows"
        if gain == "speedup":
            return f"{asked / need:.2f}x"
        return f"{need * asked:.2f} ms" if gain == "latency_ms" else f"{need * asked:,.0f} {gain}"

    def _limits(self) -> list[str]:
        """What the precision alone gains here."""
        if not self.goal.time_gains or self.whole.speedup is None:
            return []
        runtime = self.goal.runtime
        if not self.int8:
            return [f"{runtime} runs this network no faster in int8 here; all has to come from its shape"]
        gained = f"int8 alone runs {self.whole.speedup:.2f} times as fast as float32 on {runtime} here"
        return [f"{gained}; the rest has to come from a smaller network"]
