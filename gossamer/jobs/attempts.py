"""What a job tries: steps are taken, what comes of them is deployed and judged on validation data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gossamer.constraints.apply import materialize
from gossamer.core.context import Context
from gossamer.core.copies import copy_network, parameter_count
from gossamer.core.goal import Goal
from gossamer.core.record import Edit, Trial
from gossamer.core.task import Task
from gossamer.jobs import exporting
from gossamer.jobs.stages import Stages
from gossamer.measure import Drop, Evaluation, evaluate, paired_drop
from gossamer.methods._base import Method
from gossamer.modules.cost import layer_costs
from gossamer.runtime.runners import open_runner
from gossamer.search.axes import Steps
from gossamer.search.checkpoint_store import CheckpointStore, step_name, take_step
from gossamer.search.failures import FailureGuard


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The network that a job ends with: the steps to it, the network as it is deployed, the history of its edits."""

    steps: Steps
    result: exporting.ExportedArtifacts
    edits: list[Edit]


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What the parts of a job share. reference: what the original gives on validation data. judged: whether there is a
    goal; without one nothing is rejected. seconds: of the parts of the job so far."""

    original: nn.Module
    task: Task
    goal: Goal
    context: Context
    store: CheckpointStore
    folder: Path
    reference: Evaluation
    judged: bool
    seconds: dict[str, float]
    stages: Stages

    @property
    def trials(self) -> FailureGuard:
        """What fails is left out."""
        return FailureGuard(self.store, self.context.progress)

    def take(self, steps: Steps, tag: str, context: Context, *, note: bool = False) -> nn.Module:
        """The network after the steps, its weights held. What was done before a kill, or for another network that
        began with the same steps, comes from the store. tag: names the steps in the table of time.
        note: whether the network after each step is judged, and its file written, for the plot of what was tried."""
        model = copy_network(self.original)
        for number, step in enumerate(steps):
            with timed(self.seconds, f"{tag}, step {number}, {step.name()}"):
                model = take_step(step, model, step_name(steps[: number + 1]), self.task, context, self.store)
            if note:
                self._note_step(model, f"after {step.name()}")
        return model.eval()

    def step(self, model: nn.Module, step: Method, name: str, context: Context) -> nn.Module:
        """The network after a step; its edits go to the history of the run."""
        with timed(self.seconds, name):
            return take_step(step, model, name, self.task, context, self.store)

    def deploy(self, model: nn.Module, name: str, *, int8: bool, compact: bool = True) -> exporting.ExportedArtifacts:
        """The network in the form in which it is deployed, its files in the folder of the job. compact: whether the
        compact file is among them."""
        with timed(self.seconds, f"deploy {name}"):
            where = self.task, self.goal, self.context, self.folder
            result = exporting.export_artifacts(
                model, *where, reference_scores=self.reference, int8=int8, compact=compact
            )
        self.context.progress.say(f"{name}: drop {result.drop.points:.2f} points on validation")
        return result

    def untouched(self) -> Delivery:
        """The original, deployed in float32, and what was left out on the way."""
        result = self.deploy(self.original, "the original", int8=False)
        return Delivery(steps=(), result=result, edits=self.trials.rows())

    def note_size(self, name: str, model: nn.Module, scores: Evaluation, drop: Drop, file_bytes: int) -> None:
        """A mark in the plot of accuracy over file size. Without a goal, nothing is rejected."""
        self.context.log.trials.append(
            Trial(
                name=name,
                score=scores.shown,
                drop=drop.points,
                latency_ms={},
                macs=sum(cost.macs for cost in layer_costs(model, self.task.example_inputs)),
                params=parameter_count(model),
                file_bytes=file_bytes,
                accepted=not self.judged or drop.within(self.goal.max_drop),
            )
        )

    def _note_step(self, held: nn.Module, name: str) -> None:
        model = materialize(held).eval()
        with timed(self.seconds, "judge steps"):
            scores = evaluate(open_runner("torch", model, threads=self.goal.threads), self.task)
            size = exporting.save_compact(held.eval(), self.task, self.folder / "work" / "step.gsr", self.context)
        self.note_size(name, model, scores, paired_drop(self.reference, scores), size)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds to the seconds of a part of a job."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 1)
