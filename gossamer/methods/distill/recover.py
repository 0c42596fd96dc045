"""Train the changed network to behave like the original again.

What it does: trains all weights on the task's own loss and on the original network's softened outputs, from the weights
that the cut left, with batch-norm statistics estimated anew first.
Cost: one forward pass of the original and one training step of the small network per batch.
When it fails: too few epochs or too small a network leave a gap, which the record shows.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)), v the original's logits.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
"""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.train import Training, recalibrate


@dataclass(frozen=True, kw_only=True)
class RecoveryDistillation(Retrain):
    """alpha weighs the hard loss; 1 trains without the original. lr: the peak of a cosine schedule, None to find one by
    short trials. The weights that it starts with, and those after the trials, count like those of the epochs."""

    stage: ClassVar[int | None] = None  # may stand anywhere
    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    def training(self, task: Task) -> Training:
        """The weights that are best on validation data are kept."""
        return replace(super().training(task), keep="best")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        model = copy.deepcopy(model)
        recalibrate(model, task.calibration)
        return self.noted(self.train(model, task, context), context).model
