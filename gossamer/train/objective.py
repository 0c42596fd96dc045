"""What is made small."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import Model, as_logits, class_labels, cross_entropy, inputs_and_labels, inputs_and_target
from gossamer.core.outputs import first_tensor
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.train.distillation import LossTerm, ScheduledTerm
from gossamer.train.mixup import MixedTarget


class Objective:
    """The task's loss and the terms of `loss_terms`, from one run of the network for each batch.

    `autocast()` gives the context in which the terms are computed, so that a teacher runs in the student's precision.
    """

    def __init__(
        self, module: Model, task: Task, loss_terms: Sequence[LossTerm], autocast: Any, label_smoothing: float = 0.0
    ) -> None:
        self.module, self.loss_terms, self.autocast = module, loss_terms, autocast
        self.loss = task_loss(task, label_smoothing)
        self.outputs: list[Any] = []

    def at(self, progress: float) -> None:
        """Tell the terms that follow a schedule how far the training is, from 0 to 1."""
        for term in self.loss_terms:
            if isinstance(term, ScheduledTerm):
                term.at(progress)

    def __call__(self, batch: Any) -> Tensor:
        """The total loss of a batch, a scalar."""
        if not self.loss_terms:
            return self.loss(self.module, batch)
        self.outputs.clear()
        total = prod(term.task_weight for term in self.loss_terms) * self.loss(self._noted, batch)
        if len(self.outputs) != 1:
            raise BadInput(
                f"training: the task's loss ran the network {len(self.outputs)} times for one batch; "
                "with terms in `loss_terms` it must run it once"
            )
        inputs, target = inputs_and_target(batch)
        if isinstance(target, MixedTarget):
            target = target.first
        with self._context():
            for term in self.loss_terms:
                total = total + term(inputs, self.outputs[0], target)
        return total

    def _context(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.autocast()
        return context

    def _noted(self, *inputs: Any, **named: Any) -> Any:
        outputs = self.module(*inputs, **named)
        self.outputs.append(outputs)
        return outputs


def task_loss(task: Task, label_smoothing: float) -> Callable[[Model, Any], Tensor]:
    """The task's loss, with smoothed labels where that is asked for."""
    if label_smoothing and task.loss is not cross_entropy:
        raise BadInput("training: label_smoothing needs a task whose loss is cross_entropy; smooth in your own loss")
    return _Smoothed(label_smoothing) if label_smoothing else task.loss


class _Smoothed:
    """Cross entropy with smoothed labels."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, model: Model, batch: Any) -> Tensor:
        inputs, target = inputs_and_labels(batch)
        logits = as_logits(first_tensor(model(*inputs)))
        return F.cross_entropy(logits, class_labels(logits, target), label_smoothing=self.smoothing)
