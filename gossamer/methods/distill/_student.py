"""The base of the distillation methods: the teacher, the training data, and the layers that are compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, unknown
from gossamer.losses import hint_loss, logit_loss
from gossamer.methods._training import Retrain
from gossamer.train.batches import seed_everything
from gossamer.train.distillation import Distillation, LossTerm, SoftLoss
from gossamer.train.feature_hooks import (
    Adapt,
    FeatureLoss,
    FeatureTerm,
    LayerLoss,
    Pair,
    hooked,
    stages,
    stages_in_words,
)
from gossamer.train.hyperparameters import Training
from gossamer.train.loop import TrainingResult
from gossamer.train.mixup import mixed
from gossamer.train.teachers import gives_outputs_only
from gossamer.train.train_mode import follow_train_mode


@dataclass(frozen=True, kw_only=True)
class Student(Retrain):
    """The options of all methods that train a student on a teacher.

    The loss is alpha * task loss + (1 - alpha) * loss on the teacher's outputs. The learning rate follows a cosine
    schedule; of its length and peak see `Retrain`.

    Args:
        temperature_end: temperature at the end of the training, reached linearly, in (0, 1000]; None: it stays.
        alpha_end: alpha at the end of the training, reached linearly, in [0, 1]; None: it stays.
        mixup: images are mixed, for student and teacher alike, in proportions drawn from Beta(mixup, mixup); 0: not.
        cutmix: the same, by pasting rectangles; 0: not.
    """

    temperature_end: Annotated[float | None, Range(0, 1000, open_=("low",))] = None
    alpha_end: Annotated[float | None, Range(0, 1)] = None
    mixup: Annotated[float, Range(0, 100)] = 0.0
    cutmix: Annotated[float, Range(0, 100)] = 0.0

    def training(self, task: Task) -> Training:
        """Return the schedule; the weights that are best on validation data are kept."""
        return replace(super().training(task), keep="best")

    def teacher(self, context: Context, *, inside: bool = False) -> nn.Module:
        """Return the teacher.

        Args:
            context: holds the teacher.
            inside: whether its layers, weights or gradients are needed.

        Raises:
            BadInput: there is none, or it gives only outputs where more is needed.
        """
        if context.teacher_or_original is None:
            raise BadInput(f"{self.name()}: there is no teacher; give one: method(model, task, teacher=network)")
        if inside and gives_outputs_only(context.teacher_or_original):
            raise BadInput(
                f"{self.name()}: needs the layers of the teacher; an .onnx file or cached outputs give outputs "
                "only: give the network itself, or take distill.kd"
            )
        return context.teacher_or_original

    def distillation(self, teacher: nn.Module, loss: SoftLoss | None = None) -> Distillation:
        """Return the loss term on a teacher's outputs, with the options of this method."""
        return Distillation(teacher, loss=loss, **self.distillation_options())

    def distillation_options(self) -> dict[str, Any]:
        """Return the options of `train.distillation.Soft`."""
        return {name: getattr(self, name) for name in ("temperature", "alpha", "temperature_end", "alpha_end")}

    def learn(
        self,
        terms: Sequence[LossTerm],
        student: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        **changes: Any,
    ) -> TrainingResult:
        """Train the student in place under these loss terms, and log it."""
        own = [term for term in terms if isinstance(term, Distillation)]
        for term in own:
            term.compiled = context.compile_teacher
            if context.cache is not None:
                term.cache_outputs(context.cache)
        layered = [term.distillation for term in terms if isinstance(term, FeatureTerm)]
        for term in (*own, *layered):
            follow_train_mode(term, student, task, context)
        data = mixed(task, mixup=self.mixup, cutmix=self.cutmix)
        try:
            return self.noted(self.train_with(terms, student, data, context, part=part, **changes), context, part=part)
        finally:
            for term in own:
                term.flush()


def regression(student: Tensor, teacher: Tensor, target: object, temperature: float) -> Tensor:
    """Return `logit_loss`, in the form that `Distillation` takes."""
    return logit_loss(student, teacher)


def reinitialized(model: nn.Module, seed: int, *, method: str) -> nn.Module:
    """Return a copy of the model with new random weights, by the `reset_parameters` of its modules.

    Raises:
        BadInput: a weight belongs to no module that has `reset_parameters`, or the weights are constrained.
    """
    refuse_constrained(model, method)
    found, undrawn = copy_network(model), dict(model.named_parameters())
    with own_randomness():
        seed_everything(seed)
        for name, module in found.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
                for key, _ in module.named_parameters(prefix=name):
                    undrawn.pop(key, None)
    if undrawn:
        raise BadInput(
            f"{method}: {next(iter(undrawn))} cannot be drawn again; give its module a method `reset_parameters`"
        )
    return found


class Samples:
    """Inputs (N, ...) and their targets in memory, in batches of a new order each time, seeded by the training."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs))
        return ((self.inputs[part], self.targets[part]) for part in torch.split(order, self.batch_size))


@torch.no_grad()
def teacher_labels(teacher: nn.Module, inputs: Tensor, like: Any, batch_size: int) -> Tensor:
    """Return the teacher's outputs for inputs (N, ...) as targets.

    They are its classes where `like`, a target of the task, holds classes, and its outputs otherwise.
    """
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
    """The option of all methods that compare layers.

    Args:
        layers: the teacher's layer by layer of the student. Empty: the last layers of equal resolution are compared,
            or, where no resolution is equal and both networks have as many, those of each resolution in their order.
    """

    layers: Mapping[str, str] = field(default_factory=dict)

    def pairs(self, student: nn.Module, task: Task, context: Context, *, firsts: bool = False) -> list[Pair]:
        """Return the layers to compare. firsts: the first layer of each resolution as well, before its last."""
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
                f"{self.name()}: no layers of equal resolution: the student's last of each are "
                f"{stages_in_words(ours)}, the teacher's {stages_in_words(theirs)}; "
                "name pairs in `layers`: {student layer: teacher layer}"
            )
        return found


def pooled_embeddings(features: Tensor) -> Tensor:
    """Return embeddings (N, C): the mean over the positions of images; vectors as they are."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def relative_hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over pairs of `hint_loss` over half the mean square of the hint."""
    return torch.stack(
        [
            2 * hint_loss(s, t) / t.float().pow(2).mean().clamp_min(torch.finfo(torch.float32).tiny)
            for s, t in zip(student, teacher)
        ]
    ).mean()


@dataclass(frozen=True, kw_only=True)
class HintedStudent(LayerStudent):
    """The option of all methods that train in two stages: first on layers, then on the outputs.

    Args:
        hint_epochs: passes over the data in the first stage, at least 1.
    """

    hint_epochs: Annotated[int, Range(1, 10_000)] = 4

    def in_two_stages(
        self, pairs: Sequence[Pair], loss: FeatureLoss, adapt: Adapt, student: nn.Module, task: Task, context: Context
    ) -> nn.Module:
        """Train the student in place: first on the layers, then on the outputs."""
        term = self.distillation(self.teacher(context))
        # Layers behind the hint get no gradient: without weight decay they stay as they are.
        stage: dict[str, Any] = {
            "epochs": self.hint_epochs,
            "weight_decay": 0.0,
            "keep": "last",
            "evaluate_every": self.hint_epochs,
        }
        layers = LayerLoss(loss, adapt, alone=True)
        with hooked(student, term, pairs, layers, inputs=task.example_inputs, seed=context.seed) as layer_term:
            self.learn([layer_term], student, task, context, part=" on hints", **stage)
        return self.learn([term], student, task, context).model
