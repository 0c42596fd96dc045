"""Gradual magnitude pruning (GMP): raise the sparsity on a cubic schedule while training.

What it does: in one training, every few steps the smallest weights are set to zero: many at first, few at the end. The
rest of the training recovers accuracy with all zeros in place. Dropped weights get no gradient but keep their raw
values, so that one of them returns when others have become smaller.
Cost: one training; a sort of the weights at every update of the masks.
When it fails: too few steps after the last update leave accuracy unrecovered. With too few steps in all, pruning in
one shot does as well.
Equation: s_t = s_f + (s_i - s_f) (1 - t / T)^3, s_i the sparsity at the start, T the step of the last update.
Source: Zhu & Gupta 2017, arXiv:1710.01878, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Schedule,
    Scope,
    moving,
    note_edits,
    scoped_masks,
    scores_of,
    selected_weights,
    zeros,
)
from gossamer.train.loop import TrainingStep


@dataclass(frozen=True, kw_only=True)
class Tighten:
    """Update the masks of these weights on a schedule, by the magnitude of the raw weights; called after every step.

    Attributes:
        names: of the weights ("conv1.weight").
        schedule: the sparsity at each step.
        scope: how the sparsity is spread over the layers; see `scoped_masks`.
    """

    names: Sequence[str]
    schedule: Schedule
    scope: Scope

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        sparsity = self.schedule.sparsity(step)
        if sparsity is None:
            return
        masks = moving(step.model, self.names)
        scores = scores_of({name: h.value for name, h in masks.items()}, self.scope)
        for name, mask in scoped_masks(scores, sparsity, self.scope).items():
            masks[name].mask.mask.copy_(mask)


@dataclass(frozen=True, kw_only=True)
class GradualPruning(Retrain):
    """Gradual magnitude pruning (Zhu & Gupta 2017).

    Args:
        sparsity: fraction of zeros at the end over all selected layers together, in (0, 1).
        scope: how it is spread: "layer", "global", "lamp" or "erk"; see `prune.magnitude`.
        every: steps between two updates of the masks.
        until: fraction of the training, in (0, 1], after which the masks stay as they are.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.GradualPruning(sparsity=0.5, layers=("fc1",), every=1, epochs=1, lr=0.01)
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (128, 256)
    """

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
        weights = selected_weights(model, self.layers, self.ignore)
        schedule = Schedule(start=zeros(weights), final=self.sparsity, every=self.every, until=self.until)
        free = {name: Mask(torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        tighten = Tighten(names=tuple(weights), schedule=schedule, scope=self.scope)
        result = self.train(constrain(model, free), task, context, after_step=tighten).model
        note_edits(model, result, weights, context, self.name())
        return result
