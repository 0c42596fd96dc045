"""Recovery distillation: train a compressed network on the outputs of the original to win its accuracy back.

What it does: trains all weights on the task's own loss and on the original network's softened outputs, from the weights
that the compression left. The batch-norm statistics are estimated again first.
Cost: one forward pass of the original and one training step of the small network per batch.
When it fails: too few epochs or too small a network leave a gap, which the record shows.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)), v the original's logits.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.methods._base import Needs, Settings
from gossamer.methods._training import LimitedRetrain
from gossamer.train import recalibrate
from gossamer.train.hyperparameters import Training


@dataclass(frozen=True, kw_only=True)
class RecoveryDistillation(LimitedRetrain):
    """Train a compressed network with the uncompressed one as its teacher.

    alpha=1 trains without a teacher. The weights at the start, and those after the short trials that find a learning
    rate, count like those of the epochs: the best on validation data are kept. The other options are those of
    `Retrain`.

    Trainings of fewer than 8 passes see gossamer's own images as they are, without shifts and mirrors, which pay off
    in longer ones only: ResNet-14 with half of its blocks, three passes over Fashion-MNIST, 93.2 % against 92.9 %. What
    the teacher says of them can then be kept in `Context.cache`.

    With steps = 0 nothing is trained, only the statistics of batch norms are estimated again, which needs no labels.

    Raises:
        BadInput: both steps and epochs are given.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> pruned, _ = gossamer.methods.prune.Magnitude(sparsity=0.5)(model)
        >>> method = gossamer.methods.distill.RecoveryDistillation(epochs=1, lr=0.01)
        >>> recovered, edits = method(pruned, task, teacher=model)
        >>> edits[-1].target
        'all weights'
    """

    stage: ClassVar[int | None] = None  # may stand anywhere
    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    @property
    def trains(self) -> bool:
        """Whether there is any training."""
        return self.steps != 0

    def needed(self) -> Needs:
        """Return what it needs: without training no labels."""
        return super().needed() if self.trains else "samples"

    def training(self, task: Task) -> Training:
        """Return the schedule; the weights that are best on validation data are kept."""
        return replace(super().training(task), keep="best")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        model = copy_network(model)
        estimated = recalibrate(model, task.calibration)
        if not self.trains:
            after = "estimated again on calibration data" if estimated else "none: nothing to estimate again"
            self.note(context, EditKind.ASSIGN, "batch norms", before="statistics", after=after)
            return model
        if self.repeated(task) is None:
            context = replace(context, cache=None)
        fitted = self.train(model, self.data(task), context, epochs=self.passes(task))
        return self.noted(fitted, context).model
