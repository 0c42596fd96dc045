"""Contrastive representation distillation (CRD): train embeddings that find their own sample in the teacher's.

What it does: adds to knowledge distillation a contrastive loss within the batch: a sample's embedding in the student
is to be nearer to its own embedding in the teacher than to those of all other samples, and the other way round. A
linear adapter, trained with the student, brings the student's embedding to the teacher's width.
Cost: one forward pass of the teacher for each batch, and batch^2 products.
When it fails: small batches hold few negatives. The paper keeps thousands of them in a memory; this method does not.
Equation: alpha CE + (1 - alpha) KD - w log(exp(s_i t_i / tau) / sum_j exp(s_i t_j / tau)), both ways, unit s and t.
Source: Tian et al. 2020, arXiv:1910.10699, section 3; van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE).
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
from gossamer.losses import contrastive_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent, pooled_embeddings
from gossamer.train.feature_hooks import LayerLoss, hooked, projection


@dataclass(frozen=True, kw_only=True)
class CRD(LayerStudent):
    """Train a student on the teacher's outputs and on a contrast of embeddings.

    `layers` is usually the layer before the classifier; empty: the last layer of the lowest resolution. The other
    options are those of `Student` and `Retrain`.

    Args:
        weight: w of the equation, the weight of the contrastive loss, in (0, 1e6].
        contrast_temperature: tau of the equation, in (0, 100]; smaller values stress the nearest negatives.

    Raises:
        BadInput: there is no teacher, or no layers to compare.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.CRD(epochs=1, lr=0.01, layers={"relu3": "relu3"})
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    weight: Annotated[float, Range(0, 1e6, open_=("low",))] = 0.8
    contrast_temperature: Annotated[float, Range(0, 100, open_=("low",))] = 0.1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        if not self.layers:
            pairs = pairs[-1:]
        term = self.distillation(self.teacher(context))
        layers = LayerLoss(self.contrast, projection, self.weight)
        with hooked(student, term, pairs, layers, inputs=inputs, seed=context.seed) as layer_term:
            return self.learn([layer_term], student, task, context).model

    def contrast(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the sum over the pairs of layers. Of images, the mean over positions is compared."""
        pairs = zip(map(pooled_embeddings, student), map(pooled_embeddings, teacher))
        return torch.stack([contrastive_loss(s, t, self.contrast_temperature) for s, t in pairs]).sum()
