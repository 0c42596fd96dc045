"""Attention transfer (AT): train a student to have the spatial attention maps of a teacher.

What it does: adds to knowledge distillation the difference of attention maps, the energy over channels at each
position, between layers of equal resolution. The numbers of channels may differ, and no weights are added.
Cost: one forward pass of the teacher for each batch, and a sum over channels for each pair of layers.
When it fails: layers without positions (vectors, 1 x 1 images) have no map. Where resolutions differ, the larger map is
averaged down.
Equation: alpha CE + (1 - alpha) KD + beta sum over pairs of d, Q = sum_c |A_c|^2; d = mean (Q_S / |Q_S| - Q_T /
|Q_T|)^2 (mean_square, as in the source's code), or d = 1/2 |Q_S / |Q_S| - Q_T / |Q_T|| (norm, as in the paper).
Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.losses import attention_loss
from gossamer.losses.features import AttentionDistance
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent
from gossamer.train.feature_hooks import LayerLoss, hooked, positions


def attention_losses(
    student: Sequence[Tensor], teacher: Sequence[Tensor], distance: AttentionDistance = "mean_square"
) -> Tensor:
    """Return the sum of `attention_loss` over pairs of layers."""
    return torch.stack([attention_loss(s, t, distance=distance) for s, t in zip(student, teacher)]).sum()


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(LayerStudent):
    """Train a student on the teacher's outputs and attention maps.

    The other options are those of `LayerStudent`, `Student` and `Retrain`.

    Args:
        beta: weight of the attention maps, in (0, 1e6]. The default is for distance="mean_square"; one for "norm" is
            some hundred times smaller, since a norm is neither squared nor divided by the number of positions.
        distance: "mean_square": as in the source's code; "norm": the Euclidean norm of each sample's difference, as in
            the paper.

    Raises:
        BadInput: there is no teacher, or no layers to compare.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> teacher = gossamer.data.tiny_network()
        >>> method = gossamer.methods.distill.AttentionTransfer(epochs=1, lr=0.01, layers={"conv2": "conv2"})
        >>> trained, edits = method(student, task, teacher=teacher)
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    beta: Annotated[float, Range(0, 1e6, open_=("low",))] = 1000.0
    distance: AttentionDistance = "mean_square"

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        term = self.distillation(self.teacher(context))
        loss = partial(attention_losses, distance=self.distance)
        with hooked(student, term, pairs, LayerLoss(loss, positions, self.beta), inputs=inputs) as layer_term:
            return self.learn([layer_term], student, task, context).model
