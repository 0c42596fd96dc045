"""Learning from the outputs of another network."""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.losses import kd_loss, output_loss
from gossamer.task import Model
from gossamer.train.batches import to_channels_last


class Teach(Protocol):
    """A term of the training loss: total = product of all `hard_weight` * task loss + sum of all terms."""

    @property
    def hard_weight(self) -> float:
        """The weight that is left to the task's own loss."""

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar. outputs: what the network in training gave for the inputs; target: None where there is none."""


# Of the student's outputs, the teacher's, and the target: a scalar.
SoftLoss = Callable[[Tensor, Tensor, Any], Tensor]


class Distillation:
    """Teach the outputs of `teacher`: alpha * task loss + (1 - alpha) * soft loss.

    The soft loss is `loss`, if given, else `soft_loss`. A teacher that is a module is copied, evaluated and never
    trained; any other callable is used as it is. Where the network in training gives more than the teacher's one tensor
    (auxiliary heads), its first counts.
    """

    def __init__(
        self, teacher: Model, temperature: float = 4.0, alpha: float = 0.1, loss: SoftLoss | None = None
    ) -> None:
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
        self.loss = loss

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """(1 - alpha) * soft loss, a scalar."""
        return self.soft(outputs, self.expected(inputs), target)

    @torch.no_grad()
    def expected(self, inputs: tuple[Any, ...]) -> Any:
        """What the teacher gives."""
        return self._at(inputs)(*inputs)

    def soft(self, outputs: Any, expected: Any, target: Any) -> Tensor:
        """(1 - alpha) * soft loss of outputs of the student and the teacher."""
        if isinstance(expected, Tensor) and isinstance(outputs, tuple | list) and outputs:
            outputs = outputs[0]
        return (1 - self.hard_weight) * self._soft_loss(outputs, expected, target)

    def _soft_loss(self, outputs: Any, expected: Any, target: Any) -> Tensor:
        if self.loss is not None:
            if not (isinstance(outputs, Tensor) and isinstance(expected, Tensor)):
                raise BadInput(
                    f"distillation: this loss needs one tensor from student and teacher, got {type(outputs).__name__} "
                    f"and {type(expected).__name__}; distill.kd takes any outputs"
                )
            return self.loss(outputs, expected, target)
        return soft_loss(outputs, expected, target, self.temperature)

    def _at(self, inputs: tuple[Any, ...]) -> Model:
        """The teacher, on the device of the inputs."""
        device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
        if isinstance(self.teacher, nn.Module) and device is not None:
            first = next(self.teacher.parameters(), None)
            if first is not None and first.device != device:
                self.teacher.to(device)
        return self.teacher


def soft_loss(outputs: Any, expected: Any, target: Any, temperature: float) -> Tensor:
    """`kd_loss` where the teacher's outputs are logits (N, classes, ...) for integer targets (N, ...), `output_loss`
    otherwise."""
    return kd_loss(outputs, expected, temperature) if are_logits(expected, target) else output_loss(outputs, expected)


def are_logits(outputs: Any, target: Any) -> bool:
    """Whether there is one class for each prediction."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(target, Tensor)
        and not target.is_floating_point()
        and outputs.dim() >= 2
        and target.shape == outputs.shape[:1] + outputs.shape[2:]
    )
