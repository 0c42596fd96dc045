"""Logit regression (mimic learning): train a student to give the teacher's logits.

What it does: trains all weights on the squared error of the logits, before the softmax. With the default alpha=0
labels do not count, so unlabelled or synthetic inputs serve as well. Shallow and wide students were first trained so.
Cost: one forward pass of the teacher for each batch.
When it fails: logits of improbable classes count as much as the others. A student that cannot reach the teacher's
logits does better with `distill.kd`.
Equation: alpha CE(y, z) + (1 - alpha) |z - v|^2 / 2.
Source: Ba & Caruana 2014, arXiv:1312.6184, section 2.2; Bucila et al. 2006, doi:10.1145/1150402.1150464.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, regression


@dataclass(frozen=True, kw_only=True)
class LogitRegression(Student):
    """Train a student on the teacher's logits, by regression.

    `temperature` has no effect. The other options are those of `Student` and `Retrain`.

    Args:
        alpha: weight of the task loss, in [0, 1]; 0 trains on the logits alone.
        lr: peak of the learning rate, in (0, 10].

    Raises:
        BadInput: there is no teacher.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.LogitRegression(epochs=1)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    alpha: Annotated[float, Range(0, 1)] = 0.0
    lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.01

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        term = self.distillation(self.teacher(context), regression)
        return self.learn([term], copy_network(model), task, context).model
