"""The main job: a goal or a recipe in, an artifact out. Killed and started again, it goes on where it was."""

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from gossamer import deliver
from gossamer.deploy import open_runner
from gossamer.deploy.gsr.rows import stored_rows
from gossamer.errors import BadInput, Diverged
from gossamer.folder import lock_folder, writing
from gossamer.goal import Goal
from gossamer.measure import Drop, accuracy, paired_drop
from gossamer.methods.base import Method
from gossamer.methods.distill.recover import Recover
from gossamer.methods.quantize.rate import RateQuantize, least_bytes
from gossamer.network import bake, dense_bytes, layer_costs
from gossamer.recipe import Recipe
from gossamer.record import Edit, JobDocument, Record, State, environment, write_text
from gossamer.report import write_report
from gossamer.run import Run
from gossamer.search.journal import Journal, data_fingerprint, fingerprint, take_step
from gossamer.search.plan import Planner, state
from gossamer.search.price import AIM, Pricer, Quote
from gossamer.search.shapes import Steps
from gossamer.task import Task, check
from gossamer.train.thaw import thawed

ATTEMPTS = 3
HARDER = 1.05  # times: at least so much further is cut when a result just misses, else the same shape is found again
SPOILED = 1.2  # times the need that was planned for: more, and the measurements that it was planned by are wrong
NO_WEIGHTS = 2.0  # times the bytes of a file without weights: smaller ones are not tried


@dataclass(frozen=True)
class Artifact:
    """The result: the compressed network, all that was measured, and the folder with its files."""

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

    def save(self, folder: Path | str) -> Path:
        """Copy the files of the artifact to another folder."""
        with writing(Path(folder)):
            return Path(
                shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("work", ".*"))
            )


@dataclass(frozen=True)
class Attempt:
    """A result within the budget. need: of its time, over what the goal allows."""

    steps: Steps
    result: deliver.Delivered
    need: float
    edits: list[Edit]


def compress(
    model: nn.Module,
    task: Task,
    *,
    goal: Goal | None = None,
    recipe: Recipe | None = None,
    epochs: int = 12,
    out: Path | str | None = None,
    run: Run | None = None,
    command: str = "gossamer.compress(...)",
) -> Artifact:
    """Make a trained network smaller and faster; the network itself is left alone.

    goal: what to gain and what may be lost. Without a recipe the steps are planned for it: shapes that meet it by
    measurement, a race between them, recovery with the original as teacher, int8, and a step back where the budget is
    exceeded. recipe: steps to take instead. epochs: of every recovery. out: the folder of the result; it makes the job
    resumable. A missed goal is no error: `document.missed` says by how much.

    Raises BadInput for arguments, models and data that cannot be used, Diverged, ExportMismatch.
    """
    if goal is None and recipe is None:
        raise BadInput("compress needs a goal or a recipe; for example goal=Goal(max_drop=0.5, speedup=3)")
    run = run or Run()
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    with lock_folder(folder), writing(folder):
        return Job(model, task, goal, recipe, epochs, folder, run, command).execute()


def finished(model: nn.Module, document: JobDocument, folder: Path) -> Artifact:
    """The result, its document and report written."""
    write_text(folder / "records.json", document.dump())
    write_report(document, folder / "report.html")
    return Artifact(model, document, folder)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds to the seconds of a part of a job."""
    start = time.monotonic()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 1)


def larger(tries: int, over: float) -> float:
    """How many times larger the next file may be, when this one lost so many points more than allowed."""
    return min(4.0, 1.25 + tries / 4 + over / 2)


def recovery_lr(model: nn.Module) -> float:
    """Batch norms let a network take large steps; without them the loss explodes at the same rate."""
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return 0.1 if any(isinstance(module, batch_norms) for module in model.modules()) else 0.02


class Job:
    """One run of the main job in a folder."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        goal: Goal | None,
        recipe: Recipe | None,
        epochs: int,
        folder: Path,
        run: Run,
        command: str,
    ) -> None:
        self.original = thawed(copy.deepcopy(model)).eval()
        check(task, self.original)  # before there is a journal: what is refused leaves no work
        self.task, self.recipe, self.folder, self.command = task, recipe, folder, command
        self.asked = goal
        self.goal = goal or Goal(max_drop=100, speedup=1)  # a recipe alone is judged by nothing, only measured
        self.recover = Recover(epochs=epochs, lr=recovery_lr(self.original))
        self.work = folder / "work"
        steps = recipe.steps if recipe else None
        teacher = fingerprint(run.teacher) if run.teacher is not None else None
        key = fingerprint(self.original, goal, steps, self.recover, run.seed, data_fingerprint(task), teacher)
        self.journal = Journal(self.work, key)
        self.run = replace(run, folder=self.work, original=self.original, goal=self.goal)
        self.seconds: dict[str, float] = self.journal.results.setdefault("seconds", {})

    def execute(self) -> Artifact:
        """Everything, in order."""
        with timed(self.seconds, "original"):
            self.reference_scores = accuracy(open_runner("torch", self.original, threads=self.goal.threads), self.task)
        self.run.progress.say(f"original: validation {100 * float(self.reference_scores.mean()):.2f} %")
        steps, result = self._from_recipe() if self.recipe else self._from_goal()
        with timed(self.seconds, "measure"):
            document = self._document(steps, result)
        return finished(result.model, document, self.folder)

    def _from_recipe(self) -> tuple[Steps, deliver.Delivered]:
        assert self.recipe is not None
        model = self._take(self.recipe.steps, "recipe", note=True)
        return self.recipe.steps, self._deliver(model, "recipe", int8=self.recipe.int8)

    def _from_goal(self) -> tuple[Steps, deliver.Delivered]:
        """A faster shape where the goal asks for one, then a smaller file where it asks for that."""
        steps, result = self._to_shape() if self.goal.shape_gains else ((), self._untouched())
        return self._to_size(steps, result) if self.goal.size_gains else (steps, result)

    def _untouched(self) -> deliver.Delivered:
        return self._deliver(self.original, "the original", int8=False)

    def _to_size(self, steps: Steps, whole: deliver.Delivered) -> tuple[Steps, deliver.Delivered]:
        """Train into a file of the size asked for, or into larger and larger ones until the budget is kept."""
        dense = dense_bytes(self.original)
        size = asked = self.goal.file_limit(dense)
        if whole.compact_bytes <= asked:
            return steps, whole
        least = least_bytes(whole.model, self.task)
        if asked < NO_WEIGHTS * least:
            self.run.progress.say(f"without its weights the file would have {least:,} bytes already")
            size = NO_WEIGHTS * least
        before = list(self.run.history)
        tries = 0
        while size < min(dense, whole.compact_bytes):
            small = RateQuantize(compression_ratio=dense / size, epochs=self.recover.epochs)
            self.run.history[:] = before
            result = self._sized(whole, small, f"size {size:,.0f} bytes")
            if result is not None and result.drop.within(self.goal.max_drop):
                return (*steps, small), result
            size *= larger(tries, result.drop.points - self.goal.max_drop if result else math.inf)
            tries += 1
        self.run.history[:] = before
        self.run.progress.say("no smaller file is within the budget")
        return steps, self._deliver(whole.model, "without a smaller file", int8=whole.int8_path is not None)

    def _sized(self, whole: deliver.Delivered, small: RateQuantize, name: str) -> deliver.Delivered | None:
        """The network trained into a file, noted as a state; None where it cannot be trained so small."""
        try:
            model = bake(self._step(whole.model, small, name)).eval()
        except Diverged as error:
            self.run.progress.say(f"{name}: {error}")
            return None
        result = self._deliver(model, name, int8=whole.int8_path is not None)
        self._note_size(name, result.model, result.scores, result.drop, result.compact_bytes)
        return result

    def _note_size(self, name: str, model: nn.Module, scores: Tensor, drop: Drop, file_bytes: int) -> None:
        """A mark in the plot of accuracy over file size. Without a goal, nothing is rejected."""
        self.run.states.append(
            State(
                name=name,
                top1=100 * float(scores.mean()),
                drop=drop.points,
                latency_ms={},
                macs=sum(cost.macs for cost in layer_costs(model, self.task.example_inputs)),
                params=sum(p.numel() for p in model.parameters()),
                file_bytes=file_bytes,
                accepted=self.asked is None or drop.within(self.goal.max_drop),
            )
        )

    def _to_shape(self) -> tuple[Steps, deliver.Delivered]:
        """Plan, try, step back: the first result within the budget. The last try cuts nothing."""
        pricer, int8 = self._pricer()
        whole = pricer("original", lambda: self.original)
        reference = 100 * float(self.reference_scores.mean())
        planner = Planner(self.original, self.task, self.run, self.journal, pricer, self.recover, reference)
        # From the goal, in equal ratios, to what deployment alone reaches.
        eases = [max(1.0, whole.worst / AIM) ** (attempt / ATTEMPTS) for attempt in range(ATTEMPTS + 1)]
        tried: list[Steps] = []
        for ease in eases:
            found = self._attempt(planner, pricer, whole, ease, tried, int8=int8)
            if found is None:
                continue
            if found.need > 1 and ease == 1.0:
                found = self._harder(planner, pricer, whole, found, tried)
            self.run.history[:] = found.edits
            return found.steps, found.result
        self.run.history.clear()
        return (), self._untouched()

    def _harder(
        self, planner: Planner, pricer: Pricer, whole: Quote, found: "Attempt", tried: list[Steps]
    ) -> "Attempt":
        """Once more, cutting further, because what was within the budget turned out slower than it was planned."""
        self.run.progress.say(f"the result needs {found.need:.2f} times what the goal allows: cutting further")
        int8 = found.result.int8_path is not None
        if found.need > SPOILED:
            pricer.measure_anew()
            whole = pricer("original", lambda: self.original)
        better = self._attempt(planner, pricer, whole, 1 / min(max(found.need, HARDER), SPOILED), tried, int8=int8)
        if better is not None and better.need < found.need:
            return better
        # The files in the folder are of the last try.
        return replace(found, result=self._deliver(found.result.model, "the first result again", int8=int8))

    def _attempt(
        self, planner: Planner, pricer: Pricer, whole: Quote, ease: float, tried: list[Steps], *, int8: bool
    ) -> "Attempt | None":
        """Plan for the goal with `ease` times what it allows, take the steps, deploy. None: over the budget, no shape
        that will do, or tried before."""
        steps: Steps | None = ()
        if whole.worst > AIM * ease:
            with timed(self.seconds, "plan"):
                steps = planner.plan(whole, ease=ease)
        if steps is None:
            self.run.progress.say(f"no shape reaches the goal, not even with {ease:.2f} times what it allows")
        if steps is None or steps in tried:
            return None
        tried.append(steps)
        name = f"attempt {len(tried)}"
        self.run.history.clear()
        model = self._take(steps, name)
        if steps:
            self.run.history.extend(planner.left(steps))
        result = self._deliver(model, name, int8=int8)
        accepted = result.drop.within(self.goal.max_drop)
        self._note(pricer, result, name, accepted)
        need = self.journal.remember(
            f"need of {name}", lambda: pricer.check(result.deployed, result.model, result.precision)
        )
        return Attempt(steps, result, need, list(self.run.history)) if accepted else None

    def _pricer(self) -> tuple[Pricer, bool]:
        """A pricer in the precision that is faster here, or smaller where the goal does not ask for time."""
        quotes = {}
        for int8 in (False, True):
            if int8 and self.goal.runtime in ("torch", "torch.compile"):
                continue  # these run float32
            quotes[int8] = Pricer(self.original, self.task, self.goal, self.journal, self.work, int8=int8)
        if len(quotes) == 1:
            return quotes[False], False
        worst = {int8: pricer(f"original int8={int8}", lambda: self.original).worst for int8, pricer in quotes.items()}
        better = worst[True] <= worst[False]
        if not better:
            self.run.progress.say("int8 is not faster than float32 here: it is left out")
        return quotes[better], better

    def _take(self, steps: Steps, tag: str, *, note: bool = False) -> nn.Module:
        """The network after the steps, its weights held. What was done before a kill comes from the journal.
        note: whether the network after each step is judged, and its file written, for the plot of what was tried."""
        model = copy.deepcopy(self.original)
        for number, step in enumerate(steps):
            model = self._step(model, step, f"{tag}, step {number}, {step.name()}")
            if note:
                self._note_step(model, f"after {step.name()}")
        return model.eval()

    def _note_step(self, held: nn.Module, name: str) -> None:
        model = bake(held).eval()
        with timed(self.seconds, "judge steps"):
            scores = accuracy(open_runner("torch", model, threads=self.goal.threads), self.task)
            size = deliver.save_compact(held.eval(), self.task, self.work / "step.gsr", self.run)
        self._note_size(name, model, scores, paired_drop(self.reference_scores, scores), size)

    def _step(self, model: nn.Module, step: Method, name: str) -> nn.Module:
        """The network after a step; its edits go to the history."""
        with timed(self.seconds, name):
            return take_step(step, model, name, self.task, self.run, self.journal)

    def _deliver(self, model: nn.Module, name: str, *, int8: bool) -> deliver.Delivered:
        with timed(self.seconds, f"deploy {name}"):
            result = deliver.deliver(
                model, self.task, self.goal, self.run, self.folder, reference_scores=self.reference_scores, int8=int8
            )
        self.run.progress.say(f"{name}: drop {result.drop.points:.2f} points on validation")
        return result

    def _note(self, pricer: Pricer, result: deliver.Delivered, name: str, accepted: bool) -> None:
        quote = pricer(name, lambda: result.model)
        top1 = 100 * float(result.scores.mean())
        self.run.states.append(state(name, quote, top1, pricer, drop=result.drop.points, accepted=accepted))

    def _document(self, steps: Steps, result: deliver.Delivered) -> JobDocument:
        task, goal = self.task, self.goal
        rows = [*deliver.measure(self.original, result, task, goal, self.run, self.work), *result.records]
        missed = deliver.missed(goal, rows, result.drop) if self.asked else []
        name = self.recipe.name if self.recipe else "planned"
        chosen = Recipe(name=name, seed=self.run.seed, steps=steps, int8=result.int8_path is not None)
        chosen.save(self.folder / "recipe.yaml")
        return JobDocument(
            command=self.command,
            goal=asdict(goal) if self.asked else {},
            task={"name": task.name, "measure": task.measure, "validation": len(self.reference_scores)},
            met=not missed,
            missed=missed,
            seconds=self.seconds,
            environment=environment(),
            records=rows,
            edits=self.run.history,
            states=self._states(rows, result),
            layers_before=deliver.layers(self.original, self.work / "original.onnx", task, goal, precision="float32"),
            layers_after=deliver.layers(result.model, result.deployed, task, goal, precision=result.precision),
            int8_ladder=list(result.ladder),
            files=deliver.save_files(result, task, self.folder, self.run),
            stored=stored_rows(self.original, self.folder / "model.gsr"),
        )

    def _states(self, rows: list[Record], result: deliver.Delivered) -> list[State]:
        """The states tried, and the original in float32 to set them against."""
        times = {
            str(row.conditions["runtime"]): row.value
            for row in rows
            if row.what == "latency" and row.subject == deliver.ORIGINAL
        }
        value = {
            (row.what, row.subject): int(row.value) for row in rows if row.what in ("macs", "params", "compact_bytes")
        }
        first = State(
            name="original float32",
            top1=100 * float(self.reference_scores.mean()),
            drop=0.0,
            latency_ms=times,
            macs=value["macs", deliver.ORIGINAL],
            params=value["params", deliver.ORIGINAL],
            file_bytes=value["compact_bytes", deliver.ORIGINAL],
            accepted=True,
        )
        return [first, *self.run.states]
