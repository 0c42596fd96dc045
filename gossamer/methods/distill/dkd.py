"""Decoupled knowledge distillation (DKD): train a student with separate weights for the target and the other classes.

What it does: splits the loss of knowledge distillation into target class against all others, and the other classes
among themselves, with a weight for each. In plain knowledge distillation the second part counts little where the
teacher is confident.
Cost: one forward pass of the teacher for each batch.
When it fails: it needs one class for each prediction, and more than two classes. Large weights of the other classes
need a smaller learning rate.
Equation: alpha CE(y, z) + (1 - alpha) T^2 (a TCKD + b NCKD), where KL = TCKD + (1 - p_target) NCKD.
Source: Zhao et al. 2022, arXiv:2203.08679, section 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.losses import dkd_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


@dataclass(frozen=True, kw_only=True)
class DKD(Student):
    """Train a student on the decoupled loss of the teacher's probabilities.

    The other options are those of `Student` and `Retrain`.

    Args:
        target_weight: a of the equation, the weight of the target class against the rest, in [0, 1000].
        others_weight: b of the equation, the weight of the other classes among themselves, in [0, 1000].

    Raises:
        BadInput: there is no teacher, or the targets are not one class for each prediction.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.DKD(epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    target_weight: Annotated[float, Range(0, 1000)] = 1.0
    others_weight: Annotated[float, Range(0, 1000)] = 8.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        term = self.distillation(self.teacher(context), self.loss)
        return self.learn([term], copy_network(model), task, context).model

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Return `dkd_loss` with the weights of this method."""
        return dkd_loss(student, teacher, target, temperature, self.target_weight, self.others_weight)
