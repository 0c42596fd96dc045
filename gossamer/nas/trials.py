"""One architecture: what it costs, and what it scores after a training."""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.task import Task
from gossamer.errors import Diverged
from gossamer.measure import evaluate
from gossamer.measure.latency import latency
from gossamer.modules.activation_memory import activation_bytes
from gossamer.modules.cost import total_macs
from gossamer.nas.cells import CellSpace
from gossamer.nas.darts import train_supernet
from gossamer.nas.plan import LIMITS, SearchPlan
from gossamer.nas.quiet_machine import QuietMachine
from gossamer.nas.space import Genes, Space
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.search.cost_model import first_samples
from gossamer.train import Training, fit, recalibrate

REPEATS, SECONDS = 20, 1.0  # of one timing


@dataclass(frozen=True)
class TrialStep:
    """What can be done on one process, without any other one.

    Attributes:
        key: names it in the study.
        kind: "measure": what it costs, up to the first limit that it is outside of; "train": its score; "supernet":
            the weights of a supernet's operations.
        genes: which architecture; of a supernet, none.
        epochs: of the training.
        order: of the gradient of a supernet's operations.
    """

    key: str
    kind: Literal["measure", "train", "supernet"]
    genes: Genes
    epochs: int = 0
    order: int = 1


class TrialRunner:
    """Does steps of trials in this process.

    Args:
        space: of architectures.
        task: data, loss and metric.
        goal: the limits, and how time is measured.
        plan: the learning rate, and the limit of activations.
        context: seed, device and progress.
    """

    def __init__(self, space: Space, task: Task, goal: Goal, plan: SearchPlan, context: Context) -> None:
        self.space, self.task, self.lr, self.context = space, task, plan.lr, context
        self.goal = goal.here()
        self.limits = cost_limits(goal, plan)
        self.inputs = first_samples(task.validation, goal.batch)
        self.machine = QuietMachine()

    def __call__(self, step: TrialStep) -> dict[str, Any]:
        """The result of a step, as JSON values."""
        began = time.monotonic()
        found: dict[str, Any] = {"genes": list(step.genes)}
        if step.kind == "measure":
            with self.context.progress.busy("measuring an architecture"):
                found |= {"costs": self.costs(self.network(step.genes)), "words": self.space.words(step.genes)}
        elif step.kind == "supernet":
            found |= self.supernet(step)
        else:
            value = self.train(self.network(step.genes), step.epochs, f"{step.epochs} epochs")
            found |= {"epochs": step.epochs, "value": value}
        return found | {"seconds": time.monotonic() - began}

    def network(self, genes: Genes) -> nn.Module:
        """With fresh weights that depend on the seed and the architecture alone."""
        digest = hashlib.sha256(f"{self.context.seed} {genes}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:4], "little"))
            return self.space.build(genes)

    def costs(self, model: nn.Module) -> dict[str, float]:
        """What it costs, the cheapest to measure first; what follows on one that is outside of its limit is left."""
        costs: dict[str, float] = {}
        measures: dict[str, Callable[[], float]] = {
            "params": lambda: sum(p.numel() for p in model.parameters()),
            "macs": lambda: total_macs(model, self.task.example_inputs),
            "activation_bytes": lambda: activation_bytes(model, self.task.example_inputs),
            "latency_ms": lambda: self._latency(model),
        }
        for name, measure in measures.items():
            costs[name] = float(measure())
            if costs[name] > self.limits.get(name, math.inf):
                break
        return costs

    def train(self, model: nn.Module, epochs: int, label: str, checkpoint: Path | None = None) -> float | None:
        """The value on validation data after a training, more is better; None where it diverged or is not finite."""
        # Batch norms lag behind a training of some hundred steps; "best" would be judged by statistics of the start.
        training = Training(epochs=epochs, lr=self.lr, keep="last", evaluate_every=epochs)
        context = self.context.fork()
        with self.machine.training() as pauses:
            after = pauses if context.devices == 1 else None  # other processes cannot have its locks
            try:
                fit(model, self.task, training, context, after_step=after, label=label, checkpoint=checkpoint)
            except Diverged:
                return None
            recalibrate(model, self.task.calibration)
            value = self.task.metric.merit(evaluate(model, self.task).value)
            return value if math.isfinite(value) else None

    def supernet(self, step: TrialStep) -> dict[str, Any]:
        """What the training of the supernet of the space gives."""
        assert isinstance(self.space, CellSpace)  # the searcher has refused others
        with self.machine.training() as pauses:
            return train_supernet(
                self.space,
                self.task,
                epochs=step.epochs,
                lr=self.lr,
                context=self.context.fork(),
                order=step.order,
                minutes=self.goal.time_budget,
                after_step=pauses,
            )

    def _latency(self, model: nn.Module) -> float:
        """Median milliseconds of one batch on the goal's runtime."""
        goal = self.goal
        with tempfile.TemporaryDirectory(prefix="gossamer-search-") as folder:
            source: Any = model.eval()
            if goal.runtime in ("onnxruntime", "openvino"):
                source = export_onnx(model, self.task.example_inputs, Path(folder) / "candidate.onnx")
            runner = open_runner(goal.runtime, source, threads=goal.threads)
            with self.machine.measuring(self.context.progress):
                timed = latency({"candidate": runner}, self.inputs, repeats=REPEATS, warmup=3, seconds=SECONDS)
        return timed["candidate"].median_ms


def cost_limits(goal: Goal, plan: SearchPlan) -> dict[str, float]:
    """The limits of a goal and a plan, by the names of costs."""
    found = {name: getattr(goal, name, None) for name in LIMITS} | {"activation_bytes": plan.activation_bytes}
    return {name: value for name, value in found.items() if value is not None}


def within(costs: dict[str, float], limits: dict[str, float]) -> bool:
    """Whether everything was measured, and nothing is above its limit."""
    return len(costs) == len(LIMITS) and all(costs[name] <= limit for name, limit in limits.items())
