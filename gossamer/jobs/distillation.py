"""Teach a student: one network trained from others, measured against them and against itself without a teacher."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.core.batches import inputs_and_target
from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.copies import check_network, copy_network
from gossamer.core.folder import lock_folder, writing
from gossamer.core.goal import NO_BUDGET, UNASKED, Goal
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import Curve, JobDocument, Record
from gossamer.core.task import Task, task_row
from gossamer.core.validation import require_kind
from gossamer.errors import BadInput, unknown
from gossamer.jobs import diagnostics, exporting
from gossamer.jobs.attempts import timed
from gossamer.jobs.job import Artifact, Job
from gossamer.jobs.recipe import Recipe
from gossamer.jobs.stages import LOOKING, MEASURING, TEACHING
from gossamer.jobs.teachers import external_teacher, searched, trainable
from gossamer.measure import Evaluation, paired_drop, score_record
from gossamer.methods import catalogue
from gossamer.methods._base import Method
from gossamer.methods._training import Retrain
from gossamer.methods.distill._student import HintedStudent, Student
from gossamer.methods.distill.kd import KD
from gossamer.methods.distill.temperature import TemperatureScaling, divided
from gossamer.search.checkpoint_store import data_fingerprint, job_fingerprint, take_step
from gossamer.train import compiled_teacher
from gossamer.train.teachers import Ensemble, gives_outputs_only, only_remembers

TEACHER, STUDENT, ALONE = exporting.ORIGINAL, exporting.RESULT, "alone"
METHOD = "distill.kd"

Teacher = nn.Module | Path | str


@checked_arguments
@own_conditions()
def distill(
    teacher: Teacher | Sequence[Teacher],
    student: nn.Module | Literal["auto"],
    task: Task,
    method: Method | str = METHOD,
    *,
    goal: Goal | None = None,
    assistants: Sequence[nn.Module] = (),
    alone: bool = True,
    calibrate: bool = False,
    out: Path | str | None = None,
    context: Context | None = None,
    verbose: bool = True,
    command: str = "gossamer.distill(...)",
) -> Artifact:
    """Train `student` from `teacher`; both are left alone.

    Args:
        teacher: a module, an `.onnx` file, a folder of recorded outputs (`Context.cache` of an earlier job); or
            several, whose mean output counts.
        student: any network that gives what the teacher gives; one that is held by constraints (low bit, sparse) is
            trained under them, one out of a `.pt2` or `.gsr` keeps its zeros and shared values; "auto": cut out of the
            teacher for a `goal`.
        task: data, loss and metric.
        method: of those below `distill`, by name or with its options.
        goal: what student "auto" is to cost; otherwise only `max_drop` and how to measure count.
        assistants: networks in between, each taught by the one before it.
        alone: also train the student as long without a teacher, which shows what the teacher is worth.
        calibrate: scale the student's outputs at the end so that it is as sure as it is right.
        out: the folder of the result; it makes the job resumable. None: a new temporary one.
        context: seed, device and progress.
        verbose: messages to the logger "gossamer" and a bar on a terminal; False: nothing.
        command: how the job was started, for its document.

    Returns:
        The student, its files and all that was measured.

    Raises:
        BadInput: networks, a method or data that cannot be used.
        Diverged: a training that could not be saved.
        ExportMismatch: a deployed network that computes something else.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.methods.distill import KD
        >>> teacher, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> student = gossamer.data.tiny_network()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = distill(teacher, student, task, KD(epochs=1, lr=0.01), alone=False, out=folder, verbose=False)
        >>> done
        Artifact(Sequential, no goal, ...)
    """
    require_kind("task", task, Task, "load_task('digits') or Task.from_loaders(train, validation)")
    require_kind("goal", goal, Goal, "Goal(macs=0.5)", optional=True)
    if student == "auto":
        if goal is None:
            raise BadInput("student 'auto' is cut to a goal, and 'auto' needs one: distill(..., goal=Goal(macs=...))")
        goal = goal.to_plan()
    elif goal is not None and goal.gains:
        raise BadInput(f"{', '.join(goal.gains)}: only student 'auto' is cut for a goal, this one is trained as it is")
    goal = (goal or UNASKED).here()
    if not isinstance(teacher, Teacher | Sequence):
        check_network(teacher)
    several = [teacher] if isinstance(teacher, Teacher) else list(teacher)
    networks = [one if isinstance(one, nn.Module) else opened_teacher(Path(one)) for one in several]
    config = DistillationConfig(
        teacher=copy_network(networks[0] if len(networks) == 1 else Ensemble(networks)).eval(),
        student=None if isinstance(student, str) else copy_network(student),
        task=task,
        method=chosen_method(method),
        goal=goal,
        assistants=tuple(copy_network(one) for one in assistants),
        alone=alone,
        calibrate=calibrate,
    )
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    with lock_folder(folder), writing(folder):
        context = (context or Context()).with_progress(verbose)
        with context.progress.busy(LOOKING):
            job = DistillationJob(config, folder, context, command)
        return job.execute()


def opened_teacher(path: Path) -> nn.Module:
    """The teacher of a path."""
    found = external_teacher(path)
    if found is None:
        raise BadInput(
            f"{path} is neither an .onnx file nor a folder of recorded outputs; give the teacher as a module"
        )
    return found


def chosen_method(method: Method | str) -> Method:
    """The method of a name, which must be one below `distill`."""
    if isinstance(method, str):
        known = {name: cls for name, cls in catalogue().items() if name.startswith("distill.")}
        if method not in known:
            raise unknown("method", method, known, listed="`gossamer methods`")
        method = known[method]()
    return method


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Who is to be taught what, by whom and how: the arguments of `distill`. student: None for one cut to `goal`."""

    teacher: nn.Module
    student: nn.Module | None
    task: Task
    method: Method
    goal: Goal
    assistants: tuple[nn.Module, ...]
    alone: bool
    calibrate: bool

    def key(self, seed: int) -> str:
        """What makes a job the same job. `alone` and `calibrate` only add to it."""
        networks = [self.teacher, *self.assistants, *([self.student] if self.student is not None else [])]
        data = data_fingerprint(self.task)
        goal = self.goal if self.student is None else None  # else it says how to measure, which trains nothing
        return job_fingerprint(self.teacher, *map(job_fingerprint, networks), self.method, goal, seed, data)


class DistillationJob(Job):
    """One run of the job in a folder."""

    def __init__(self, config: DistillationConfig, folder: Path, context: Context, command: str) -> None:
        super().__init__(config.task, config.goal, folder, command, (TEACHING, MEASURING))
        self.config, self.teacher = config, config.teacher
        self.original = config.student if config.student is not None else config.teacher
        self.finish_key = f"finished, alone={config.alone}, calibrate={config.calibrate}, {config.goal}"
        self.open_store(config.key(context.seed), context.fork(folder=self.work, teacher=self.teacher))
        self.curves: list[Curve] = []
        self.rows: list[Record] = []

    def run(self) -> tuple[exporting.ExportedArtifacts, JobDocument]:
        config, networks = self.config, {TEACHER: self.teacher}
        if config.student is None and not gives_outputs_only(self.teacher):
            self.try_out(self.teacher, trains=True, int8=False)  # before the search of a student that is a part of it
        student = self._student()
        check_pair(self.teacher, (student, *config.assistants), self.task)
        if config.calibrate:
            check_scalable(student, self.task)
        if config.student is not None:
            self.try_out(student, trains=True, int8=False)
        self.stages.enter(TEACHING)
        reference = self._judged(TEACHER, "teacher", self.teacher)
        if reference is None and self.goal.max_drop < NO_BUDGET:
            raise BadInput("max_drop: a teacher of recorded outputs has none on other data to judge the student by")
        for number, assistant in enumerate(config.assistants, 1):
            name = f"assistant {number}"
            networks[name] = materialize(self._trained(name, trainable(assistant), config.method))
            self.context = replace(self.context, teacher=networks[name])
            self._judged(name, name, networks[name])
        held = self._trained(STUDENT, student, config.method)  # what holds it says how the compact file stores it
        if config.calibrate:
            held = take_step(TemperatureScaling(), held, "temperature", self.task, self.context, self.store)
        networks[STUDENT] = materialize(held)
        own = self._judged(STUDENT, "student", networks[STUDENT])
        assert own is not None
        if config.alone and (without := without_teacher(config.method, self.task)) is not None:
            self.context.progress.say("the same student, trained as long without a teacher")
            networks[ALONE] = materialize(self._trained(ALONE, student, without))
            self._judged(ALONE, "student trained alone", networks[ALONE])
        with timed(self.seconds, "deploy"):
            scores = own if reference is None else reference
            result = exporting.export_artifacts(
                held, self.task, self.goal, self._export_context, self.folder, reference_scores=scores, int8=False
            )
        self.stages.enter(MEASURING)
        with timed(self.seconds, "measure"):
            return result, self._document(networks, result)

    @property
    def _export_context(self) -> Context:
        """For the files: a student that was cut out of its teacher comes back into a network like the teacher."""
        return self.context if self.config.student is not None else replace(self.context, original=self.teacher)

    def _student(self) -> nn.Module:
        """What is to be trained."""
        config = self.config
        if config.student is not None:
            return trainable(config.student)
        with timed(self.seconds, "search"):
            return searched(self.teacher, self.task, config.goal, self.context, self.store, self.work)

    def _trained(self, name: str, model: nn.Module, step: Method) -> nn.Module:
        """A network after a step, its weights held."""
        own = self.context.fork()
        if name != ALONE:
            own = replace(own, compile_teacher=self._cost(own.teacher, name))
        with timed(self.seconds, "student" if name == STUDENT else name):
            model = take_step(step, model, name, self.task, own, self.store)
        if name != ALONE:
            self.context.log.edits.extend(own.log.edits)
        if own.log.curves:
            parts = [asdict(one) for one in own.log.curves]
            joined = {key: [x for part in parts for x in part[key]] for key in ("loss", "score", "seconds")}
            self.curves.append(Curve(name=name, **joined))
        return model.eval()

    def _cost(self, teacher: nn.Module | None, student: str) -> bool:
        """Note what a teacher takes for a training batch; gives whether it is to be compiled."""
        if teacher is None or only_remembers(teacher):
            return False
        inputs, _ = inputs_and_target(next(iter(self.task.train)))
        method = self.config.method
        epochs = method.passes(self.task) if isinstance(method, Retrain) else 1
        steps = 0 if gives_outputs_only(teacher) else len(self.task.train) * epochs
        on_gpu = self.context.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        found = self.store.get_or_compute(
            f"times of the teacher of {student}", lambda: compiled_teacher.teacher_times(teacher, inputs, steps, device)
        )
        mode, batch = compiled_teacher.faster_form(found), len(inputs[0])
        self.context.progress.say(f"teacher of {student}: {found[mode]:.1f} ms for {batch} samples, {mode}")
        conditions = {"batch": batch, "mode": mode, "student": student, "device": device.type}
        self.rows.append(
            Record(subject=TEACHER, what="teacher_time", value=found[mode], unit="ms", conditions=conditions)
        )
        return mode == compiled_teacher.COMPILED

    def _judged(self, subject: str, name: str, model: nn.Module) -> Evaluation | None:
        """Scores on validation data; None for a teacher that knows its training data alone."""
        if only_remembers(model):
            return None
        with timed(self.seconds, "validation"):
            scores = self.reference(model, "the teacher") if subject == TEACHER else self.evaluated(model)
        self.context.progress.say(f"{name}: {self.task.metric.name} {scores} on validation")
        self.rows.append(score_record(subject, scores, split="validation"))
        return scores

    def _document(self, networks: dict[str, nn.Module], result: exporting.ExportedArtifacts) -> JobDocument:
        config, task = self.config, self.task
        measured = self._measured(networks, result)
        rows = [*measured.records, *result.records, *self.rows]
        teaching, sure = diagnostics.gather_outputs(networks, task, config.method.name(), self.curves)
        rows += sure
        if measured.detectors is not None:
            teaching = replace(teaching, classes=measured.classes)
        steps = (config.method, TemperatureScaling()) if config.calibrate else (config.method,)
        Recipe(name="taught", seed=self.context.seed, steps=steps, int8=False).save(self.folder / "recipe.yaml")
        return self.document(
            rows,
            result,
            self._export_context,
            edits=self.context.log.edits,
            task=task_row(task, len(result.scores)),
            states=self.context.log.trials,
            teaching=teaching,
            detectors=measured.detectors,
        )

    def _measured(self, networks: dict[str, nn.Module], result: exporting.ExportedArtifacts) -> exporting.Measured:
        """Costs and scores of teacher and student, and of the networks in between and next to them."""
        last = self.task.final_split
        scores = {
            subject: self.evaluated(model, last) for subject, model in networks.items() if not only_remembers(model)
        }
        costly = None if gives_outputs_only(self.teacher) else self.teacher
        measured = exporting.measure_networks(costly, result, self.task, self.goal, self.context, self.work)
        rows = list(measured.records)
        if costly is None and TEACHER in scores:
            rows.append(score_record(TEACHER, scores[TEACHER], split=last))
            if last != "validation":
                rows.append(paired_drop(scores[TEACHER], scores[STUDENT]).to_record(STUDENT, split=last))
            rows.append(result.drop.to_record(STUDENT, split="validation"))
        rows += [score_record(s, one, split=last) for s, one in scores.items() if s not in (TEACHER, STUDENT)]
        if ALONE in scores:
            gap = paired_drop(scores[ALONE], scores[STUDENT])
            rows.append(gap.to_record(STUDENT, split=last, against=ALONE))
        return measured._replace(records=rows)


def without_teacher(method: Method, task: Task) -> Method | None:
    """As long a training without a teacher, with the same options: limited gradients and mixed images too. None where
    the method is not one training."""
    if not isinstance(method, Student):
        return None
    epochs = method.passes(task) + (method.hint_epochs if isinstance(method, HintedStudent) else 0)
    same = {name: getattr(method, name) for name in ("lr", "weight_decay", "clip", "mixup", "cutmix")}
    return KD(epochs=epochs, alpha=1.0, **same)


def check_pair(teacher: nn.Module, students: Sequence[nn.Module], task: Task) -> None:
    """Refuse networks that do not take the task's inputs, and students whose outputs are unlike the teacher's."""
    known = None if only_remembers(teacher) else _output(teacher, "teacher", task)
    for student in students:
        found = _output(student, "student", task)
        if known and found and known != found:
            raise BadInput(
                f"the teacher gives outputs of shape {known}, {type(student).__name__} gives {found}; they must be "
                "equal for the same inputs"
            )


def check_scalable(student: nn.Module, task: Task) -> None:
    """Refuse students that temperature scaling is not for, before they are trained."""
    if not diagnostics.gives_classes(student, task):
        raise BadInput("calibrate: is for classifiers, which give logits (N, classes) for integer labels (N,)")
    divided(student, 2.0, task.example_inputs)


def _output(model: nn.Module, name: str, task: Task) -> tuple[int, ...] | None:
    """The shape of the output; None where it is not one tensor."""
    try:
        with torch.no_grad():
            output = materialize(model).eval()(*task.example_inputs)
    except Exception as error:
        seen = [tuple(getattr(x, "shape", ())) for x in task.example_inputs]
        raise BadInput(f"the {name} does not accept the inputs of {task.name} (shapes {seen}): {error}") from error
    return tuple(output.shape) if isinstance(output, Tensor) else None
