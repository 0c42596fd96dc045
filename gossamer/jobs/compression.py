"""The main job: a goal or a recipe in, an artifact out. Killed and started again, it goes on where it was."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from gossamer.compact.size_rows import stored_rows
from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.folder import lock_folder, writing
from gossamer.core.goal import UNASKED, Goal
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import JobDocument, Record, Trial
from gossamer.core.task import Task, task_row
from gossamer.core.validation import require_kind
from gossamer.errors import BadInput
from gossamer.jobs import exporting
from gossamer.jobs.attempts import Attempts, Delivery, timed
from gossamer.jobs.job import Artifact, Job
from gossamer.jobs.recipe import Recipe
from gossamer.jobs.shape_goal import ShapeSearch
from gossamer.jobs.size_goal import to_size
from gossamer.jobs.stages import ATTEMPTS, LOOKING, MEASURING, PLANNED, TAKING
from gossamer.measure import Evaluation, whole_samples
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.nas.planner import NeighbourhoodPlanner
from gossamer.search.checkpoint_store import data_fingerprint, job_fingerprint
from gossamer.task import check
from gossamer.train.trainable_export import trainable_export

MOST_OF_BUDGET = 0.6  # of the time budget that a search may take


@checked_arguments
@own_conditions()
def compress(
    model: nn.Module,
    task: Task,
    *,
    goal: Goal | None = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    train: bool = True,
    search: float | None = None,
    out: Path | str | None = None,
    context: Context | None = None,
    verbose: bool = True,
    command: str = "gossamer.compress(...)",
) -> Artifact:
    """Make a trained network smaller and faster; the network itself is left alone.

    Without a recipe the steps are planned for the goal: shapes that meet it by measurement, a tournament between them,
    recovery with the original as teacher, int8, and a step back where the budget is exceeded. A missed goal is no
    error: `document.missed` says by how much.

    Args:
        model: the trained network.
        task: data, loss and metric.
        goal: what to gain and what may be lost.
        recipe: steps to take instead of planned ones; the goal then only judges.
        epochs: of every recovery of a planned job; None: 12, or as many as give 400 steps.
        lr: highest learning rate of every recovery of a planned job; None: found by short trials.
        train: False: nothing is trained; shapes are fitted by least squares and by the statistics of batch norms, which
            takes minutes and no labels (`gossamer.measure.judged_by`).
        search: minutes in which the original is trained as a once-for-all network and its sub-networks are searched,
            instead of the tournament (`gossamer.nas.neighbourhood`). None: the tournament.
        out: the folder of the result; it makes the job resumable. None: a new temporary one.
        context: seed, device, teacher and progress.
        verbose: messages to the logger "gossamer" and a bar on a terminal; False: nothing.
        command: how the job was started, for its document.

    Returns:
        The network, its files and all that was measured.

    Raises:
        BadInput: arguments, a network or data that cannot be used.
        Diverged: a training that could not be saved.
        ExportMismatch: a deployed network that computes something else.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.methods.prune import ChannelPruning
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> recipe = gossamer.Recipe(name="half", steps=(ChannelPruning(sparsity=0.5),), int8=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = compress(model, task, recipe=recipe, out=folder, verbose=False)
        >>> done
        Artifact(Sequential, no goal, ...)
        >>> [edit.method for edit in done.document.edits][0]
        'prune.channels'
    """
    if goal is None and recipe is None:
        raise BadInput("compress needs a goal or a recipe; for example goal=Goal(max_drop=0.5, speedup=3)")
    require_kind("task", task, Task, "load_task('digits') or Task.from_loaders(train, validation)")
    require_kind("goal", goal, Goal, "Goal(max_drop=0.5, speedup=3)", optional=True)
    require_kind("recipe", recipe, Recipe, 'Recipe(name="mine", steps=(method, ...))', optional=True)
    if recipe is not None and (epochs is not None or lr is not None):
        raise BadInput("epochs and lr are for planned jobs; with a recipe, write them into its steps")
    if not train:
        _check_untrained(goal, recipe, epochs, lr)
    if search is not None:
        _check_search(search, goal, recipe, train)
    if goal is not None:
        goal = goal.here() if recipe is not None else goal.to_plan().here()
    context = (context or Context()).with_progress(verbose)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    with lock_folder(folder), writing(folder):
        recover = RecoveryDistillation(epochs=epochs, lr=lr) if train else RecoveryDistillation(steps=0)
        with context.progress.busy(LOOKING):
            planning = Planning(recover, search)
            job = CompressionJob(model, task, goal, recipe, planning, folder, context, command)
        return job.execute()


def _check_search(minutes: float, goal: Goal | None, recipe: Recipe | None, train: bool) -> None:
    """Refuse a search that has nothing to search, or no time."""
    if not 0 < minutes < math.inf:
        raise BadInput(f"search = {minutes}: must be greater than 0 minutes", shell=f"--search {minutes}: too short")
    if recipe is not None or not train:
        raise BadInput(
            "search is for planned jobs that train: give a goal, no recipe, and leave train=True",
            shell="--search is for planned jobs that train: leave out --recipe and --no-train",
        )
    if goal is not None and not goal.shape_gains:
        names = ", ".join(goal.gains)
        raise BadInput(
            f"{names}: a search looks for a shape; give it a goal of time, macs or params",
            shell=f"{names}: --search looks for a shape; give --speedup, --latency-ms, --macs or --params",
        )
    budget = goal.time_budget if goal is not None else None
    if budget is not None and minutes > MOST_OF_BUDGET * budget:
        rule = f"at most {100 * MOST_OF_BUDGET:.0f} % of it, since the recovery needs the rest"
        raise BadInput(
            f"search = {minutes:g} minutes of time_budget = {budget:g}: {rule}",
            shell=f"--search of {minutes:g} minutes of --time-budget {budget:g}: {rule}",
        )


def _check_untrained(goal: Goal | None, recipe: Recipe | None, epochs: int | None, lr: float | None) -> None:
    """Refuse what would need a training."""
    if recipe is not None:
        raise BadInput(
            "train=False is for planned jobs; a recipe says by its steps what is trained",
            shell=("--no-train is for planned jobs; a recipe says by its steps what is trained"),
        )
    if epochs is not None or lr is not None:
        raise BadInput(
            "epochs and lr are about trainings; train=False does none",
            shell=("--epochs and --lr are about trainings; --no-train does none"),
        )
    if goal is not None and goal.size_gains:
        names = ", ".join(goal.size_gains)
        raise BadInput(
            f"{names}: a network is trained into a file of that size; train=False cannot do it",
            shell=(f"{names}: a network is trained into a file of that size; --no-train cannot do it"),
        )


@dataclass(frozen=True)
class Planning:
    """How a planned job trains, and for how many minutes it searches the neighbourhood; None: a tournament."""

    recover: RecoveryDistillation
    search: float | None = None


class CompressionJob(Job):
    """One run of the main job in a folder."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        goal: Goal | None,
        recipe: Recipe | None,
        planning: Planning,
        folder: Path,
        context: Context,
        command: str,
    ) -> None:
        stages = (TAKING, MEASURING) if recipe else (*PLANNED, MEASURING)
        super().__init__(task, goal or UNASKED, folder, command, stages)
        self.original = trainable_export(copy_network(model)).eval()
        check(task, self.original)
        self.recipe, self.recover, self.search = recipe, planning.recover, planning.search
        self.budget = ""
        steps = recipe.steps if recipe else None
        teacher = job_fingerprint(context.teacher) if context.teacher is not None else None
        searched = (self.search,) if self.search is not None else ()
        about = goal, steps, self.recover, context.seed, data_fingerprint(task), teacher, *searched
        key = job_fingerprint(self.original, *about)
        self.open_store(key, context.fork(folder=self.work, original=self.original, goal=self.goal))
        self.shaping: ShapeSearch | None = None

    def run(self) -> tuple[exporting.ExportedArtifacts, JobDocument]:
        trains = self.recover.trains if self.recipe is None else any(hasattr(s, "epochs") for s in self.recipe.steps)
        shaped = None if self.goal.shape_gains else False
        self.try_out(self.original, trains=trains, int8=self.recipe.int8 if self.recipe else shaped)
        with timed(self.seconds, "original"):
            reference = self.reference(self.original, "the original network")
        self.context.progress.say(f"original: {self.task.metric.name} {reference} on validation")
        self._round_budget(reference)
        self.attempts = Attempts(
            original=self.original,
            task=self.task,
            goal=self.goal,
            context=self.context,
            store=self.store,
            folder=self.folder,
            reference=reference,
            judged=self.goal.judges,
            seconds=self.seconds,
            stages=self.stages,
        )
        delivery = self._from_recipe(self.recipe) if self.recipe else self._from_goal()
        self.stages.enter(MEASURING)
        with timed(self.seconds, "measure"):
            return delivery.result, self._document(delivery)

    def _round_budget(self, reference: Evaluation) -> None:
        """A budget that is worth a part of a sample is rounded up, and said so at the start."""
        asked, n, point = self.goal.max_drop, len(reference), reference.metric.points
        allowed = whole_samples(asked, reference)
        if allowed != asked:
            samples = f"{asked:g} points are {asked * n * point:.1f} of {n} validation samples"
            self.budget = f"{samples}: {allowed * n * point:.0f} may be lost"
            self.context.progress.say(f"budget: {self.budget}")
            self.goal = replace(self.goal, max_drop=allowed)
            self.context = replace(self.context, goal=self.goal)

    def _from_recipe(self, recipe: Recipe) -> Delivery:
        self.stages.enter(TAKING)
        model = self.attempts.take(recipe.steps, "recipe", self.context, note=True)
        result = self.attempts.deploy(model, "recipe", int8=recipe.int8)
        return Delivery(steps=recipe.steps, result=result, edits=self.context.log.edits)

    def _from_goal(self) -> Delivery:
        """A faster shape where the goal asks for one, then a smaller file where it asks for that."""
        # A rate that was given is the recovery's where there is one, by SGD: training into a file is by AdamW.
        lr = None if self.goal.shape_gains else self.recover.lr
        if self.goal.shape_gains:
            self.shaping = ShapeSearch(self.attempts, self.recover, self.search, NeighbourhoodPlanner.of)
            shaped = self.shaping.search()
        else:
            shaped = self.attempts.untouched()
        self.stages.enter(ATTEMPTS)
        if not self.goal.size_gains:
            return shaped
        return to_size(self.attempts, shaped, epochs=self.recover.passes(self.task), lr=lr)

    def _document(self, delivery: Delivery) -> JobDocument:
        task, goal, result = self.task, self.goal, delivery.result
        measured = exporting.measure_networks(self.original, result, task, goal, self.context, self.work)
        rows = [*measured.records, *result.records]
        name = self.recipe.name if self.recipe else "planned"
        chosen = Recipe(name=name, seed=self.context.seed, steps=delivery.steps, int8=result.int8_path is not None)
        chosen.save(self.folder / "recipe.yaml")
        document = self.document(
            rows,
            result,
            self.context,
            edits=delivery.edits,
            task={
                "model": self.context.note.get("model", type(self.original).__name__),
                **task_row(task, len(self.attempts.reference)),
                **({"budget": self.budget} if self.budget else {}),
            },
            states=self._states(rows, result),
            layers_before=exporting.layers(self.original, self.work / "original.onnx", task, goal, precision="float32"),
            layers_after=exporting.layers(result.model, result.deployed, task, goal, precision=result.precision),
            int8_steps=list(result.int8_steps),
            curves=self.context.log.curves,
            classes=measured.classes,
            detectors=measured.detectors,
        )
        document.stored = stored_rows(self.original, self.folder / "model.gsr")
        document.why = self._why(document.missed, rows)
        return document

    def _why(self, missed: list[str], rows: list[Record]) -> list[str]:
        """Why a goal of time or operations was missed, for the log and the document."""
        if self.shaping is None or not any(line.split(":")[0] in self.goal.shape_gains for line in missed):
            return []
        lines = self.shaping.why(rows)
        for line in lines:
            self.context.progress.say(line)
        return lines

    def _states(self, rows: list[Record], result: exporting.ExportedArtifacts) -> list[Trial]:
        """The states tried, and the original in float32 to set them against."""
        times = {
            str(row.conditions["runtime"]): row.value
            for row in rows
            if row.what == "latency" and row.subject == exporting.ORIGINAL
        }
        value = {
            (row.what, row.subject): int(row.value) for row in rows if row.what in ("macs", "params", "compact_bytes")
        }
        first = Trial(
            name="original float32",
            score=self.attempts.reference.shown,
            drop=0.0,
            latency_ms=times,
            macs=value["macs", exporting.ORIGINAL],
            params=value["params", exporting.ORIGINAL],
            file_bytes=value["compact_bytes", exporting.ORIGINAL],
            accepted=True,
        )
        return [first, *self.context.log.trials]
