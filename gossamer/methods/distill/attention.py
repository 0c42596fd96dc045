"""Learn where the teacher looks.

What it does: adds to soft targets the difference of attention maps, the energy over channels at each position, between
layers of equal depth. The number of channels may differ, and no weights are added.
Cost: one forward pass of the teacher for each batch, and a sum over channels for each pair of layers.
When it fails: layers without positions (vectors, 1 x 1 images) have no map. Where resolutions differ, the larger is
averaged down.
Equation: alpha CE + (1 - alpha) KD + beta sum over pairs of mean (Q_S / |Q_S| - Q_T / |Q_T|)^2, Q = sum_c |A_c|^2.
Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1.
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
from gossamer.losses import attention_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent
from gossamer.train.feature_hooks import hooked, positions


def attention_losses(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The sum over the pairs."""
    return torch.stack([attention_loss(s, t) for s, t in zip(student, teacher)]).sum()


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(LayerStudent):
    """beta: weight of the maps. layers: the teacher's layer for a layer of the student; where it is empty, the last of
    each resolution."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    beta: Annotated[float, Range(0, 1e6, open_=("low",))] = 1000.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy.deepcopy(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        term = self.distillation(self.teacher(context))
        with hooked(student, term, pairs, attention_losses, inputs=inputs, adapt=positions, weight=self.beta) as lesson:
            return self.learn([lesson], student, task, context).model
