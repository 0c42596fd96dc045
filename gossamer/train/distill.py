"""Learning from the outputs of another network."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.task import Model
from gossamer.train.batches import to_channels_last


class Teach(Protocol):
    """A term of the training loss: total = product of all `hard_weight` * task loss + sum of all terms."""

    @property
    def hard_weight(self) -> float:
        """The weight that is left to the task's own loss."""

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar. outputs: what the network in training gave for the inputs; target: None where there is none."""


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(v/T) || softmax(z/T)), summed over classes, mean over the rest (Hinton et al., arXiv:1503.02531).

    Logits z of the student, v of the teacher, shape (N, classes, ...). T^2 keeps the size of the
    gradient; for large T the term becomes |z - v|^2 / (2 classes) of the centred logits.
    """
    student = F.log_softmax(_wide(student_logits) / temperature, 1)
    teacher = F.log_softmax(_wide(teacher_logits) / temperature, 1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean() * temperature**2


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def output_loss(student: Any, teacher: Any) -> Tensor:
    """Mean squared difference over the teacher's variance; the mean over all floating tensors of a tuple or dict."""
    pairs = list(_pairs(student, teacher, "outputs"))
    if not pairs:
        raise BadInput("distillation: the teacher's outputs hold no floating-point tensor to learn from")
    return torch.stack([_relative_error(_wide(s), _wide(t)) for s, t in pairs]).mean()


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher) / teacher.var(unbiased=False).clamp_min(torch.finfo(torch.float32).tiny)


def _pairs(student: Any, teacher: Any, where: str) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        if student.shape != teacher.shape:
            raise BadInput(
                f"distillation: {where} have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
            )
        if teacher.is_floating_point():
            yield student, teacher
    elif isinstance(student, Mapping) and isinstance(teacher, Mapping) and student.keys() == teacher.keys():
        for key in teacher:
            yield from _pairs(student[key], teacher[key], f"{where}[{key!r}]")
    elif isinstance(student, tuple | list) and isinstance(teacher, tuple | list) and len(student) == len(teacher):
        for i, (s, t) in enumerate(zip(student, teacher)):
            yield from _pairs(s, t, f"{where}[{i}]")
    elif isinstance(student, Tensor | Mapping | tuple | list) or isinstance(teacher, Tensor | Mapping | tuple | list):
        raise BadInput(
            f"distillation: {where} are a {type(student).__name__}, the teacher's a {type(teacher).__name__}; "
            "they must be built alike"
        )


class Distillation:
    """Teach the outputs of `teacher`: alpha * task loss + (1 - alpha) * soft loss.

    The soft loss is `kd_loss` where the outputs are logits (N, classes, ...) for integer targets (N, ...), and
    `output_loss` otherwise. A teacher that is a module is copied, evaluated and never trained; any other callable is
    used as it is. Where the network in training gives more than the teacher's one tensor (auxiliary heads), its first
    counts.
    """

    def __init__(self, teacher: Model, temperature: float = 4.0, alpha: float = 0.1) -> None:
        if not temperature > 0:
            raise BadInput(f"distillation: temperature = {temperature} must be in (0, inf]")
        if not 0 <= alpha <= 1:
            raise BadInput(f"distillation: alpha = {alpha} must be in [0, 1]")
        self.teacher = teacher
        if isinstance(teacher, nn.Module):
            self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
            to_channels_last(self.teacher)
        self.temperature = temperature
        self.hard_weight = alpha

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """(1 - alpha) * soft loss, a scalar."""
        with torch.no_grad():
            expected = self._at(inputs)(*inputs)
        if isinstance(expected, Tensor) and isinstance(outputs, tuple | list) and outputs:
            outputs = outputs[0]
        if _are_logits(expected, target):
            if outputs.shape != expected.shape:
                raise BadInput(
                    f"distillation: logits have shape {tuple(outputs.shape)}, the teacher's {tuple(expected.shape)}"
                )
            return (1 - self.hard_weight) * kd_loss(outputs, expected, self.temperature)
        return (1 - self.hard_weight) * output_loss(outputs, expected)

    def _at(self, inputs: tuple[Any, ...]) -> Model:
        """The teacher, on the device of the inputs."""
        device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
        if isinstance(self.teacher, nn.Module) and device is not None:
            first = next(self.teacher.parameters(), None)
            if first is not None and first.device != device:
                self.teacher.to(device)
        return self.teacher


def _are_logits(outputs: Any, target: Any) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(target, Tensor)
        and not target.is_floating_point()
        and outputs.dim() >= 2
        and target.shape == outputs.shape[:1] + outputs.shape[2:]
    )
