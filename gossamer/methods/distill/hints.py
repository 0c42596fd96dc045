"""FitNets: train a student on a hidden layer of the teacher (the hint), then on its outputs.

What it does: first trains the student up to its guided layer to predict the teacher's hint layer through a regressor,
which is then dropped; then trains all of it by knowledge distillation. For students that are thinner and deeper than
the teacher.
Cost: one forward pass of the teacher for each batch of both stages.
When it fails: a hint too near the output restricts the student too much. Where the student's map is larger than the
teacher's by more than four positions per axis, features are averaged down and the regressor is 1 x 1.
Equation: stage 1: |u - r(f)|^2 over the mean square of the hint u; stage 2: as `distill.kd`.
Source: Romero et al. 2015, arXiv:1412.6550, section 2.2.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import HintedStudent, relative_hint_loss
from gossamer.train.feature_hooks import regressor


@dataclass(frozen=True, kw_only=True)
class FitNets(HintedStudent):
    """Train a student on a hint layer of the teacher, then on its outputs.

    `layers` is the teacher's hint layer by the student's guided layer; empty: the layers in the middle. The other
    options are those of `HintedStudent`, `Student` and `Retrain`.

    Raises:
        BadInput: there is no teacher, or no layers to compare.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.FitNets(epochs=1, hint_epochs=1, lr=0.01, layers={"relu1": "relu1"})
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [edit.target for edit in edits]
        ['all weights on hints', 'all weights']
    """

    example: ClassVar[Settings] = {"epochs": 1, "hint_epochs": 1, "lr": 0.01, "layers": {"body.0": "body.0"}}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        pairs = self.pairs(student, task, context)
        if not self.layers:
            pairs = [pairs[len(pairs) // 2]]
        return self.in_two_stages(pairs, relative_hint_loss, regressor, student, task, context)
