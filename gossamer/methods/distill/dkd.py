"""Learn how the teacher ranks the wrong classes, however sure it is of the right one.

What it does: splits the loss of soft targets into target against the rest, and the classes of the rest among
themselves, and weighs each on its own, where soft targets weigh the second by the teacher's doubt.
Cost: one forward pass of the teacher for each batch.
When it fails: needs one class for each prediction, and more than two classes. Large weights of the rest want a smaller
learning rate.
Equation: alpha CE(y, z) + (1 - alpha) T^2 (a TCKD + b NCKD), where KL = TCKD + (1 - p_target) NCKD.
Source: Zhao et al. 2022, arXiv:2203.08679, section 3.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.losses import dkd_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


@dataclass(frozen=True, kw_only=True)
class DKD(Student):
    """target_weight, others_weight: a and b of the equation."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    target_weight: Annotated[float, Range(0, 1000)] = 1.0
    others_weight: Annotated[float, Range(0, 1000)] = 8.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        term = self.distillation(self.teacher(context), self.loss)
        return self.learn([term], copy.deepcopy(model), task, context).model

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
        """`dkd_loss` with the weights of this method."""
        return dkd_loss(student, teacher, target, temperature, self.target_weight, self.others_weight)
