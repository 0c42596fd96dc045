"""DIST (knowledge distillation from a stronger teacher): train a student to correlate with the teacher's probabilities.

What it does: asks only that student and teacher correlate, over the classes of each sample and over the batch for each
class. That is easier than equality for a student that is much smaller than its teacher.
Cost: one forward pass of the teacher for each batch.
When it fails: small batches make the correlation over samples noisy.
Equation: alpha CE(y, z) + (1 - alpha) T^2 (b (1 - corr over classes) + c (1 - corr over samples)).
Source: Huang et al. 2022, arXiv:2205.10536, section 4.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.losses import dist_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


@dataclass(frozen=True, kw_only=True)
class DIST(Student):
    """Train a student on the correlation of its probabilities with the teacher's.

    The other options are those of `Student` and `Retrain`.

    Args:
        inter_weight: b of the equation, the weight of the correlation over classes, in [0, 1000].
        intra_weight: c of the equation, the weight of the correlation over samples, in [0, 1000].

    Raises:
        BadInput: there is no teacher.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.DIST(epochs=1, lr=0.01, temperature=1.0)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    inter_weight: Annotated[float, Range(0, 1000)] = 1.0
    intra_weight: Annotated[float, Range(0, 1000)] = 1.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        term = self.distillation(self.teacher(context), self.loss)
        return self.learn([term], copy_network(model), task, context).model

    def loss(self, student: Tensor, teacher: Tensor, target: object, temperature: float) -> Tensor:
        """Return `dist_loss` with the weights of this method."""
        return dist_loss(student, teacher, temperature, self.inter_weight, self.intra_weight)
