"""Iterative magnitude pruning (IMP): prune and retrain in rounds, optionally rewinding the weights (lottery tickets).

What it does: sets the smallest weights to zero and retrains the others, several times. The retraining starts from the
current values, or from values of early in the training (lottery ticket hypothesis). While retraining, dropout is
reduced in proportion to the connections that are left.
Cost: one training for each round.
When it fails: it takes long; `prune.gradual` reaches about the same in one training.
Equation: drop |w| < q std(w) of the layer's nonzero weights (quality), or the same fraction of what is left in each
round so that the last round ends at `sparsity`. Dropout D_r = D_o sqrt(C_ir / C_io), C the connections of the layer
behind the dropout.
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

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, unknown
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import (
    Scope,
    moving,
    note_edits,
    scoped_masks,
    scores_of,
    selected_weights,
)


def quality_mask(weight: Tensor, quality: float) -> Tensor:
    """Return the mask of the weights whose magnitude is at least `quality` standard deviations.

    Args:
        weight: any shape. The standard deviation is that of its nonzero values.
        quality: threshold in standard deviations, > 0.

    Returns:
        Bool tensor of the same shape; True keeps. Zeros are dropped.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.
    """
    alive = weight[weight != 0]
    spread = alive.double().std(correction=0) if alive.numel() else weight.new_zeros(())
    return (weight.abs() >= quality * spread) & (weight != 0)


def rewound_dropout(rate: float, connections: int, original: int) -> float:
    """Return the dropout rate D_o sqrt(C_ir / C_io) of a pruned layer.

    Args:
        rate: dropout rate of the dense network, D_o.
        connections: nonzero weights now, C_ir.
        original: weights of the dense layer, C_io.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.2.
    """
    return float(rate * (connections / original) ** 0.5)


@contextmanager
def weaker_dropout(model: nn.Module) -> Iterator[None]:
    """Reduce dropout while the context is open, and restore it afterwards.

    Every dropout gets the rate of `rewound_dropout` for the next layer with weights, in the order of the modules.
    """
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
    """Write early values into all parameters and buffers, in place. What masks drop stays dropped.

    Args:
        model: may have constraints.
        early: values by name in the state dict of the unconstrained network. Empty: nothing happens.

    Raises:
        BadInput: a name or a shape is not of this network.

    Source: Frankle & Carbin 2019, arXiv:1803.03635.
    """
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
    """Iterative magnitude pruning (Han et al. 2015; Frankle & Carbin 2019). Give `sparsity` or `quality`.

    Args:
        sparsity: fraction of zeros after the last round over all selected layers together, in (0, 1). Every round drops
            the same fraction of what is left.
        quality: threshold of every round, in standard deviations of the layer's nonzero weights, in (0, 100].
        scope: how the sparsity is spread: "layer", "global", "lamp" or "erk"; see `prune.magnitude`.
        rounds: how often the network is pruned and retrained.
        rewind: a safetensors file with early weights of the same network, from which every round starts again. None:
            every round starts from the current weights.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training of each round; see `Retrain`.

    Raises:
        BadInput: neither or both of sparsity and quality are given.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.IterativePruning(sparsity=0.75, layers=("fc1",), rounds=2, epochs=1, lr=0.1)
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (192, 256)
    """

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
        weights = selected_weights(model, self.layers, self.ignore)
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
