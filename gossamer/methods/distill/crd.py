"""Learn embeddings by which every sample finds its own embedding in the teacher.

What it does: adds to soft targets a contrast within the batch: a sample's embedding in the student is to be nearer to
its embedding in the teacher than to those of all other samples, and the other way round. An adapter that trains along
brings the student's to the teacher's width.
Cost: one forward pass of the teacher for each batch, and batch^2 products.
When it fails: small batches hold few negatives; the original keeps thousands in a memory, which this does not.
Equation: alpha CE + (1 - alpha) KD - w log(exp(s_i t_i / tau) / sum_j exp(s_i t_j / tau)), both ways, unit s and t.
Source: Tian et al. 2020, arXiv:1910.10699, section 3; van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE).
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
from gossamer.losses import contrastive_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent, pooled
from gossamer.train.feature_hooks import hooked, projection


@dataclass(frozen=True, kw_only=True)
class CRD(LayerStudent):
    """layers: the teacher's layer for a layer of the student, usually the one before the classifier; where it is empty,
    the last of the lowest resolution. weight, contrast_temperature: w and tau of the equation."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    weight: Annotated[float, Range(0, 1e6, open_=("low",))] = 0.8
    contrast_temperature: Annotated[float, Range(0, 100, open_=("low",))] = 0.1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy.deepcopy(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        if not self.layers:
            pairs = pairs[-1:]
        term = self.distillation(self.teacher(context))
        with hooked(
            student, term, pairs, self.contrast, inputs=inputs, adapt=projection, weight=self.weight, seed=context.seed
        ) as lesson:
            return self.learn([lesson], student, task, context).model

    def contrast(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The sum over the pairs. Of images: their mean over positions."""
        pairs = zip(map(pooled, student), map(pooled, teacher))
        return torch.stack([contrastive_loss(s, t, self.contrast_temperature) for s, t in pairs]).sum()
