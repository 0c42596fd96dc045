"""Learn how samples lie to one another in the teacher's embedding.

What it does: adds to soft targets the differences of relative distances between pairs, and of angles between triplets,
of the batch. Student and teacher may have embeddings of different widths, and outputs that are no classes at all.
Cost: one forward pass of the teacher for each batch; the angles take batch^2 (batch + width) numbers.
When it fails: batches of a few samples say little; batches of many hundreds take much memory for the angles.
Equation: alpha CE + (1 - alpha) KD + a Huber(d_S - d_T) + b Huber(cos_S - cos_T), d over its mean.
Source: Park et al. 2019, arXiv:1904.05068, section 3.2.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import rkd_angle_loss, rkd_distance_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent, pooled
from gossamer.train.feature_hooks import hooked, samples


@dataclass(frozen=True, kw_only=True)
class RKD(LayerStudent):
    """layers: the teacher's layer for a layer of the student, usually the one before the classifier; where it is empty,
    the last of the lowest resolution. distance_weight, angle_weight: a and b of the equation."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "layers": {"head": "head"}}

    distance_weight: Annotated[float, Range(0, 1e6)] = 25.0
    angle_weight: Annotated[float, Range(0, 1e6)] = 50.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if not self.distance_weight and not self.angle_weight:
            raise BadInput(f"{self.name()}: distance_weight and angle_weight are both 0; give one a weight")
        student = copy.deepcopy(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        if not self.layers:
            pairs = pairs[-1:]
        term = self.distillation(self.teacher(context))
        with hooked(student, term, pairs, self.relations, inputs=inputs, adapt=samples) as lesson:
            return self.learn([lesson], student, task, context).model

    def relations(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Both terms, summed over the pairs. Of images: their mean over positions."""
        total = torch.zeros(())
        for s, t in zip(map(pooled, student), map(pooled, teacher)):
            if self.distance_weight:
                total = total + self.distance_weight * rkd_distance_loss(s, t)
            if self.angle_weight:
                total = total + self.angle_weight * rkd_angle_loss(s, t)
        return total
