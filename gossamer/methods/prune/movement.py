"""Movement pruning: prune the weights that training moves towards zero.

What it does: while training, every weight has a score. It grows when a step moves the weight away from zero and falls
when a step moves the weight towards zero. The lowest scores are dropped, more and more of them on a cubic schedule.
Scores of dropped weights are still trained, so that a weight can return.
Cost: one training, a second number for every weight, a sort at every update of the masks.
When it fails: it is made for transferring a network to a new task, where magnitudes say little. On the network's own
task at moderate sparsity, magnitude pruning is as good.
Equation: S = - sum over steps of lr (dL/dW') w, W' the masked weight; keep the largest S of every layer.
Source: Sanh et al. 2020, arXiv:2005.07683, section 4 (hard movement pruning).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, finalize
from gossamer.constraints.base import Constraint
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Schedule,
    moving,
    note_edits,
    scoped_masks,
    selected_weights,
    zeros,
)
from gossamer.train.loop import TrainingStep


class Scored(Mask):
    """A mask with a trained score for each weight.

    The gradient of a score is that of the masked weight times the weight, also where the weight is dropped. The
    gradient of the weight itself is masked.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self.scores = nn.Parameter(torch.zeros(mask.numel(), device=mask.device))  # of one dimension: never decayed

    def forward(self, weight: Tensor) -> Tensor:
        nothing = (self.scores - self.scores.detach()).view(weight.shape)
        return super().forward(weight) + nothing * weight.detach()

    def finalized(self) -> Constraint:
        return Mask(self.mask)


@dataclass(frozen=True, kw_only=True)
class Follow:
    """Update the masks of these weights on a schedule, by their scores; called after every step.

    Attributes:
        names: of the weights ("conv1.weight").
        schedule: the sparsity at each step.
        scope: "layer": the same sparsity in every layer; "global": one ranking of the scores.
    """

    names: Sequence[str]
    schedule: Schedule
    scope: Literal["layer", "global"]

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        sparsity = self.schedule.sparsity(step)
        if sparsity is None:
            return
        masks = moving(step.model, self.names)
        scores = {}
        for name, h in masks.items():
            assert isinstance(h.mask, Scored)
            scores[name] = h.mask.scores.view(h.raw.shape).where(h.allowed, -torch.inf)
        for name, mask in scoped_masks(scores, sparsity, self.scope).items():
            masks[name].mask.mask.copy_(mask)


@dataclass(frozen=True, kw_only=True)
class MovementPruning(Retrain):
    """Movement pruning (Sanh et al. 2020).

    Args:
        sparsity: fraction of zeros at the end over all selected layers together, in (0, 1).
        scope: "layer": the same sparsity in every layer; "global": one ranking of the scores.
        every: steps between two updates of the masks.
        until: fraction of the training, in (0, 1], after which the masks stay as they are.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.MovementPruning(sparsity=0.5, layers=("fc1",), every=1, epochs=1, lr=0.01)
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (128, 256)
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"sparsity": 0.6, "every": 1, "epochs": 1, "lr": 0.01}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    scope: Literal["layer", "global"] = "layer"
    every: Annotated[int, Range(1, 100_000)] = 10
    until: Annotated[float, Range(0, 1, open_=("low",))] = 0.7
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = selected_weights(model, self.layers, self.ignore)
        schedule = Schedule(start=zeros(weights), final=self.sparsity, every=self.every, until=self.until)
        scored = {name: Scored(torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        follow = Follow(names=tuple(weights), schedule=schedule, scope=self.scope)
        result = finalize(self.train(constrain(model, scored), task, context, after_step=follow).model)
        note_edits(model, result, weights, context, self.name())
        return result
