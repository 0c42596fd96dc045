"""Relational knowledge distillation (RKD): train a student to have the teacher's distances and angles between samples.

What it does: adds to knowledge distillation the differences of relative distances between pairs, and of angles between
triplets, of the batch. Student and teacher may have embeddings of different widths, and outputs that are no classes.
Cost: one forward pass of the teacher for each batch; the angles take batch^2 (batch + width) numbers.
When it fails: batches of a few samples show few relations; batches of many hundreds take much memory for the angles.
Equation: alpha CE + (1 - alpha) KD + a Huber(d_S - d_T) + b Huber(cos_S - cos_T), d over its mean.
Source: Park et al. 2019, arXiv:1904.05068, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import rkd_angle_loss, rkd_distance_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent, pooled_embeddings
from gossamer.train.feature_hooks import LayerLoss, any_shapes, hooked


@dataclass(frozen=True, kw_only=True)
class RKD(LayerStudent):
    """Train a student on the teacher's outputs and on the relations between its embeddings.

    `layers` is usually the layer before the classifier; empty: the last layer of the lowest resolution. The other
    options are those of `Student` and `Retrain`.

    Args:
        distance_weight: a of the equation, in [0, 1e6].
        angle_weight: b of the equation, in [0, 1e6].

    Raises:
        BadInput: there is no teacher, both weights are 0, or there are no layers to compare.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.RKD(epochs=1, lr=0.01, layers={"fc1": "fc1"})
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "layers": {"head": "head"}}

    distance_weight: Annotated[float, Range(0, 1e6)] = 25.0
    angle_weight: Annotated[float, Range(0, 1e6)] = 50.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if not self.distance_weight and not self.angle_weight:
            raise BadInput(f"{self.name()}: distance_weight and angle_weight are both 0; give one a weight")
        student = copy_network(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        if not self.layers:
            pairs = pairs[-1:]
        term = self.distillation(self.teacher(context))
        with hooked(student, term, pairs, LayerLoss(self.relations, any_shapes), inputs=inputs) as layer_term:
            return self.learn([layer_term], student, task, context).model

    def relations(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return both terms, summed over the pairs of layers. Of images, the mean over positions is compared."""
        total = torch.zeros(())
        for s, t in zip(map(pooled_embeddings, student), map(pooled_embeddings, teacher)):
            if self.distance_weight:
                total = total + self.distance_weight * rkd_distance_loss(s, t)
            if self.angle_weight:
                total = total + self.angle_weight * rkd_angle_loss(s, t)
        return total
