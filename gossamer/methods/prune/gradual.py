"""Drop the smallest weights little by little while training.

What it does: within one training, every few steps the smallest weights are dropped, many at first and few at the end;
the rest of the training recovers with all zeros in place. Dropped weights get no gradient but keep their raw values, so
one of them comes back when others have become smaller.
Cost: one training; a sort of the weights at every move.
When it fails: too few steps after the last move leave accuracy behind; too few in all, and one shot does as well.
Equation: s_t = s_f + (s_i - s_f) (1 - t / T)^3, s_i the sparsity that is there, T the step of the last move.
Source: Zhu & Gupta 2017, arXiv:1710.01878, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from gossamer.constraints.base import Mask, constrain
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Schedule,
    Scope,
    held_weights,
    moving,
    note_edits,
    scoped_masks,
    scores_of,
    zeros,
)
from gossamer.train import Step


@dataclass(frozen=True, kw_only=True)
class Tighten:
    """Moves the masks of these weights on a schedule, by the size of the raw weights."""

    names: Sequence[str]
    schedule: Schedule
    scope: Scope

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        sparsity = self.schedule.sparsity(step)
        if sparsity is None:
            return
        held = moving(step.model, self.names)
        scores = scores_of({name: h.value for name, h in held.items()}, self.scope)
        for name, mask in scoped_masks(scores, sparsity, self.scope).items():
            held[name].mask.mask.copy_(mask)


@dataclass(frozen=True, kw_only=True)
class GradualPruning(Retrain):
    """sparsity: at the end, of all named layers together, shared out by `scope` ("layer", "global", "lamp", "erk").
    every: steps from one move to the next. until: share of the training after which nothing moves."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"sparsity": 0.6, "every": 1, "epochs": 1, "lr": 0.01}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    scope: Scope = "global"
    every: Annotated[int, Range(1, 100_000)] = 50
    until: Annotated[float, Range(0, 1, open_=("low",))] = 0.7
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = held_weights(model, self.layers, self.ignore)
        schedule = Schedule(start=zeros(weights), final=self.sparsity, every=self.every, until=self.until)
        free = {name: Mask(torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        tighten = Tighten(names=tuple(weights), schedule=schedule, scope=self.scope)
        result = self.train(constrain(model, free), task, context, after_step=tighten).model
        note_edits(model, result, weights, context, self.name())
        return result
