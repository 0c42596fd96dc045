"""Plan by the neighbourhood search: sub-networks of a once-for-all network instead of a tournament of search axes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.record import Edit
from gossamer.core.task import Task
from gossamer.errors import NoEffect
from gossamer.measure import evaluate
from gossamer.methods._training import Limited
from gossamer.methods.distill.once_for_all import OnceForAll
from gossamer.nas.neighbourhood import Condition, NeighbourSpace, Within, neighbourhood
from gossamer.nas.result import Found
from gossamer.nas.searchers import Evolution
from gossamer.nas.space import Genes
from gossamer.search.axes import Steps
from gossamer.search.checkpoint_store import take_steps
from gossamer.search.cost_model import CostEstimate
from gossamer.search.plan import Planner, shape_key
from gossamer.search.tournament import trial_row
from gossamer.train import recalibrate

TRAINING = 0.6  # of the time: to train the large network; the rest is for the search
AGAIN = 0.25  # of the time of the first search: for each later one, which knows the weights already
LEAST_STEPS, MOST_STEPS = 40, 40_000  # of the training
STEP_COST = 2.2  # of a step, in steps of the original: the whole network, the smallest one and two in between
SAMPLES = 2000  # validation samples that sub-networks are compared on; the best few, on all of them
BATCHES = 8  # of calibration data, for the batch norms of a sub-network that is compared
FINALISTS = 3
REPEATS = 30  # proposals of sub-networks that were tried before, after which the search ends
LR = 0.5  # times the usual rate: the network is trained already


@dataclass(frozen=True)
class NeighbourhoodPlanner(Planner):
    """Trains the original as a once-for-all network, once for the job, and searches the sub-network that scores best
    within the goal by regularized evolution. Costs are measured as in every plan, scores are those of the shared
    weights on validation data. Everything is in the store, so a job that goes on decides the same.

    minutes: for the training and the first search together. seconds_per_step: of a training of the original.
    """

    minutes: float = 60.0
    seconds_per_step: float = 1.0

    @classmethod
    def of(cls, planner: Planner, minutes: float, seconds_per_step: float) -> "NeighbourhoodPlanner":
        """What plans in the place of another planner."""
        about = {field.name: getattr(planner, field.name) for field in fields(planner)}
        return cls(**about, minutes=minutes, seconds_per_step=seconds_per_step)

    def plan(self, whole: CostEstimate, *, relaxation: float = 1.0, kinds: Iterable[str] = ()) -> Steps | None:
        """The steps to the best sub-network that was found, or None where none meets the goal. kinds: says nothing."""
        limit = self.margin * relaxation
        try:
            search = NeighbourSearch(self, whole, limit)
        except NoEffect as error:
            self.context.progress.say(f"no sub-networks: {error}")
            return None
        genes = search.best()
        if genes is None:
            return None
        self.won.clear()
        self.won.add("neighbourhood")
        return self.steps_of(genes)

    def left(self, steps: Any) -> list[Edit]:
        """What failed on the way."""
        return self.trials.rows()

    def steps_of(self, genes: Genes) -> Steps:
        """The training and the cuts."""
        return (self.training, *self.space.steps(genes))

    @cached_property
    def training(self) -> OnceForAll:
        """Of the large network, as long as the time allows."""
        fits = 60 * self.minutes * TRAINING / (STEP_COST * self.seconds_per_step)
        steps = round(min(max(fits, LEAST_STEPS), MOST_STEPS))
        return OnceForAll(steps=steps, lr=LR * self.tournament.usual_lr, round_to=self._multiple)

    @cached_property
    def space(self) -> NeighbourSpace:
        """Of the trained network."""
        self.context.progress.say(f"training a once-for-all network for {self.training.steps:,} steps")
        model = take_steps(self.original, (self.training,), self.task, self.context.fork(), self.store)
        return neighbourhood(model, self.task, round_to=self._multiple)

    @cached_property
    def small_task(self) -> Task:
        """The task with fewer validation samples."""
        task = self.task
        inputs, _ = inputs_and_target(next(iter(task.validation)))
        batches = max(1, round(SAMPLES / len(inputs[0])))
        return replace(
            task, validation=Limited(task.validation, batches), calibration=Limited(task.calibration, BATCHES)
        )

    def estimate(self, genes: Genes) -> CostEstimate | None:
        """What a sub-network costs; None where it cannot be deployed."""
        steps = self.steps_of(genes)

        def measure() -> CostEstimate:
            return self.cost_model(repr(steps), partial(self._checked, genes))

        return self.trials("a sub-network", f"measuring {steps!r}", measure)

    def _checked(self, genes: Genes) -> nn.Module:
        model = self.space.build(genes)
        self.invariant.check(model)
        return model

    def value(self, genes: Genes, task: Task) -> float:
        """The metric's value of a sub-network, its batch norms estimated again."""
        model = self.space.build(genes)
        recalibrate(model, task.calibration)
        return evaluate(model, task).value


class NeighbourSearch:
    """One search for the best sub-network within a limit of cost."""

    def __init__(self, planner: NeighbourhoodPlanner, whole: CostEstimate, limit: float) -> None:
        self.planner, self.limit, self.space = planner, limit, planner.space
        self.costs = Condition(self.space, planner.cost_model.layer_costs(), whole.worst_ratio, limit)
        within = Within(self.space, self.costs, self.space.cheapest)
        self.searcher = Evolution(within, planner.context.seed)
        self.found: list[Found] = []

    def best(self) -> Genes | None:
        """The best of the few that score best on some samples, by all validation samples."""
        planner, metric = self.planner, self.planner.task.metric
        number = self._search()
        usable = [one for one in self.found if one.value is not None and not self._failed(one.genes)]
        inside = sorted(usable, key=lambda one: -(one.value or 0.0))
        planner.context.progress.say(
            f"neighbourhood: {number} sub-networks tried, {len(inside)} within {self.limit:.2f} times the goal"
        )
        scored = {genes: self._whole_value(genes) for genes in list(dict.fromkeys(o.genes for o in inside))[:FINALISTS]}
        for genes, value in scored.items():
            text = f"{metric.name} {metric.text(value)} on validation, without training"
            planner.context.progress.say(f"{self.space.words(genes)}: {text}")
        found = max(scored, key=lambda genes: metric.merit(scored[genes]), default=None)
        if found is not None and (cost := planner.estimate(found)) is not None:
            row = trial_row("neighbourhood", cost, metric.shown(scored[found]), planner.cost_model.goal.runtime)
            planner.context.log.trials.append(replace(row, note="shared weights, without training"))
        return found

    def _search(self) -> int:
        """Try sub-networks until the time ends, and one is within the limit or a whole population is not; how many."""
        store, name = self.planner.store, f"neighbourhood search, limit {self.limit:.4f}"
        known = [key for key in store.results if key.startswith("neighbourhood search") and ", trial " in key]
        share = AGAIN if known else 1.0
        seconds = 60 * self.planner.minutes * (1 - TRAINING) * share
        plan: Any = store.get_or_compute(name, lambda: {"seconds": seconds, "known": known})
        for key in plan["known"]:
            self._note(store.results[key], earlier=True)
        spent, number, again = 0.0, 0, 0
        while (spent < plan["seconds"] or not any(one.trained for one in self.found)) and again < REPEATS:
            genes = self.searcher.ask().genes
            if any(one.genes == genes for one in self.found):
                again += 1
                continue
            number += 1
            with self.planner.context.progress.busy(f"sub-network {number}"):
                row: Any = store.get_or_compute(f"{name}, trial {number}", partial(self._tried, genes))
            spent += row["seconds"]
            self._note(row)
            if number == self.searcher.size and not any(one.trained for one in self.found):
                break  # nothing of a whole population is within the limit
        return number

    def _tried(self, genes: Genes) -> dict[str, Any]:
        start, value = time.monotonic(), None
        cost = self.planner.estimate(genes)
        ratio = cost.worst_ratio if cost is not None else float("inf")
        if cost is not None and ratio <= self.limit:
            key, small = f"scoring {self.planner.steps_of(genes)!r}", self.planner.small_task
            scored = self.planner.trials("a sub-network", key, self.planner.value, genes, small)
            value = self.planner.task.metric.merit(scored) if scored is not None else None
        seconds = time.monotonic() - start
        costs = {"cost_ratio": ratio} if cost is not None else {}
        return {"genes": genes, "epochs": int(value is not None), "value": value, "costs": costs, "seconds": seconds}

    def _failed(self, genes: Genes) -> bool:
        """Whether a training or the deployment of this sub-network has failed."""
        return self.planner.trials.failed(shape_key(self.planner.steps_of(genes)))

    def _note(self, row: dict[str, Any], *, earlier: bool = False) -> None:
        """Take a result into account; of an earlier search, what is within the limit of this one."""
        one = Found(**{**row, "genes": tuple(row["genes"])})
        ratio = one.costs.get("cost_ratio")
        if ratio is not None:
            self.costs.learn(one.genes, ratio)
        if earlier and (one.value is None or ratio is None or ratio > self.limit):
            return
        self.searcher.tell(one)
        self.found.append(one)

    def _whole_value(self, genes: Genes) -> float:
        key = f"value of {self.planner.steps_of(genes)!r}"
        return float(self.planner.store.get_or_compute(key, partial(self.planner.value, genes, self.planner.task)))
