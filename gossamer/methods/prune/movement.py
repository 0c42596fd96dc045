"""Drop the weights that training moves towards zero.

What it does: while training, every weight has a score that grows when a step moves the weight away from zero and falls
when it moves it towards zero; the lowest scores are dropped, more and more of them on a cubic schedule. Scores of
dropped weights go on learning, so that a weight can come back.
Cost: one training, a second number for every weight, a sort at every move.
When it fails: it is made for transferring a network to a new task, where sizes say little; at moderate sparsity of a
network that stays on its task, magnitudes are as good.
Equation: S = - sum over steps of lr (dL/dW') w, W' the masked weight; keep the largest S of every layer.
Source: Sanh et al. 2020, arXiv:2005.07683, section 4 (hard movement pruning).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint, Mask, constrain, finalize
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Schedule,
    held_weights,
    moving,
    note_edits,
    scoped_masks,
    zeros,
)
from gossamer.train import Step


class Scored(Mask):
    """A mask with a trained score for each weight. The gradient of a score is that of the masked weight times the
    weight, also where the weight is dropped; the weight's own gradient is masked."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self.scores = nn.Parameter(torch.zeros(mask.numel(), device=mask.device))  # of one dimension: never decayed

    def forward(self, weight: Tensor) -> Tensor:
        nothing = (self.scores - self.scores.detach()).view(weight.shape)
        return super().forward(weight) + nothing * weight.detach()

    def settled(self) -> Constraint:
        return Mask(self.mask)


@dataclass(frozen=True, kw_only=True)
class Follow:
    """Moves the masks of these weights on a schedule, by their scores."""

    names: Sequence[str]
    schedule: Schedule
    scope: Literal["layer", "global"]

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        sparsity = self.schedule.sparsity(step)
        if sparsity is None:
            return
        held = moving(step.model, self.names)
        scores = {}
        for name, h in held.items():
            assert isinstance(h.mask, Scored)
            scores[name] = h.mask.scores.view(h.raw.shape).where(h.allowed, -torch.inf)
        for name, mask in scoped_masks(scores, sparsity, self.scope).items():
            held[name].mask.mask.copy_(mask)


@dataclass(frozen=True, kw_only=True)
class MovementPruning(Retrain):
    """sparsity: at the end. scope: "layer" (the same in each) or "global" (one ranking of scores). every: steps from
    one move to the next. until: share of the training after which nothing moves."""

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
        weights = held_weights(model, self.layers, self.ignore)
        schedule = Schedule(start=zeros(weights), final=self.sparsity, every=self.every, until=self.until)
        scored = {name: Scored(torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        follow = Follow(names=tuple(weights), schedule=schedule, scope=self.scope)
        result = finalize(self.train(constrain(model, scored), task, context, after_step=follow).model)
        note_edits(model, result, weights, context, self.name())
        return result
