"""Learn the teacher's logits themselves, by regression.

What it does: trains all weights to give the teacher's logits, before the softmax; with the default alpha = 0 labels do
not count, so that unlabelled or made-up inputs serve as well. What shallow and wide students were first trained with.
Cost: one forward pass of the teacher for each batch.
When it fails: logits of classes that are out of the question weigh as much as the others; a student that cannot reach
the teacher's logits does better with soft targets.
Equation: alpha CE(y, z) + (1 - alpha) |z - v|^2 / 2.
Source: Ba & Caruana 2014, arXiv:1312.6184, section 2.2; Bucila et al. 2006, doi:10.1145/1150402.1150464.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, regression


@dataclass(frozen=True, kw_only=True)
class LogitRegression(Student):
    """alpha weighs the hard loss. lr: the peak of a cosine schedule; temperature has no effect."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    alpha: Annotated[float, Range(0, 1)] = 0.0
    lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.01

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        term = self.distillation(self.teacher(context), regression)
        return self.learn([term], copy.deepcopy(model), task, context).model
