"""Rigged Lottery (RigL): train a sparse network whose connections are dropped and regrown.

What it does: starts from a sparse network and trains it at constant sparsity. Every few steps the smallest weights are
dropped, and as many dropped connections, those with the largest gradients, are grown from zero.
Cost: one training; the gradients of dropped weights are computed as well.
When it fails: short trainings exchange few connections, and the result is worse than a network that was pruned after
training.
Equation: a fraction a/2 (1 + cos(pi t / T)) of a layer's connections is exchanged at step t; drop the smallest |w|,
grow the largest |dL/dw| among the connections that are then absent.
Source: Evci et al. 2020, arXiv:1911.11134, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.constraints.apply import constrain, finalize
from gossamer.constraints.base import Constraint
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Scope,
    moving,
    note_edits,
    scoped_masks,
    selected_weights,
    smallest_mask,
)
from gossamer.train.loop import TrainingStep


class GradientRecordingMask(Mask):
    """A mask that records the gradient of the masked weight everywhere, as that of `probe`, which adds nothing."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self.probe = nn.Parameter(torch.zeros(mask.numel(), device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight) + (self.probe - self.probe.detach()).view(weight.shape)

    def finalized(self) -> Constraint:
        return Mask(self.mask)


def moved(mask: Tensor, weight: Tensor, gradient: Tensor, share: float, allowed: Tensor) -> Tensor:
    """Return the mask after the smallest weights were exchanged for connections with the largest gradients.

    Connections without a gradient do not grow: they would stay zero, and the network would be sparser than requested.

    Args:
        mask: bool; True keeps.
        weight: of the mask's shape.
        gradient: of the masked weight, of the mask's shape.
        share: fraction of the kept connections to exchange, in [0, 1].
        allowed: bool of the mask's shape; False where other masks forbid a connection.

    Returns:
        Bool tensor of the same shape that keeps as many connections as `mask`.
    """
    active = int(mask.sum())
    count = min(round(share * active), int((allowed & ~mask & (gradient != 0)).sum()))
    stay = smallest_mask(weight.abs().where(mask, -1.0), mask.numel() - active + count)
    gain = gradient.abs().where(allowed & ~stay, -1.0)
    return stay | smallest_mask(gain, mask.numel() - count)


def forget(optimizer: Optimizer, parameter: nn.Parameter, where: Tensor) -> None:
    """Set the optimizer's running averages of a parameter to zero where `where` is True, in place."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == where.shape:
            value[where] = 0.0


@dataclass(frozen=True, kw_only=True)
class Rewire:
    """Exchange connections of these weights during a training; called after every step.

    Attributes:
        names: of the weights ("conv1.weight").
        moves: fraction of a layer's connections that is exchanged at first; it falls to zero as a half cosine.
        every: steps between two exchanges.
        until: fraction of all steps after which nothing is exchanged.
    """

    names: Sequence[str]
    moves: float
    every: int
    until: float

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        last = self.until * step.steps
        if step.number % self.every or step.number >= last:
            return
        share = self.moves / 2 * (1 + math.cos(math.pi * step.number / last))
        for h in moving(step.model, self.names).values():
            assert isinstance(h.mask, GradientRecordingMask)
            if h.mask.probe.grad is None:  # the step did not use the layer
                continue
            old = h.mask.mask
            new = moved(old, h.value, h.mask.probe.grad.view(old.shape), share, h.allowed)
            grown = new & ~old
            h.raw[grown] = 0.0
            forget(step.optimizer, h.raw, grown)
            old.copy_(new)


@dataclass(frozen=True, kw_only=True)
class RigL(Retrain):
    """Rigged Lottery (Evci et al. 2020).

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1), from the first step to the last.
        scope: how it is spread: "layer", "global", "lamp" or "erk"; see `prune.magnitude`.
        moves: fraction of a layer's connections that is exchanged at first, in (0, 1].
        every: steps between two exchanges.
        until: fraction of the training, in (0, 1], after which the connections stay as they are.
        start: "random": random connections; "magnitude": those with the largest weights, for a trained network.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.RigL(sparsity=0.5, layers=("fc1",), every=1, epochs=1, lr=0.01)
        >>> sparse, edits = method(model, task)
        >>> 128 <= int((sparse.fc1.weight == 0).sum()) < 256
        True
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"sparsity": 0.6, "every": 1, "epochs": 1, "lr": 0.01}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    scope: Scope = "erk"
    moves: Annotated[float, Range(0, 1, open_=("low",))] = 0.3
    every: Annotated[int, Range(1, 100_000)] = 100
    until: Annotated[float, Range(0, 1, open_=("low",))] = 0.75
    start: Literal["random", "magnitude"] = "random"
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = selected_weights(model, self.layers, self.ignore)
        draw = torch.Generator().manual_seed(context.seed)
        scores = {name: w.abs() for name, w in weights.items()}
        if self.start == "random":
            scores = {n: (w != 0) * (torch.rand(w.shape, generator=draw).to(w.device) + 1) for n, w in weights.items()}
        probed = {
            name: GradientRecordingMask(mask) for name, mask in scoped_masks(scores, self.sparsity, self.scope).items()
        }
        rewire = Rewire(names=tuple(weights), moves=self.moves, every=self.every, until=self.until)
        result = finalize(self.train(constrain(model, probed), task, context, after_step=rewire).model)
        note_edits(model, result, weights, context, self.name())
        return result
