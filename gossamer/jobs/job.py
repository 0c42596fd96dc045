"""What the two jobs have in common: a folder, a store, stages, the end. Killed and started again, they go on."""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.folder import writing
from gossamer.core.goal import Goal
from gossamer.core.record import JobDocument, Record, environment, write_text
from gossamer.core.task import Task
from gossamer.errors import BadInput, GossamerError
from gossamer.jobs import exporting
from gossamer.jobs.attempts import timed
from gossamer.jobs.preflight import preflight
from gossamer.jobs.stages import TRYING, Stages
from gossamer.measure import Evaluation, evaluate
from gossamer.models.weights import load_weights
from gossamer.report import write_report
from gossamer.report.table import markdown, summary_rows
from gossamer.report.verdict import sentence
from gossamer.runtime.runners import open_runner
from gossamer.search.checkpoint_store import CheckpointStore

BOOKKEEPING = {"seconds", "left out"}  # in the store besides results
TRAINED = (".ckpt", ".safetensors")


@dataclass(frozen=True, repr=False)
class Artifact:
    """The result of a job.

    Attributes:
        model: the compressed network, of the user's own class.
        document: all that was measured and decided; `records.json`.
        folder: with the deployed files, the document and the report.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.methods.prune import Magnitude
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> recipe = gossamer.Recipe(name="zeros", steps=(Magnitude(sparsity=0.5),), int8=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = gossamer.compress(model, task, recipe=recipe, out=folder, verbose=False)
        ...     done.model is not model, (done.folder / "model.onnx").exists()
        (True, True)
        >>> len(done.records) > 10
        True
    """

    model: nn.Module
    document: JobDocument
    folder: Path

    @property
    def met(self) -> bool:
        """Whether every part of the goal was reached."""
        return self.document.met

    @property
    def records(self) -> list[Record]:
        return self.document.records

    def __repr__(self) -> str:
        goal = ("goal met" if self.met else "goal missed") if self.document.goal else "no goal"
        return f"Artifact({type(self.model).__name__}, {goal}, {str(self.folder)!r})"

    def summary(self) -> str:
        """The verdict, and the headline table in Markdown: score, latency on each runtime, sizes, before and after."""
        return f"{sentence(self.document)}\n\n{markdown(summary_rows(self.document))}"

    def save(self, folder: Path | str) -> Path:
        """Copy the files of the artifact to another folder."""
        with writing(Path(folder)):
            return Path(
                shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("work", ".*"))
            )


class Job(ABC):
    """One run of a job in a folder.

    A subclass says what is done (`run`), and which network its weights belong to (`original`). Everything that takes
    long goes through the store.
    """

    original: nn.Module
    finish_key = "finished"

    def __init__(self, task: Task, goal: Goal, folder: Path, command: str, stages: Sequence[str]) -> None:
        self.task, self.goal, self.folder, self.command = task, goal, folder, command
        self.work = folder / "work"
        self.stage_names = (TRYING, *stages)

    def open_store(self, fingerprint: str, context: Context) -> None:
        """The store of this job, and what it says of earlier runs. fingerprint: what makes a job the same job."""
        self.store = CheckpointStore(self.work, fingerprint)
        self.context = context
        self.seconds: dict[str, float] = self.store.results.setdefault("seconds", {})
        self.stages = Stages(context.progress, self.stage_names, sum(self.seconds.values()))

    def execute(self) -> Artifact:
        """Everything, in order; of a finished job, what came of it.

        What was refused before anything was trained leaves no work, which would stand in the way of the job that was
        meant.
        """
        if (done := self._done()) is not None:
            self.context.progress.say(f"this job is finished; its result is in {self.folder}")
            return done
        if known := len(self._known()):
            self.context.progress.say(f"going on where the job was: {known} results are in {self.work}")
        try:
            with self.stages:
                result, document = self.run()
        except Exception as error:
            trained = any(one.suffix in TRAINED for one in self.work.rglob("*"))
            if not trained and (isinstance(error, GossamerError) or not self._known()):
                shutil.rmtree(self.work)
            raise
        write_text(self.folder / "records.json", document.dump())
        write_report(document, self.folder / "report.html")
        self.store.get_or_compute(self.finish_key, lambda: document.files)
        return Artifact(result.model, document, self.folder)

    @abstractmethod
    def run(self) -> tuple[exporting.ExportedArtifacts, JobDocument]:
        """All the work: the deployed network, and what the report reads."""

    def try_out(self, model: nn.Module, *, trains: bool, int8: bool | None) -> None:
        """Try on a few samples what will be needed at the end; a job that goes on was tried at its start."""
        if self._known():
            return
        self.stages.enter(TRYING)
        with timed(self.seconds, TRYING):
            preflight(model, self.task, self.goal, self.context, trains=trains, int8=int8)

    def evaluated(self, model: nn.Module, split: str = "validation") -> Evaluation:
        """The score of a network as the task's metric has it, run by PyTorch."""
        return evaluate(open_runner("torch", model, threads=self.goal.threads), self.task, split)

    def reference(self, model: nn.Module, subject: str) -> Evaluation:
        """The score that others are compared with. Raises BadInput where it is no finite number."""
        scores, metric = self.evaluated(model), self.task.metric.name
        if not math.isfinite(scores.value):
            raise BadInput(
                f"the metric {metric!r} gives {scores.value} for {subject} on the {len(scores)} validation samples: "
                "drops are counted from it, so it must be a finite number; look at the metric, or at what the network "
                "gives"
            )
        return scores

    def document(
        self, rows: list[Record], result: exporting.ExportedArtifacts, context: Context, **parts: Any
    ) -> JobDocument:
        """The job document. context: of the files. parts: its fields that only this job knows."""
        missed = exporting.missed(self.goal, rows, result.drop) if self.goal.judges else []
        empty: dict[str, Any] = {"layers_before": [], "layers_after": [], "int8_steps": []}
        return JobDocument(
            command=self.command,
            goal=self.goal.row() if self.goal.judges else {},
            met=not missed,
            missed=missed,
            seconds=self.seconds,
            environment=environment(),
            records=rows,
            files=exporting.save_files(result, self.task, self.folder, context),
            **{**empty, **parts},
        )

    def _known(self) -> set[str]:
        """The names of the results in the store."""
        return self.store.results.keys() - BOOKKEEPING

    def _done(self) -> Artifact | None:
        """The result of a finished job; None where it is none, or where its files are not there as they were."""
        files, path = self.store.results.get(self.finish_key), self.folder / "records.json"
        if files is None or not path.exists():
            return None
        if any(not (file := self.folder / name).exists() or file.stat().st_size != files[name] for name in files):
            return None
        try:
            model = load_weights(copy_network(self.original), self.folder / "model.safetensors")
        except GossamerError:  # what changed cannot be told as data: from the store, then
            return None
        return Artifact(model.eval(), JobDocument.parse(path.read_text(encoding="utf-8")), self.folder)
