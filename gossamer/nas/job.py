"""The search itself: propose, measure, train what is within the limits, and train the best one for longer."""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from gossamer.core.context import Context
from gossamer.core.folder import lock_folder, writing
from gossamer.core.goal import Goal
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task
from gossamer.errors import BadInput, Diverged
from gossamer.measure import Evaluation, evaluate
from gossamer.models.weights import load_weights, save_weights
from gossamer.nas.backends import Backend, RayCluster, ThisProcess
from gossamer.nas.decisions import Decisions, costs_text, limits_text
from gossamer.nas.plan import LIMITS, SearchPlan
from gossamer.nas.result import Found, front, pick
from gossamer.nas.searchers import SEARCHERS, Searcher
from gossamer.nas.space import Genes, Space
from gossamer.nas.study import WORK, Study, describe_study, read_description
from gossamer.nas.trials import TrialRunner, cost_limits, within
from gossamer.report.search import SearchRow, write_search
from gossamer.runtime.onnx_export import export_onnx
from gossamer.task import check


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a process takes part in a search that others may join (`join_search`). It changes no decision.

    Attributes:
        measure: whether this process measures times: it runs on a quiet machine of the kind that the network is for.
        ray: address of a Ray cluster that the trainings run on, "local" for a new one; None: this process.
        origin: how `gossamer worker` makes task and space again; the command line fills it in.

    Example:
        >>> StudyOptions(measure=False).ray is None
        True
    """

    measure: bool = True
    ray: str | None = None
    origin: Mapping[str, Any] | None = None


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
    options: StudyOptions | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Find the best network of a space within limits of time or size. Killed and started again, it goes on. Other
    processes may work on its trials at the same time (`join_search`).

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
        options: whether this process measures times, and where the trainings run; None: both here.
        verbose: messages to the logger "gossamer" and a bar on a terminal; False: nothing.

    Returns:
        The network, its score, and everything that was tried.

    Raises:
        BadInput: another searcher, goals of other kinds, a folder with another search, or a space without a network
            within the limits.

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
    searcher_of(plan, space, 0)  # refuses what it cannot search, before anything is written
    context = (context or Context()).with_progress(verbose)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-search-"))
    options = options or StudyOptions()
    with lock_folder(folder), writing(folder):
        description = describe_study(space, task, goal, plan, context.seed, options.origin)
        study = Study.start(folder, description, progress=context.progress)
        return SearchJob(space, task, study, plan, context, options).execute()


def join_search(
    folder: Path | str,
    space: Space,
    task: Task,
    *,
    measure: bool = False,
    context: Context | None = None,
    verbose: bool = True,
) -> int:
    """Work on the trials of a search that another process has started, until all are done or this one is stopped.

    Any number of processes may join and leave, on any machine that sees the folder. The trial of a process that is
    killed is done again by another one.

    Args:
        folder: the `out` of the search.
        space: as in the search.
        task: as in the search.
        measure: whether this process may measure times: it runs on a quiet machine of the kind that the network is for.
        context: device and progress; the seed is the search's.
        verbose: messages to the logger "gossamer" and a bar on a terminal; False: nothing.

    Returns:
        How many steps of trials were done here: an architecture measured is one, its training another one.

    Raises:
        BadInput: there is no search, or it is one of another task, space or version.

    Example:
        >>> import gossamer
        >>> from gossamer.nas import MobileSpace
        >>> join_search("nowhere", MobileSpace(channels=1, classes=4, side=16), gossamer.data.tiny_task())
        Traceback (most recent call last):
        gossamer.errors.BadInput: nowhere holds no search; ...
    """
    folder = Path(folder)
    known = read_description(folder)
    context = (context or Context()).with_progress(verbose).fork(seed=known.seed)
    goal, plan = known.goal, known.plan
    description = describe_study(space, task, goal, plan, known.seed)
    with writing(folder):
        study = Study.join(folder, description, progress=context.progress)
        backend = ThisProcess(study, TrialRunner(space, task, goal, plan, context), measure=measure)
        follow(backend)
    return backend.done


def decisions_of(study: Study, runner: TrialRunner) -> Decisions:
    """What the search of a study decides."""
    plan, goal = study.description.plan, study.description.goal
    searcher = searcher_of(plan, runner.space, study.description.seed)
    searcher.cost = next(iter(runner.limits), "latency_ms")  # not by `pick`, which decides after the search
    return Decisions(
        searcher,
        plan,
        plan.lengths(len(runner.task.train)),
        limits=runner.limits,
        minutes=goal.time_budget,
        results=study.result,
        metric=runner.task.metric,
        progress=runner.context.progress,
    )


def searcher_of(plan: SearchPlan, space: Space, seed: int) -> Searcher:
    """Who proposes.

    Raises:
        BadInput: it cannot search this space, or starts from what is not of it.
    """
    return SEARCHERS[plan.searcher](space, seed, start=plan.start)


def follow(backend: Backend) -> Decisions:
    """Do what the search asks for, until all trials are done by this process or by others; what was decided."""
    study = backend.study
    decisions = decisions_of(study, backend.runner)
    try:
        study.refresh()
        while (ready := decisions.ready()) or not decisions.finished:
            backend.advance(ready)
            study.refresh()
    finally:
        backend.close()
    return decisions


class SearchJob:
    """The search of one study, and what it delivers."""

    def __init__(
        self, space: Space, task: Task, study: Study, plan: SearchPlan, context: Context, options: StudyOptions
    ) -> None:
        self.space, self.task, self.study, self.plan, self.context = space, task, study, plan, context
        self.goal, self.folder, self.options = study.description.goal, study.folder, options
        self.epochs, self.final_epochs = plan.lengths(len(task.train))
        self.runner = TrialRunner(space, task, self.goal, plan, context)
        self.limits = cost_limits(self.goal, plan)
        self.cost = plan.pick[0] if plan.pick is not None else next(iter(self.limits), "latency_ms")

    def execute(self) -> SearchResult:
        """Everything, in order."""
        with self.context.progress.busy("trying a batch"):
            check(self.task, self.runner.network(self.space.random(Random(0))))  # before hours of work
        decided = follow(self._backend())
        found = decided.found
        trained = [one for one in found if one.trained]
        if not trained:
            raise BadInput("every training of the search failed; lower the learning rate")
        if self.plan.pick is not None:
            return self._deliver(decided, pick(found, *self.plan.pick))
        longest = max(one.epochs for one in trained)
        best = max(
            (one for one in trained if one.epochs == longest),
            key=lambda one: -math.inf if one.value is None else one.value,
        )
        return self._deliver(decided, best)

    def _backend(self) -> Backend:
        measure = self.options.measure
        if self.options.ray is None:
            return ThisProcess(self.study, self.runner, measure=measure)
        return RayCluster(self.study, self.runner, self.options.ray, measure=measure)

    def _deliver(self, decided: Decisions, best: Found) -> SearchResult:
        """The best one, trained for the full length, with its files."""
        found = decided.found
        model, path = self.runner.network(best.genes), self._final(best.genes, "safetensors")
        epochs = self.final_epochs
        self.context.progress.say(f"the best of {sum(one.trained for one in found)}: training it for {epochs} epochs")
        if path.exists():
            load_weights(model, path).eval()
        elif self.runner.train(model, epochs, "final training", self._final(best.genes, "ckpt")) is None:
            raise Diverged("the final training could not be saved; lower the learning rate")
        about = {"space": repr(self.space), "genes": json.dumps(best.genes)}
        for target in (path, self.folder / "model.safetensors"):
            save_weights(model, target, about)
        export_onnx(model, self.task.example_inputs, self.folder / "model.onnx")
        validation = evaluate(model, self.task)
        test = evaluate(model, self.task, "test") if self.task.test is not None else None
        self._write(decided, best, validation, test)
        return SearchResult(model, best, tuple(found), validation, test, self.folder)

    def _final(self, genes: Genes, kind: str) -> Path:
        """A file of the final training: with more trials or another pick another architecture may be the best."""
        return self.folder / WORK / f"final-{hashlib.sha256(repr(genes).encode()).hexdigest()[:12]}.{kind}"

    def _write(self, decided: Decisions, best: Found, validation: Evaluation, test: Evaluation | None) -> None:
        """`search.json` and the page."""
        found = decided.found
        on_front = {one.genes for one in front(found, self.cost)}
        metric, shown = self.task.metric, self.task.metric.shown
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
            "seconds": decided.seconds,
            "supernet": decided.prepared,
            "outside_of_the_limits": sum(not within(one.costs, self.limits) for one in found),
        }
        write_text(self.folder / "search.json", json.dumps(document, indent=1))
        rows = [
            SearchRow(
                name=f"{number}: {one.words}",
                cost=one.costs[self.cost],
                score=shown(metric.merit(one.value)),
                best=one.genes in on_front,
                chosen=one is best,
                detail=(metric.text(metric.merit(one.value)), costs_text(one)),
            )
            for number, one in enumerate((one for one in found if one.trained), 1)
            if one.value is not None and one.epochs == best.epochs
        ]
        final = f"{validation} on validation after {self.final_epochs} epochs"
        write_search(
            rows,
            self.folder / "report.html",
            title=f"{self.plan.searcher} search on {self.task.name}",
            lead=f"{final}{f', {test} on test' if test is not None else ''}; limits: {limits_text(self.limits)}",
            cost_title=f"{self.cost.removesuffix('_ms')}, {LIMITS[self.cost]}",
            score_title=f"{self.task.metric.name} after {best.epochs} epochs",
            limit=self.limits.get(self.cost),
        )
