"""Teach a student: one network trained from others, measured against them and against itself without a teacher."""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer import deliver
from gossamer.deploy import open_runner
from gossamer.distillation import evidence
from gossamer.errors import BadInput, unknown
from gossamer.folder import lock_folder, writing
from gossamer.goal import Goal
from gossamer.job import Artifact
from gossamer.measure import accuracy, paired_drop, top1_record
from gossamer.methods import catalogue
from gossamer.methods.base import Method
from gossamer.methods.distill.recover import Recover
from gossamer.methods.distill.student import HintedStudent, Student
from gossamer.network import bake, constraints
from gossamer.recipe import Recipe
from gossamer.record import Curve, JobDocument, Record, Teaching, environment, write_text
from gossamer.report import write_report
from gossamer.run import Run
from gossamer.search.journal import Journal, fingerprint, take_step
from gossamer.task import Task
from gossamer.train.teachers import Ensemble

TEACHER, STUDENT, ALONE = deliver.ORIGINAL, deliver.RESULT, "alone"
METHOD = "distill.kd"


def distill(
    teacher: nn.Module | Sequence[nn.Module],
    student: nn.Module,
    task: Task,
    method: Method | str = METHOD,
    *,
    alone: bool = True,
    out: Path | str | None = None,
    run: Run | None = None,
    command: str = "gossamer.distill(...)",
) -> Artifact:
    """Train `student` from `teacher`; both are left alone. The artifact's network is the student.

    teacher: a network, or several whose mean output counts. student: any network that gives what the teacher gives; one
    that is held by constraints (low bit, sparse) is trained under them. method: of those below `distill`, by name or
    with its options. alone: also train the student as long without a teacher, which shows what the teacher is worth.
    out: the folder of the result; it makes the job resumable.

    Raises BadInput for networks, methods and data that cannot be used, Diverged, ExportMismatch.
    """
    run = run or Run()
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    whole = teacher if isinstance(teacher, nn.Module) else Ensemble(teacher)
    with lock_folder(folder), writing(folder):
        return Job(whole, student, task, chosen(method), alone, folder, run, command).execute()


def chosen(method: Method | str) -> Method:
    """The method of a name, which must be one that learns from a teacher."""
    if isinstance(method, str):
        known = {name: cls for name, cls in catalogue().items() if name.startswith("distill.")}
        if method not in known:
            raise unknown("method", method, known)
        method = known[method]()
    return method


class Job:
    """One run of the job in a folder."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        task: Task,
        method: Method,
        alone: bool,
        folder: Path,
        run: Run,
        command: str,
    ) -> None:
        self.teacher, self.student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
        self.task, self.method, self.folder, self.command = task, method, folder, command
        self.alone = _without_teacher(method) if alone else None
        self.goal = Goal(max_drop=100, speedup=1)
        self.work = folder / "work"
        key = fingerprint(self.student, fingerprint(self.teacher), method, run.seed, task.name)
        self.journal = Journal(self.work, key)
        self.run = replace(run, folder=self.work, teacher=self.teacher, curves=[])
        self.seconds: dict[str, float] = self.journal.results.setdefault("seconds", {})
        self.curves: list[Curve] = []

    def execute(self) -> Artifact:
        """Everything, in order."""
        check_pair(self.teacher, self.student, self.task)
        reference = self._scores("teacher", self.teacher)
        model = self._trained("student", self.method)
        self._scores("student", model)
        networks = {TEACHER: self.teacher, STUDENT: model}
        if self.alone is not None:
            networks[ALONE] = self._trained(ALONE, self.alone)
            self._scores("student trained alone", networks[ALONE])
        with self._timed("deploy"):
            result = deliver.deliver(
                model, self.task, self.goal, self.run, self.folder, reference_scores=reference, int8=False
            )
        with self._timed("measure"):
            document = self._document(networks, result, reference)
        write_text(self.folder / "records.json", document.dump())
        write_report(document, self.folder / "report.html")
        return Artifact(model, document, self.folder)

    def _trained(self, name: str, step: Method) -> nn.Module:
        """The student after a step, plain."""
        own = replace(self.run, history=self.run.history if name == "student" else [], curves=[])
        with self._timed(name):
            model = take_step(step, self.student, name, self.task, own, self.journal)
        rows = own.curves
        if rows:
            loss, top1 = [x for row in rows for x in row.loss], [x for row in rows for x in row.top1]
            self.curves.append(Curve(name=STUDENT if name == "student" else name, loss=loss, top1=top1))
        return bake(model).eval()

    def _scores(self, name: str, model: nn.Module) -> Tensor:
        """On validation data."""
        with self._timed("validation"):
            scores = accuracy(open_runner("torch", model, threads=self.goal.threads), self.task)
        self.run.progress.say(f"{name}: validation {100 * float(scores.mean()):.2f} %")
        return scores

    def _document(self, networks: dict[str, nn.Module], result: deliver.Delivered, reference: Tensor) -> JobDocument:
        task, goal = self.task, self.goal
        rows = [*deliver.measure(self.teacher, result, task, goal, self.run, self.work), *result.records]
        rows.append(top1_record(TEACHER, reference, split="validation"))
        if ALONE in networks:
            rows += self._against_alone(networks, result)
        teaching = Teaching(
            method=self.method.name(),
            networks={subject: type(model).__name__ for subject, model in networks.items()},
            curves=self.curves,
        )
        if evidence.gives_classes(self.teacher, task):
            logits, labels = evidence.gather(networks, task)
            sure, reliability = evidence.sureness(logits, labels)
            rows += sure
            layers, examples = evidence.looks(networks, task)
            teaching = replace(
                teaching,
                agreement=evidence.agreement(logits),
                classes=evidence.per_class(logits, labels, task.classes),
                reliability=reliability,
                layers=layers,
                examples=examples,
            )
        Recipe(name="taught", seed=self.run.seed, steps=(self.method,), int8=False).save(self.folder / "recipe.yaml")
        return JobDocument(
            command=self.command,
            goal={},
            task={"name": task.name, "measure": task.measure, "validation": len(result.scores)},
            met=True,
            missed=[],
            seconds=self.seconds,
            environment=environment(),
            records=rows,
            edits=self.run.history,
            states=[],
            layers_before=deliver.layers(self.teacher, self.work / "original.onnx", task, goal, precision="float32"),
            layers_after=deliver.layers(result.model, result.deployed, task, goal, precision=result.precision),
            int8_ladder=[],
            files=deliver.save_files(result, task, self.folder),
            teaching=teaching,
        )

    def _against_alone(self, networks: dict[str, nn.Module], result: deliver.Delivered) -> list[Record]:
        """The student trained alone on test, and what the taught one lost against it, which is best below zero."""
        scores = {
            subject: accuracy(open_runner("torch", networks[subject], threads=self.goal.threads), self.task, "test")
            for subject in (STUDENT, ALONE)
        }
        gap = paired_drop(scores[ALONE], scores[STUDENT])
        return [
            top1_record(ALONE, scores[ALONE], split="test"),
            gap.to_record(STUDENT, split="test", against=ALONE),
        ]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds to the seconds of a part of the job."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)


def _without_teacher(method: Method) -> Method | None:
    """As long a training without a teacher; None where the method is not one training."""
    if not isinstance(method, Student):
        return None
    epochs = method.epochs + (method.hint_epochs if isinstance(method, HintedStudent) else 0)
    return Recover(epochs=epochs, lr=method.lr, weight_decay=method.weight_decay, alpha=1.0)


def check_pair(teacher: nn.Module, student: nn.Module, task: Task) -> None:
    """Refuse networks that do not take the task's inputs, and a student whose outputs are unlike the teacher's."""
    shapes = {}
    for name, model in (("teacher", teacher), ("student", student)):
        try:
            with torch.no_grad():
                output = copy.deepcopy(bake(model) if constraints(model) else model).eval()(*task.example_inputs)
        except Exception as error:
            seen = [tuple(getattr(x, "shape", ())) for x in task.example_inputs]
            raise BadInput(f"the {name} does not accept the inputs of {task.name} (shapes {seen}): {error}") from error
        shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else None
    if shapes["teacher"] and shapes["student"] and shapes["teacher"] != shapes["student"]:
        raise BadInput(
            f"the teacher gives outputs of shape {shapes['teacher']}, the student {shapes['student']}; they must be "
            "equal for the same inputs"
        )
