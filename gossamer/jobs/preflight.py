"""What a job tries before it begins: all that it will need at its end, on a few samples."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gossamer.compact.capture import capture
from gossamer.constraints.apply import materialize
from gossamer.core.batches import Model, cross_entropy, inputs_and_target
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import copy_network, state_of
from gossamer.core.goal import Goal
from gossamer.core.outputs import tensors
from gossamer.core.placement import place_whole
from gossamer.core.task import Task, evaluation
from gossamer.core.units import PERCENT
from gossamer.data.probing import LoaderProbe, NumberedBatch, batch_parts, probe_loader, shapes
from gossamer.errors import BadInput
from gossamer.jobs import exporting
from gossamer.measure import Evaluation, Runner, Top1
from gossamer.modules.cost import layer_costs
from gossamer.ptq.isolated_layers import quantize_for_timing
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify
from gossamer.search.device_profile import profile_of
from gossamer.search.failures import ends_the_job, failure_reason
from gossamer.train.distillation import are_logits

WORK = 50_000_000_000  # multiply-adds of one batch: a larger one is tried with fewer samples
FEWEST = 2  # samples of a batch that is cut
FAR = 0.05  # scores of a sample that differ by more, of errors by such a part of the largest, are other scores
ALIKE = 0.9  # at least so many of the scores, all but one of few
PAD = "exported networks take any number of samples of the example inputs' sizes: pad, crop or scale the data to these"
IGNORED = -100  # what torch's losses leave out

T = TypeVar("T")


def preflight(model: nn.Module, task: Task, goal: Goal, context: Context, *, trains: bool, int8: bool | None) -> None:
    """Run what will be run after hours: batches of every shape through loss, metric and network, the exported network
    on every runtime, the metric on what it gives there, and a look at the labels of all splits.

    Of the test set no score is computed. trains: whether the network is trained. int8: None where the job itself
    decides. Raises BadInput with what failed, where, and what would help.
    """
    profile_of(goal)
    with own_randomness(), tempfile.TemporaryDirectory() as folder:
        trial = PreflightCheck(model, task, goal, context, Path(folder))
        with context.progress.busy("trying a batch of every shape"):
            trial.probe()
            if trains:
                trial.train()
            trial.evaluate()
            trial.labels()
        with context.progress.busy("trying the export on every runtime"):
            trial.deploy(int8)


@dataclass
class PreflightCheck:
    """One rehearsal. The network itself is left alone."""

    model: nn.Module
    task: Task
    goal: Goal
    context: Context
    folder: Path

    def __post_init__(self) -> None:
        self.plain = materialize(self.model).eval()
        self.probes: dict[str, LoaderProbe] = {}
        self.scores: dict[int, Evaluation] = {}  # of batches of the validation data
        try:
            macs = sum(cost.macs for cost in layer_costs(self.plain, self.task.example_inputs))
        except Exception:  # a wrong bound costs time alone
            macs = 0
        self.most = max(FEWEST, WORK // max(macs, 1))

    def probe(self) -> None:
        """Look through the loaders."""
        for name in ("train", "validation", "test", "calibration"):
            if name == "test" and self.task.test is None:
                self.probes[name] = LoaderProbe()
                continue
            self.probes[name] = _tried(
                f"the {name} data of {self.task.name}", "", probe_loader, getattr(self.task, name)
            )

    def train(self) -> None:
        """The loss in train mode, and one run backwards."""
        student = copy_network(self.model).train()
        found = self.probes["train"].batches()
        smallest = min(found, key=lambda one: sum(torch.Size(s).numel() for s in shapes(one.batch)))
        for one in found:
            batch = self._few(one)
            where = self._where("train", batch, one)
            fix = "drop_last=True leaves out a last batch of one sample" if len(_first(batch)) == 1 else ""
            loss = _tried(f"{where}: the loss in train mode", fix, self._loss, student, batch)
            if one is smallest and loss.requires_grad:
                _tried(f"{where}: the gradient of the loss", "", loss.backward)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Network and metric in eval mode. The metric sees nothing of the test set."""
        for one in self.probes["validation"].batches():
            batch = self._few(one)
            what = f"{self._where('validation', batch, one)}: the metric"
            self.scores[one.number] = _tried(what, "", evaluation, self.task, self.plain, [batch])
        for name in ("test", "calibration"):
            for one in self.probes[name].by_shape.values():
                batch = self._few(one)
                _tried(f"{self._where(name, batch, one)}: the network", "", self.plain, *inputs_and_target(batch)[0])

    @torch.no_grad()
    def labels(self) -> None:
        """Labels of classes that the network has no output for."""
        inputs, target = inputs_and_target(self._few(next(iter(self.probes["validation"].by_shape.values()))))
        outputs = list(tensors(self.plain(*inputs)))
        if len(outputs) != 1 or not are_logits(outputs[0], target):
            return
        classes = outputs[0].shape[1]
        taken = {IGNORED} if not isinstance(self.task.metric, Top1) else set[int]()
        for name in ("validation", "train", "test"):
            found = self.probes[name]
            ends = [end for end in (found.low, found.high) if end is not None and not 0 <= end[0] < classes]
            own = self.task.loss is not cross_entropy if name == "train" else not isinstance(self.task.metric, Top1)
            if name != "test" and own:  # loss or metric have taken a batch with them
                taken |= {label for label, _ in ends}
            allowed = taken | ({IGNORED} if name == "train" else set())
            for label, where in ends:
                if label not in allowed:
                    place = f", batch {where.number}" if where is not None else ""
                    raise BadInput(
                        f"the {name} data of {self.task.name}{place}: label {label}, where the network has {classes} "
                        f"outputs; labels count from 0 to {classes - 1}: correct them, or give the network an output "
                        "for every class"
                    )

    @torch.no_grad()
    def deploy(self, int8: bool | None) -> None:
        """The exported network on every runtime that results are measured on."""
        task, example = self.task, self.task.example_inputs
        what = f"the export of the network with the inputs of {task.name}"
        path = _tried(what, "", export_onnx, self.plain, example, self.folder / "model.onnx")
        needed = ("onnxruntime", self.goal.runtime)
        for runtime in exporting.runtimes(self.goal):
            exported = runtime in exporting.EXPORTED
            try:
                runner = open_runner(runtime, path if exported else self.plain, threads=self.goal.threads)
                self._on(runner)
            except Exception as error:
                if ends_the_job(error) or (isinstance(error, BadInput) and runtime in needed):
                    raise
                if runtime in needed:
                    raise BadInput(f"the exported network, on {runtime}: {failure_reason(error)}") from error
                self.context.progress.say(
                    f"{runtime} does not run this network, times on it are left out: {failure_reason(error)}"
                )
        if int8 is not False:
            self._int8(path, asked=bool(int8))
        try:
            capture(self.plain, example, list(state_of(self.plain)), dynamic_batch=True)
        except Exception as error:
            self.context.progress.say(
                f"model.gsr will hold the weights alone, for load(path, into=model): {failure_reason(error)}"
            )

    def _on(self, runner: Runner, *, int8: bool = False) -> None:
        """Network and metric on one runtime, with batches of every shape."""
        for name in ("validation", "test"):
            for one in self.probes[name].by_shape.values():
                batch = self._few(one)
                where = f"{self._where(name, batch, one)}, on {runner.runtime}{' in int8' if int8 else ''}"
                advice = PAD if runner.runtime in exporting.EXPORTED else ""
                _tried(f"{where}: the network", advice, runner, *inputs_and_target(batch)[0])
                if name == "validation":
                    if runner.runtime == "onnxruntime" and not int8:
                        _tried(where, "", verify, self.plain, runner, [batch])
                    got = _tried(f"{where}: the metric", "", evaluation, self.task, runner, [batch])
                    if not int8:
                        _compare(self.scores[one.number], got, where)
                if runner.runtime == "torch.compile":
                    return  # it compiles every further shape for minutes

    def _int8(self, path: Path, *, asked: bool) -> None:
        """asked: where int8 fails, the job is refused; else it is left out later."""
        goal, small = self.goal, path.with_suffix(".int8.onnx")
        if not asked and goal.runtime not in exporting.EXPORTED:
            return
        inputs = inputs_and_target(self._few(next(iter(self.probes["calibration"].by_shape.values()))))[0]
        try:
            quantize_for_timing(path, small, inputs, threads=goal.threads)
        except Exception as error:
            if asked or ends_the_job(error):
                raise BadInput(f"int8 of this network: {failure_reason(error)}; leave int8 out") from error
            self.context.progress.say(f"int8 is left out: {failure_reason(error)}")
            return
        runtime = goal.runtime if goal.runtime in exporting.EXPORTED else "onnxruntime"
        self._on(open_runner(runtime, small, threads=goal.threads, precision="int8"), int8=True)

    def _loss(self, student: Model, batch: Any) -> Tensor:
        loss = self.task.loss(student, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise BadInput("it must be a tensor with one number")
        return loss

    def _few(self, found: NumberedBatch) -> Any:
        """A batch where the network is; fewer of its samples where the network takes long."""
        batch = place_whole(self.plain, found.batch)
        first = _first(batch)
        sizes = {len(x) if x.dim() else 0 for x in tree_leaves(batch) if isinstance(x, Tensor)}
        if len(first) <= self.most or sizes != {len(first)}:
            return batch
        return tree_map_only(Tensor, lambda x: x[: self.most], batch)

    def _where(self, name: str, batch: Any, found: NumberedBatch) -> str:
        listed = ", ".join("x".join(map(str, shape)) or "a number" for shape in shapes(batch_parts(batch)[0]))
        return f"the {name} data of {self.task.name}, batch {found.number} (inputs of {listed})"


def _first(batch: Any) -> Tensor:
    first = next((x for x in tree_leaves(batch_parts(batch)[0]) if isinstance(x, Tensor)), None)
    return first if isinstance(first, Tensor) and first.dim() else torch.empty(0)


def _compare(expected: Evaluation, got: Evaluation, where: str) -> None:
    """Scores of the same samples must be the same, but for rounding: sample by sample where there is one each."""
    rule = "it must depend on nothing but what the network gives"
    old, new = expected.per_sample, got.per_sample
    if old is None or new is None:
        scale = max(abs(expected.value), abs(got.value))
        if abs(expected.value - got.value) > FAR * (scale + expected.metric.points):
            raise BadInput(
                f"{where}: the metric gives {got}, for the network in torch {expected}, on {len(got)} samples; {rule}"
            )
        return
    far = (
        FAR * old.abs().clamp_min(1.0)
        if expected.metric.unit == PERCENT
        else FAR * (old.abs().max() + expected.metric.points)
    )
    other = int(((old - new).abs() > far).sum())
    if other > max(1, (1 - ALIKE) * len(old)):
        raise BadInput(
            f"{where}: the metric gives other scores than for the network in torch, for {other} of {len(old)} "
            f"samples; {rule}"
        )


def _tried(what: str, fix: str, compute: Callable[..., T], *args: Any) -> T:
    """What is computed. Raises BadInput that says what failed and why."""
    try:
        return compute(*args)
    except Exception as error:
        if ends_the_job(error):
            raise
        raise BadInput(f"{what}: {failure_reason(error)}{'; ' if fix else ''}{fix}") from error
