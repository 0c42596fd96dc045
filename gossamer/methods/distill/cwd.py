"""Channel-wise distillation (CWD): train a student to be active where a teacher is, channel by channel.

What it does: adds to knowledge distillation the divergence of layers of equal resolution, each channel taken as a
distribution over the positions of the image. A convolution of one pixel, which trains beside the student and is not
kept, brings its channels to the teacher's number. Of detectors, the outputs are compared as they are in training:
classes by their probabilities, sides of boxes by their distributions (localization distillation).
Cost: one forward pass of the teacher for each batch, a convolution of one pixel and two softmaxes for each pair.
When it fails: layers without positions (vectors) have no such distribution. It was made for dense predictions; a
classifier's last maps are small, and attention transfer costs less there.
Equation: alpha CE + (1 - alpha) KD + beta sum over pairs of T^2 / C sum_c KL(softmax(A_c / T) || softmax(B_c / T)).
Source: Shu et al. 2021, arXiv:2011.13256; Zheng et al. 2022, arXiv:2102.12252 (localization distillation).
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
from gossamer.losses import channel_wise_loss
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import LayerStudent
from gossamer.train.feature_hooks import LayerLoss, hooked, projection


def channel_wise_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum of `channel_wise_loss` over pairs of layers."""
    return torch.stack([channel_wise_loss(s, t, temperature) for s, t in zip(student, teacher)]).sum()


@dataclass(frozen=True, kw_only=True)
class CWD(LayerStudent):
    """Train a student on the teacher's outputs and on where its channels are active.

    The other options are those of `LayerStudent`, `Student` and `Retrain`.

    Args:
        beta: weight of the layers, in (0, 1e6].
        spread: temperature of the softmax over positions, in (0, 1000]; larger values look at more of the image.

    Raises:
        BadInput: there is no teacher, or no layers to compare.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.CWD(epochs=1, lr=0.01, layers={"conv2": "conv2"})
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    beta: Annotated[float, Range(0, 1e6, open_=("low",))] = 1.0
    spread: Annotated[float, Range(0, 1000, open_=("low",))] = 4.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        pairs, inputs = self.pairs(student, task, context), task.example_inputs
        term = self.distillation(self.teacher(context))
        layers = LayerLoss(partial(channel_wise_losses, temperature=self.spread), projection, self.beta)
        with hooked(student, term, pairs, layers, inputs=inputs, seed=context.seed) as layer_term:
            return self.learn([layer_term], student, task, context).model
