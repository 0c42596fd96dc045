"""The search itself: propose, measure, train what is within the limits, and train the best one for longer."""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from gossamer.core.context import Context
from gossamer.core.folder import lock_folder, writing
from gossamer.core.goal import Goal
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task, check
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, Diverged, unknown
from gossamer.measure import Evaluation, evaluate
from gossamer.measure.latency import latency
from gossamer.models.weights import load_weights, save_weights
from gossamer.modules.cost import total_macs
from gossamer.nas.result import Found, front, pick
from gossamer.nas.searchers import SEARCHERS, Searcher
from gossamer.nas.space import Genes, Space
from gossamer.report.search import SearchRow, write_search
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.search.checkpoint_store import CheckpointStore, data_fingerprint
from gossamer.search.cost_model import first_samples
from gossamer.train import Training, fit, recalibrate

SAID = 10  # proposals outside of the limits, after which a message says so
LEAST_EPOCHS, LEAST_STEPS, FINAL = 2, 150, 5  # shorter trainings leave every network near chance
OUTSIDE = 300  # proposals in a row that are outside of the limits, before the search gives up
REPEATS, SECONDS = 20, 1.0  # of one timing
LIMITS = {"latency_ms": "ms", "macs": "multiply-adds", "params": "parameters"}


@dataclass(frozen=True, kw_only=True)
class SearchPlan(KnownArguments):
    """How long is searched, and by whom.

    Args:
        searcher: one of `SEARCHERS`.
        trials: trainings, at most.
        epochs: of a full training of the search; None: 2, or as many as give 150 steps.
        final_epochs: of the training of the best one, from fresh weights; None: five times `epochs`.
        lr: peak of the learning rate, for all alike.
        pick: which network of the front is given: the best whose cost of this name ("latency_ms", "macs", "params") is
            at most so much; None: the best of all. Another pick of a finished search costs one final training.

    Raises:
        BadInput: another searcher, or nothing to do.

    Example:
        >>> SearchPlan(searcher="random", trials=5).lengths(batches=10)
        (15, 75)
    """

    searcher: str = "evolution"
    trials: int = 20
    epochs: int | None = None
    final_epochs: int | None = None
    lr: float = 0.1
    pick: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        if self.searcher not in SEARCHERS:
            raise unknown("searcher", self.searcher, SEARCHERS)
        for name in ("trials", "epochs", "final_epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadInput(f"{name} = {value} must be at least 1")
        if not 0 < self.lr <= 100:
            raise BadInput(f"lr = {self.lr} must be above 0 and at most 100")
        if self.pick is not None and self.pick[0] not in LIMITS:
            raise unknown("cost to pick by", self.pick[0], LIMITS)

    def lengths(self, batches: int) -> tuple[int, int]:
        """Epochs of a training of the search, and of the final one, for so many batches an epoch."""
        epochs = self.epochs or max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / batches))
        return epochs, self.final_epochs or FINAL * epochs


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search found.

    Attributes:
        model: the best network within the limits, trained for the full length, in eval mode.
        best: as it was judged in the search.
        found: everything that was looked at, in order.
        validation: the score of `model`.
        test: the same on test data, looked at once; None where the task has none.
        folder: `model.safetensors`, `model.onnx`, `search.json` and `report.html`.

    Example:
        >>> from gossamer.nas import front, search  # `search` gives one
        >>> SearchResult.__doc__.splitlines()[0]
        'What a search found.'
    """

    model: nn.Module
    best: Found
    found: tuple[Found, ...]
    validation: Evaluation
    test: Evaluation | None
    folder: Path

    def __repr__(self) -> str:
        trained = sum(one.trained for one in self.found)
        return f"SearchResult({self.validation} on validation, {trained} trained, {str(self.folder)!r})"


def search(
    space: Space,
    task: Task,
    *,
    goal: Goal,
    plan: SearchPlan | None = None,
    out: Path | str | None = None,
    context: Context | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Find the best network of a space within limits of time or size. Killed and started again, it goes on.

    What is outside of the limits is never trained: its time is measured with fresh weights, which cost what trained
    ones do. Validation data decide; test data are looked at once, at the end.

    Args:
        space: of architectures.
        task: data, loss and metric.
        goal: the limits (`latency_ms`, `macs`, `params`), the runtime, threads and batch to measure with, and
            `time_budget` in minutes; `max_drop` says nothing here.
        plan: who searches, and how long; None: the defaults.
        out: the folder of the result; it makes the search resumable. None: a new temporary one.
        context: seed, device and progress.
        verbose: messages to the logger "gossamer" and a bar on a terminal; False: nothing.

    Returns:
        The network, its score, and everything that was tried.

    Raises:
        BadInput: another searcher, goals of other kinds, or a space without a network within the limits.

    Example:
        >>> import gossamer
        >>> from gossamer.nas import MobileSpace
        >>> task = gossamer.data.tiny_task()
        >>> channels, side = task.example_inputs[0].shape[1:3]
        >>> space = MobileSpace(channels=channels, classes=4, side=max(side, 16))
        >>> space.size > 1000
        True
    """
    others = [name for name in goal.gains if name not in LIMITS]
    if others:
        raise BadInput(
            f"{', '.join(others)}: a search has no original to compare with; its limits are {', '.join(LIMITS)}"
        )
    plan = plan or SearchPlan()
    context = (context or Context()).with_progress(verbose)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-search-"))
    with lock_folder(folder), writing(folder):
        return SearchJob(space, task, goal.here(), plan, folder, context).execute()


class SearchJob:
    """One search in a folder."""

    def __init__(
        self,
        space: Space,
        task: Task,
        goal: Goal,
        plan: SearchPlan,
        folder: Path,
        context: Context,
    ) -> None:
        self.space, self.task, self.goal, self.plan = space, task, goal, plan
        self.searcher: Searcher = SEARCHERS[plan.searcher](space, context.seed)
        self.folder, self.context = folder, context
        self.epochs, self.final_epochs = plan.lengths(len(task.train))
        self.inputs = first_samples(task.validation, goal.batch)
        settings = replace(plan, trials=1, pick=None)  # more trials go on from what is known
        about = (repr(space), repr(goal), repr(settings), context.seed, data_fingerprint(task))
        (folder / "work").mkdir(exist_ok=True)
        self.store = CheckpointStore(folder / "work", hashlib.sha256(repr(about).encode()).hexdigest())
        self.limits = {name: value for name in LIMITS if (value := getattr(goal, name)) is not None}
        self.searcher.cost = next(iter(self.limits), "latency_ms")  # not by `pick`, which decides after the search
        self.cost = plan.pick[0] if plan.pick is not None else self.searcher.cost
        self.nearest: dict[str, float] = {}

    def execute(self) -> SearchResult:
        """Everything, in order."""
        check(self.task, self._network(self.space.random(Random(0))))  # before hours of work
        found: list[Found] = []
        for number in range(self.plan.trials):
            if found and not self._time_is_left(found):
                self.context.progress.say(f"the time ends after {number} trainings")
                break
            found.extend(self._trial(number))
        trained = [one for one in found if one.trained]
        if not trained:
            raise BadInput("every training of the search failed; lower the learning rate")
        if self.plan.pick is not None:
            return self._deliver(found, pick(found, *self.plan.pick))
        longest = max(one.epochs for one in trained)
        best = max((one for one in trained if one.epochs == longest), key=lambda one: one.value or 0.0)
        return self._deliver(found, best)

    def _trial(self, number: int) -> Iterator[Found]:
        """Proposals until one is within the limits; that one is trained."""
        for rejected in range(OUTSIDE):
            if rejected and rejected % SAID == 0:
                self.context.progress.say(
                    f"trial {number + 1}: {rejected} outside of the limits; {self._nearest_so_far()}"
                )
            proposal = self.searcher.ask()
            epochs = max(1, round(self.epochs * proposal.share))
            genes = proposal.genes
            key = f"trial {number}, {'-'.join(map(str, genes))}, {epochs} epochs"
            kept: Any = self.store.get_or_compute(key, partial(self._tried, genes, epochs))
            one = Found(**{**kept, "genes": tuple(kept["genes"])})
            self.searcher.tell(one)
            yield one
            if not one.epochs:
                self._note_nearest(one.costs)
            else:
                value = "failed" if one.value is None else self.task.metric.text(one.value)
                self.context.progress.say(f"trial {number + 1}: {value}, {self._costs(one)}: {one.words}")
                return
        raise BadInput(f"{OUTSIDE} architectures in a row are outside of the limits; {self._nearest_so_far()}")

    def _tried(self, genes: Genes, epochs: int) -> dict[str, Any]:
        """One architecture, measured, and trained where it is within the limits: a `Found` as JSON values."""
        start = time.monotonic()
        model = self._network(genes)
        words = self.space.words(genes)
        with self.context.progress.busy("measuring an architecture"):
            costs = self._measured(model)
        if len(costs) < len(LIMITS) or any(costs[name] > limit for name, limit in self.limits.items()):
            value, epochs = None, 0
        else:
            value = self._trained(model, epochs, f"{epochs} epochs")
        seconds = time.monotonic() - start
        return asdict(Found(genes=genes, epochs=epochs, value=value, costs=costs, words=words, seconds=seconds))

    def _measured(self, model: nn.Module) -> dict[str, float]:
        """What it costs, the cheapest to measure first; what follows on one that is outside of its limit is left."""
        costs: dict[str, float] = {}
        measures: dict[str, Callable[[], float]] = {
            "params": lambda: sum(p.numel() for p in model.parameters()),
            "macs": lambda: total_macs(model, self.task.example_inputs),
            "latency_ms": lambda: self._latency(model),
        }
        for name, measure in measures.items():
            costs[name] = float(measure())
            if costs[name] > self.limits.get(name, math.inf):
                break
        return costs

    def _trained(self, model: nn.Module, epochs: int, label: str, checkpoint: Path | None = None) -> float | None:
        # Batch norms lag behind a training of some hundred steps; "best" would be judged by statistics of the start.
        training = Training(epochs=epochs, lr=self.plan.lr, keep="last", evaluate_every=epochs)
        try:
            fit(model, self.task, training, self.context.fork(), label=label, checkpoint=checkpoint)
        except Diverged:
            return None
        recalibrate(model, self.task.calibration)
        return evaluate(model, self.task).value

    def _network(self, genes: Genes) -> nn.Module:
        """With fresh weights that depend on the seed and the architecture alone."""
        digest = hashlib.sha256(f"{self.context.seed} {genes}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:4], "little"))
            return self.space.build(genes)

    def _latency(self, model: nn.Module) -> float:
        """Median milliseconds of one batch on the goal's runtime."""
        goal = self.goal
        source: Any = model.eval()
        if goal.runtime in ("onnxruntime", "openvino"):
            source = export_onnx(model, self.task.example_inputs, self.folder / "work" / "candidate.onnx")
        runner = open_runner(goal.runtime, source, threads=goal.threads)
        timed = latency({"candidate": runner}, self.inputs, repeats=REPEATS, warmup=3, seconds=SECONDS)
        return timed["candidate"].median_ms

    def _note_nearest(self, costs: dict[str, float]) -> None:
        def far(one: dict[str, float]) -> float:
            return max(one[name] / limit if name in one else math.inf for name, limit in self.limits.items())

        if not self.nearest or far(costs) < far(self.nearest):
            self.nearest = costs

    def _nearest_so_far(self) -> str:
        found = ", ".join(f"{name} {value:,.4g}" for name, value in self.nearest.items())
        return f"the nearest has {found}; allowed: {self._limits()}" if found else "none was measured here"

    def _time_is_left(self, found: list[Found]) -> bool:
        """Whether another trial and the final training fit into the budget of time."""
        if self.goal.time_budget is None:
            return True
        trained = [one for one in found if one.epochs]
        spent = sum(one.seconds for one in found)
        epoch = sum(one.seconds for one in trained) / max(sum(one.epochs for one in trained), 1)
        needed = epoch * (self.epochs + self.final_epochs)
        return bool(spent + needed <= 60 * self.goal.time_budget)

    def _deliver(self, found: list[Found], best: Found) -> SearchResult:
        """The best one, trained for the full length, with its files."""
        model, path = self._network(best.genes), self._final(best.genes, "safetensors")
        epochs = self.final_epochs
        self.context.progress.say(f"the best of {sum(one.trained for one in found)}: training it for {epochs} epochs")
        finished = f"finished {best.genes}"
        if finished in self.store.results and path.exists():
            load_weights(model, path).eval()
        elif self._trained(model, epochs, "final training", self._final(best.genes, "ckpt")) is None:
            raise Diverged("the final training could not be saved; lower the learning rate")
        about = {"space": repr(self.space), "genes": json.dumps(best.genes)}
        for target in (path, self.folder / "model.safetensors"):
            save_weights(model, target, about)
        export_onnx(model, self.task.example_inputs, self.folder / "model.onnx")
        self.store.get_or_compute(finished, lambda: True)
        validation = evaluate(model, self.task)
        test = evaluate(model, self.task, "test") if self.task.test is not None else None
        self._write(found, best, validation, test)
        return SearchResult(model, best, tuple(found), validation, test, self.folder)

    def _final(self, genes: Genes, kind: str) -> Path:
        """A file of the final training: with more trials or another pick another architecture may be the best."""
        return self.folder / "work" / f"final-{hashlib.sha256(repr(genes).encode()).hexdigest()[:12]}.{kind}"

    def _write(self, found: list[Found], best: Found, validation: Evaluation, test: Evaluation | None) -> None:
        """`search.json` and the page."""
        on_front = {one.genes for one in front(found, self.cost)}
        shown = self.task.metric.shown
        document = {
            "space": repr(self.space),
            "size_of_space": str(self.space.size),
            "settings": {
                **asdict(self.plan),
                "epochs": self.epochs,
                "final_epochs": self.final_epochs,
                "seed": self.context.seed,
            },
            "limits": self.limits,
            "measured_on": {"runtime": self.goal.runtime, "threads": self.goal.threads, "batch": self.goal.batch},
            "environment": environment(),
            "picked": self.plan.pick,
            "best": asdict(best),
            "front": [asdict(one) for one in front(found, self.cost)],
            "validation": validation.shown,
            "test": test.shown if test is not None else None,
            "found": [asdict(one) for one in found if one.epochs],
            "outside_of_the_limits": sum(not one.epochs for one in found),
        }
        write_text(self.folder / "search.json", json.dumps(document, indent=1))
        rows = [
            SearchRow(
                name=f"{number}: {one.words}",
                cost=one.costs[self.cost],
                score=shown(one.value),
                best=one.genes in on_front,
                chosen=one is best,
                detail=(self.task.metric.text(one.value), self._costs(one)),
            )
            for number, one in enumerate((one for one in found if one.trained), 1)
            if one.value is not None and one.epochs == best.epochs
        ]
        final = f"{validation} on validation after {self.final_epochs} epochs"
        write_search(
            rows,
            self.folder / "report.html",
            title=f"{self.plan.searcher} search on {self.task.name}",
            lead=f"{final}{f', {test} on test' if test is not None else ''}; limits: {self._limits()}",
            cost_title=f"{self.cost.removesuffix('_ms')}, {LIMITS[self.cost]}",
            score_title=f"{self.task.metric.name} after {best.epochs} epochs",
            limit=self.limits.get(self.cost),
        )

    def _limits(self) -> str:
        return ", ".join(f"{name} {value:,.4g}" for name, value in self.limits.items()) or "none"

    def _costs(self, one: Found) -> str:
        return ", ".join(f"{one.costs[name]:,.4g} {unit}" for name, unit in LIMITS.items() if name in one.costs)
