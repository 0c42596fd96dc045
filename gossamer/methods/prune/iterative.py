"""Prune and retrain in rounds.

What it does: drops the smallest weights and retrains the survivors from the values they have, several times; or, to
find a lottery ticket, from the values they had early in training. While retraining, dropout is as much weaker as the
network has become smaller.
Cost: one training for each round.
When it fails: time; `prune.gradual` reaches about the same in one training.
Equation: drop |w| < q std(w) of the layer's survivors (quality), or the same share of what is left in each round so
that the last one ends at `sparsity`. Dropout D_r = D_o sqrt(C_ir / C_io), C the connections of the layer behind it.
Source: Han et al. 2015, arXiv:1506.02626, section 3; rewinding: Frankle & Carbin 2019, arXiv:1803.03635, and Renda et
al. 2020, arXiv:2003.02389 (rewinding only the learning rate, which is what happens without `rewind`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gossamer.constraints.base import Mask, constrain, effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, unknown
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Scope,
    held_weights,
    moving,
    note_edits,
    scoped_masks,
    scores_of,
)


def quality_mask(weight: Tensor, quality: float) -> Tensor:
    """True where |w| is at least quality times the standard deviation of the weights that are not zero."""
    alive = weight[weight != 0]
    spread = alive.double().std(correction=0) if alive.numel() else weight.new_zeros(())
    return (weight.abs() >= quality * spread) & (weight != 0)


def rewound_dropout(rate: float, connections: int, original: int) -> float:
    """D_o sqrt(C_ir / C_io)."""
    return float(rate * (connections / original) ** 0.5)


@contextmanager
def weaker_dropout(model: nn.Module) -> Iterator[None]:
    """Within, every dropout has the rate that the zeros of the next layer with weights, in module order, ask for."""
    changed: list[tuple[_DropoutNd, float]] = []
    waiting: list[_DropoutNd] = []
    names = {layer_name(name): name for name in weights_of(model)}
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            waiting.append(module)
        elif name in names:
            weight = effective_weight(model, names[name])
            for dropout in waiting:
                changed.append((dropout, dropout.p))
                dropout.p = rewound_dropout(dropout.p, int(weight.count_nonzero()), weight.numel())
            waiting.clear()
    try:
        yield
    finally:
        for dropout, rate in changed:
            dropout.p = rate


@torch.no_grad()
def rewind(model: nn.Module, early: Mapping[str, Tensor]) -> None:
    """Write early values into all parameters and buffers, in place; what masks drop stays dropped. Raises BadInput if
    they are of another network."""
    raws = dict(model.named_parameters()) | dict(model.named_buffers())
    raws = {name.replace(".parametrizations.", ".").removesuffix(".original"): t for name, t in raws.items()}
    raws = {name.removeprefix("parametrizations."): t for name, t in raws.items()}
    for name, value in early.items():
        if name not in raws:
            raise unknown("tensor of the early weights", name, raws)
        if raws[name].shape != value.shape:
            raise BadInput(f"early weights: {name} is {list(value.shape)}, here {list(raws[name].shape)}")
        raws[name].copy_(value)


@dataclass(frozen=True, kw_only=True)
class IterativePruning(Retrain):
    """Give sparsity (at the end, shared out by `scope`) or quality (of every round's threshold). rewind: a safetensors
    file of early weights of the same network, from which every round starts again."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"sparsity": 0.6, "rounds": 2, "epochs": 1, "lr": 0.01}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    quality: Annotated[float | None, Range(0, 100, open_=("low",))] = None
    scope: Scope = "layer"
    rounds: Annotated[int, Range(1, 1000)] = 3
    rewind: Path | None = None
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.quality is None):
            raise BadInput(f"{self.name()}: give either sparsity or quality")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        early = safetensors.torch.load_file(self.rewind) if self.rewind else {}
        weights = held_weights(model, self.layers, self.ignore)
        free = {name: Mask(torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        result = constrain(model, free)
        for n in range(1, self.rounds + 1):
            masks = self._masks({name: effective_weight(result, name) for name in weights}, n)
            for name, h in moving(result, weights).items():
                h.mask.mask.copy_(masks[name])
            rewind(result, early)
            with weaker_dropout(result):
                self.train(result, task, context, part=f" round {n}")
        note_edits(model, result, weights, context, self.name())
        return result

    def _masks(self, weights: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
        if self.sparsity is None:
            return {name: quality_mask(w, self.quality or 0.0) for name, w in weights.items()}
        sparsity = 1 - (1 - self.sparsity) ** (n / self.rounds)
        return scoped_masks(scores_of(weights, self.scope), sparsity, self.scope)
