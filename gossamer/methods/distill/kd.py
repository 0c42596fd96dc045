"""Learn the teacher's softened outputs.

What it does: trains all weights on the task's own loss and on the teacher's outputs: softened probabilities for
classes and for labels of which several may be true, and outputs relative to their variance for everything else (boxes,
embeddings, regressions, also in tuples or dicts).
Cost: one forward pass of the teacher for each batch.
When it fails: a student that is far too small for its teacher learns better from one in between; teachers trained with
smoothed labels teach less. `standardize` helps where the student cannot reach the size of the teacher's logits.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)); standardize: of (z - mean) / deviation.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2; Sun et al. 2024, arXiv:2403.01733, section 3.3.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.losses import kd_loss, standardized
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


@dataclass(frozen=True, kw_only=True)
class KD(Student):
    """standardize: logits over their standard deviation, for classes only; lower the temperature to about 2. alpha = 1
    trains without a teacher."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    standardize: bool = False

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        terms = []
        if self.alpha < 1 or self.alpha_end not in (None, 1):
            terms.append(self.distillation(self.teacher(context), self.standard if self.standardize else None))
        return self.learn(terms, copy.deepcopy(model), task, context).model

    def standard(self, student: Tensor, teacher: Tensor, target: object, temperature: float) -> Tensor:
        """`kd_loss` of standardized logits."""
        return kd_loss(standardized(student), standardized(teacher), temperature)
