"""What the methods that teach a student share: whom it learns from, on what data, and which layers are compared."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, unknown
from gossamer.losses import hint_loss, logit_loss
from gossamer.methods._training import Retrain
from gossamer.train import Distillation, Training, TrainingResult
from gossamer.train.batches import own_randomness, seed_everything
from gossamer.train.distillation import LossTerm, SoftLoss
from gossamer.train.feature_hooks import (
    Adapt,
    FeatureLoss,
    Pair,
    hooked,
    listed,
    stages,
)
from gossamer.train.mixup import mixed
from gossamer.train.teachers import gives_outputs_only


@dataclass(frozen=True, kw_only=True)
class Student(Retrain):
    """alpha weighs the hard loss, 1 - alpha what the teacher's outputs teach; temperature_end, alpha_end: what both
    become, linearly, until the end. lr: the peak of a cosine schedule, None to find one. mixup, cutmix: images are
    mixed, for student and teacher alike, by shares from Beta(a, a); 0 for none."""

    temperature_end: Annotated[float | None, Range(0, 1000, open_=("low",))] = None
    alpha_end: Annotated[float | None, Range(0, 1)] = None
    mixup: Annotated[float, Range(0, 100)] = 0.0
    cutmix: Annotated[float, Range(0, 100)] = 0.0

    def training(self, task: Task) -> Training:
        """The weights that are best on validation data are kept."""
        return replace(super().training(task), keep="best")

    def teacher(self, context: Context, *, inside: bool = False) -> nn.Module:
        """Raises `BadInput` where there is none. inside: one whose layers, weights or gradients can be had."""
        if context.guide is None:
            raise BadInput(f"{self.name()}: there is no teacher; give one: method(model, task, teacher=network)")
        if inside and gives_outputs_only(context.guide):
            raise BadInput(
                f"{self.name()}: learns from what is inside the teacher; an .onnx file or recorded answers only show "
                "outputs: give the network itself, or take distill.kd"
            )
        return context.guide

    def distillation(self, teacher: nn.Module, loss: SoftLoss | None = None) -> Distillation:
        """What the outputs of a teacher teach, under the options of this method."""
        return Distillation(teacher, loss=loss, **self.softness())

    def softness(self) -> dict[str, Any]:
        """The options of `train.distill.Soft`."""
        return {name: getattr(self, name) for name in ("temperature", "alpha", "temperature_end", "alpha_end")}

    def learn(
        self,
        teach: Sequence[LossTerm],
        student: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        **changes: Any,
    ) -> TrainingResult:
        """Train the student in place and note it in the history."""
        own = [term for term in teach if isinstance(term, Distillation)]
        for term in own:
            term.compiled = context.compile_teacher
            if context.cache is not None:
                term.remember(context.cache)
        data = mixed(task, mixup=self.mixup, cutmix=self.cutmix)
        try:
            return self.noted(self.train_with(teach, student, data, context, part=part, **changes), context, part=part)
        finally:
            for term in own:
                if term.answers is not None:
                    term.answers.flush()


def regression(student: Tensor, teacher: Tensor, target: object, temperature: float) -> Tensor:
    """`logit_loss`, for `Distillation`."""
    return logit_loss(student, teacher)


def fresh(model: nn.Module, seed: int, *, method: str) -> nn.Module:
    """A copy whose weights are drawn anew, by the `reset_parameters` of its modules."""
    refuse_constrained(model, method)
    found, undrawn = copy.deepcopy(model), dict(model.named_parameters())
    with own_randomness():
        seed_everything(seed)
        for name, module in found.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
                for key, _ in module.named_parameters(prefix=name):
                    undrawn.pop(key, None)
    if undrawn:
        raise BadInput(
            f"{method}: {next(iter(undrawn))} cannot be drawn anew; give its module a method `reset_parameters`"
        )
    return found


class Samples:
    """Inputs (N, ...) and their targets in memory, as batches in another order each time; fit seeds the order."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs))
        return ((self.inputs[part], self.targets[part]) for part in torch.split(order, self.batch_size))


@torch.no_grad()
def labelled(teacher: nn.Module, inputs: Tensor, like: Any, batch_size: int) -> Tensor:
    """What the teacher says about inputs (N, ...), as targets: its classes where `like`, a target of the task, holds
    classes, its outputs otherwise."""
    rows = []
    with evaluating(teacher):
        for part in torch.split(inputs, batch_size):
            outputs = teacher(*place(teacher, part))
            if not isinstance(outputs, Tensor):
                raise BadInput(f"distillation: the teacher gives a {type(outputs).__name__}; it must give one tensor")
            whole = isinstance(like, Tensor) and not like.is_floating_point() and like.dim() == outputs.dim() - 1
            rows.append((outputs.argmax(1) if whole else outputs).cpu())
    return torch.cat(rows)


@dataclass(frozen=True, kw_only=True)
class LayerStudent(Student):
    """layers: the teacher's layer for a layer of the student, by name; where it is empty, the last layers of equal
    resolution learn from each other; where none is equal and both networks have as many resolutions, in their order."""

    layers: Mapping[str, str] = field(default_factory=dict)

    def pairs(self, student: nn.Module, task: Task, context: Context, *, firsts: bool = False) -> list[Pair]:
        """Layers to compare. firsts: the first layer of each resolution, too, before its last."""
        teacher = self.teacher(context, inside=True)
        names = {name for name, _ in student.named_modules() if name}
        for name in self.layers:
            if name not in names:
                raise unknown(f"layer of the student in {self.name()}", name, names, listed="`gossamer analyze`")
        if self.layers:
            return list(self.layers.items())
        ours, theirs = stages(student, task.example_inputs), stages(teacher, task.example_inputs)
        sizes = [(size, size) for size in ours if size in theirs]
        if not sizes and len(ours) == len(theirs):
            sizes = list(zip(ours, theirs))
        found: list[Pair] = []
        for mine, its in sizes:
            (first_s, last_s), (first_t, last_t) = ours[mine], theirs[its]
            if not firsts:
                found.append((last_s, last_t))
            elif first_s != last_s and first_t != last_t:
                found += [(first_s, first_t), (last_s, last_t)]
        if not found:
            raise BadInput(
                f"{self.name()}: no layers of equal resolution: the student's last of each are {listed(ours)}, the "
                f"teacher's {listed(theirs)}; name pairs in `layers`: {{student layer: teacher layer}}"
            )
        return found


def pooled(features: Tensor) -> Tensor:
    """Embeddings (N, C): the mean over the positions of images; vectors as they are."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def relative_hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`hint_loss` over half the mean square of the hint, so that its size depends on neither network; mean over
    pairs."""
    return torch.stack(
        [
            2 * hint_loss(s, t) / t.float().pow(2).mean().clamp_min(torch.finfo(torch.float32).tiny)
            for s, t in zip(student, teacher)
        ]
    ).mean()


@dataclass(frozen=True, kw_only=True)
class HintedStudent(LayerStudent):
    """hint_epochs: on the layers alone, before `epochs` on the outputs."""

    hint_epochs: Annotated[int, Range(1, 10_000)] = 4

    def in_two_stages(
        self, pairs: Sequence[Pair], loss: FeatureLoss, adapt: Adapt, student: nn.Module, task: Task, context: Context
    ) -> nn.Module:
        """Train the student in place: first the layers, then the outputs."""
        term = self.distillation(self.teacher(context))
        # Layers behind the hint get no gradient: without weight decay they stay as they are.
        stage: dict[str, Any] = {
            "epochs": self.hint_epochs,
            "weight_decay": 0.0,
            "keep": "last",
            "evaluate_every": self.hint_epochs,
        }
        with hooked(
            student, term, pairs, loss, inputs=task.example_inputs, adapt=adapt, alone=True, seed=context.seed
        ) as lesson:
            self.learn([lesson], student, task, context, part=" on hints", **stage)
        return self.learn([term], student, task, context).model
