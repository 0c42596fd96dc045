"""Deep mutual learning (DML): train networks together, each on the predictions of the others.

What it does: trains the student and peers of its own shape, with new random weights, at the same time, each on the task
and on the predictions of the others. No teacher is needed; only the student is kept.
Cost: one training step of each peer for each batch.
When it fails: peers that agree from the start learn nothing from each other; small data sets gain little.
Equation: alpha CE(y, z_k) + (1 - alpha) T^2 mean over the others j of KL(softmax(z_j / T) || softmax(z_k / T)).
Source: Zhang et al. 2018, arXiv:1706.00384, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, reinitialized
from gossamer.train.attached_modules import attached
from gossamer.train.distillation import Soft, soft_loss


class MutualTerm(Soft):
    """A loss term: the student's loss on the predictions of its peers, and all losses of the peers."""

    def __init__(
        self, peers: Sequence[nn.Module], task: Task, alpha: float, temperature: float, **ends: float | None
    ) -> None:
        super().__init__(temperature, alpha, **ends)
        self.peers, self.task = peers, task

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """Return the loss, a scalar."""
        given = [outputs, *(peer.train()(*inputs) for peer in self.peers)]
        said = [tree_map_only(Tensor, Tensor.detach, x) for x in given]
        total = torch.zeros((), device=inputs[0].device)
        for i, own in enumerate(given):
            others = [soft_loss(own, x, target, self.temperature) for j, x in enumerate(said) if j != i]
            total = total + (1 - self.task_weight) * torch.stack(others).mean()
            if i:
                total = total + self.task_weight * self.task.loss(lambda *_, own=own: own, (inputs, target))
        return total


@dataclass(frozen=True, kw_only=True)
class DeepMutualLearning(Student):
    """Train a student together with peers.

    The other options are those of `Student` and `Retrain`.

    Args:
        alpha: weight of the task loss, in [0, 1].
        temperature: of the predictions, in (0, 1000].
        peers: number of networks besides the student, at least 1.

    Raises:
        BadInput: the weights cannot be drawn again.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.DeepMutualLearning(peers=1, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task)
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    alpha: Annotated[float, Range(0, 1)] = 0.5
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 1.0
    peers: Annotated[int, Range(1, 100)] = 1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        peers = [reinitialized(model, context.seed + i, method=self.name()) for i in range(1, self.peers + 1)]
        term = MutualTerm(peers, task, **self.distillation_options())
        with attached(student, peers):
            return self.learn([term], student, task, context).model
