"""Flow of solution procedure (FSP): train a student to have the teacher's relations between layers.

What it does: first trains the student until the inner products of its channels at the beginning and at the end of a
stage are the teacher's, then trains all of it by knowledge distillation.
Cost: one forward pass of the teacher for each batch of both stages, and a product of channels by channels by positions.
When it fails: stages must begin and end with images. Where the numbers of channels differ, adapters are trained with
the student and then dropped, and with them a part of what was learned.
Equation: stage 1: |G_T - G_S|^2 / |G_T|^2, G_ij = mean over positions of F1_i F2_j; stage 2: as `distill.kd`.
Source: Yim et al. 2017, doi:10.1109/CVPR.2017.754, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.losses import fsp_loss, fsp_matrix
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import HintedStudent
from gossamer.train.feature_hooks import projection


def relative_fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean `fsp_loss` of layers (0, 1), (2, 3) and so on, each over the square of the teacher's matrix."""
    losses = []
    for i in range(0, len(student), 2):
        size = fsp_matrix(teacher[i], teacher[i + 1]).pow(2).sum((1, 2)).mean()
        loss = fsp_loss((student[i], student[i + 1]), (teacher[i], teacher[i + 1]))
        losses.append(loss / size.clamp_min(torch.finfo(size.dtype).tiny))
    return torch.stack(losses).mean()


@dataclass(frozen=True, kw_only=True)
class FSP(HintedStudent):
    """Train a student on the teacher's FSP matrices, then on its outputs.

    `layers` names two layers, one after the other, for each matrix; empty: the first and last of each resolution. The
    other options are those of `HintedStudent`, `Student` and `Retrain`.

    Raises:
        BadInput: there is no teacher, no layers to compare, or an odd number of layers.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.FSP(epochs=1, hint_epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [edit.target for edit in edits]
        ['all weights on hints', 'all weights']
    """

    example: ClassVar[Settings] = {"epochs": 1, "hint_epochs": 1, "lr": 0.01}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if len(self.layers) % 2:
            raise BadInput(f"{self.name()}: layers has {len(self.layers)} entries; a matrix needs two, first and last")
        student = copy_network(model)
        pairs = self.pairs(student, task, context, firsts=True)
        return self.in_two_stages(pairs, relative_fsp_loss, projection, student, task, context)
