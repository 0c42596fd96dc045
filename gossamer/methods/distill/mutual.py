"""Learn together with others that know as little (deep mutual learning).

What it does: trains the student and peers of its own shape, drawn anew, at the same time, each on the task and on what
the others say. No teacher is needed; only the student is kept.
Cost: one training step of each peer for each batch.
When it fails: peers that agree from the start have nothing to say to each other; small data sets gain little.
Equation: alpha CE(y, z_k) + (1 - alpha) T^2 mean over the others j of KL(softmax(z_j / T) || softmax(z_k / T)).
Source: Zhang et al. 2018, arXiv:1706.00384, section 2.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, fresh
from gossamer.train.attached_modules import attached
from gossamer.train.distillation import Soft, soft_loss


class Together(Soft):
    """A term of `teach`: what the others teach the student, and all that the peers learn."""

    def __init__(
        self, peers: Sequence[nn.Module], task: Task, alpha: float, temperature: float, **ends: float | None
    ) -> None:
        super().__init__(temperature, alpha, **ends)
        self.peers, self.task = peers, task

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar."""
        given = [outputs, *(peer.train()(*inputs) for peer in self.peers)]
        said = [tree_map_only(Tensor, Tensor.detach, x) for x in given]
        total = torch.zeros((), device=inputs[0].device)
        for i, own in enumerate(given):
            others = [soft_loss(own, x, target, self.temperature) for j, x in enumerate(said) if j != i]
            total = total + (1 - self.hard_weight) * torch.stack(others).mean()
            if i:
                total = total + self.hard_weight * self.task.loss(lambda *_, own=own: own, (inputs, target))
        return total


@dataclass(frozen=True, kw_only=True)
class DeepMutualLearning(Student):
    """peers: how many besides the student."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    alpha: Annotated[float, Range(0, 1)] = 0.5
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 1.0
    peers: Annotated[int, Range(1, 100)] = 1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy.deepcopy(model)
        peers = [fresh(model, context.seed + i, method=self.name()) for i in range(1, self.peers + 1)]
        term = Together(peers, task, **self.softness())
        with attached(student, peers):
            return self.learn([term], student, task, context).model
