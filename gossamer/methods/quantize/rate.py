"""Train the network into a file that is a given number of times smaller.

What it does: puts all weights on grids whose spacing is trained, and adds to the loss what the integers would cost an
adaptive entropy coder, times an exchange rate that is steered until the file has the size asked for. Which weights
become zero, which rows die, how fine each layer's grid is: all follow from the one rate. Batch norms are folded into
two vectors, and vectors are put on grids as well.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: a size that the network cannot be squeezed into costs accuracy; the size itself is nearly always met.
Equation: min loss + rate * sum_i length(q_i), w_i = step * q_i; length(0) = -log(1 - d_i), length(q) = -log d_i + log 2
+ |q| - 1 geometric, d_i = row density * column density / density of the tensor.
Source: entropy-constrained quantization, Choi et al. 2017, arXiv:1612.01543, section 4, by gradient descent as in Oktay
et al. 2020, arXiv:1906.06624, with the densities that an adaptive coder sees in the place of a learned model.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import nn

from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.writing import save
from gossamer.constraints.base import (
    Grid,
    constrain,
    constraints,
    effective_weight,
    finalize,
    materialize,
    weights_of,
)
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.modules.cost import dense_bytes
from gossamer.train import Training
from gossamer.train.length_price import Rate, RateGrid

VECTOR_BITS = 8
WORTH = 6.0  # bits that a weight is thought to save when it becomes zero


def file_bytes(model: nn.Module, task: Task | None = None) -> int:
    """Bytes of the network as a compact file; with a task, with its graph, if a file can hold it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gsr"
        try:
            return save(shortened(model), path, task.example_inputs if task else None).stat().st_size
        except BadInput:
            if task is None:
                raise
            return file_bytes(model)


def least_bytes(model: nn.Module, task: Task, layers: Sequence[str] = ("*",), ignore: Sequence[str] = ()) -> int:
    """Bytes of the file if all weights were zero: no training makes it as small."""
    return file_bytes(_silenced(model, list(weights_of(model, layers, ignore, every=True))), task)


def shortened(model: nn.Module) -> nn.Module:
    """A plain copy with batch norms folded, and all vectors on grids of 8 bits."""
    return materialize(on_grids(fold_batch_norm(model)))


def on_grids(model: nn.Module) -> nn.Module:
    """A copy in which all parameters that nothing holds are on grids of 8 bits, each tensor with its own step."""
    held, steps = constraints(model), {}
    for name, p in materialize(model).named_parameters():
        if name not in held and p.is_floating_point() and float(p.detach().abs().max()) > 0:
            high = 2 ** (VECTOR_BITS - 1) - 1
            step = short(float(p.detach().abs().max()) / high)
            steps[name] = Grid(step, -high - 1, high)
    return constrain(model, steps) if steps else model


def short(step: float) -> float:
    """The number next to it, not below, that bfloat16 holds: a step that costs two bytes."""
    up = step * (1 + 2**-8)
    return float(torch.tensor(up).to(torch.bfloat16))


@dataclass(frozen=True, kw_only=True)
class RateConstrainedQuantization(Retrain):
    """compression_ratio: bytes of the original in float32 over bytes of the whole compact file. step: spacing of the
    grids at first, in standard deviations of the weights. ramp: share of the training in which the size is brought
    down. layers, ignore: patterns. Trained with AdamW; the rest as in `distill.recover`."""

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    usual_epochs: ClassVar[int] = 30
    example: ClassVar[Settings] = {"compression_ratio": 2.5, "epochs": 1}

    compression_ratio: Annotated[float, Range(1, 1e6, open_=("low",))]
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 2.0
    alpha: Annotated[float, Range(0, 1)] = 0.3
    step: Annotated[float, Range(0, 100, open_=("low",))] = 0.7
    ramp: Annotated[float, Range(0, 1, open_=("low",))] = 0.6
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def training(self, task: Task) -> Training:
        return replace(super().training(task), optimizer="adamw")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        least = least_bytes(model, task, self.layers, self.ignore)
        wanted = (
            dense_bytes(context.original if context.original is not None else materialize(model))
            / self.compression_ratio
        )
        if wanted <= least:
            raise BadInput(
                f"{self.name()}: compression_ratio = {self.compression_ratio:g}: a file of {wanted:,.0f} bytes, but "
                f"without the weights it would already have {least:,}; ask for less, or cut the network down first"
            )
        names = list(weights_of(model, self.layers, self.ignore, every=True))
        grids = {}
        for name in names:
            w = effective_weight(model, name)
            spread = float(w[w != 0].std()) if int((w != 0).sum()) > 1 else 1.0
            grids[name] = RateGrid(w, self.step * (spread if math.isfinite(spread) and spread > 0 else 1.0))
        held = constrain(model, grids)
        graph = file_bytes(held, task) - file_bytes(held)
        trained = trimmed(self._train(held, graph, least, wanted, task, context), names, wanted, task)
        for name in names:
            w = effective_weight(trained, name)
            after = f"{len(torch.unique(w))} values, {int((w == 0).sum()):,} zeros"
            self.note(context, "constrain", name, before=f"{w.numel():,} weights", after=after)
        return trained

    def _train(self, held: nn.Module, graph: int, least: int, wanted: float, task: Task, context: Context) -> nn.Module:
        """Trains `held` itself. graph, least: bytes of the graph alone, and of the file without these weights."""

        def size(model: nn.Module) -> int:
            return file_bytes(Rate.leave(copy.deepcopy(model))) + graph - least

        rate = Rate(held, wanted - least, self.ramp, size)
        try:
            self.train(held, task, context, teach=[rate], after_step=rate.after_step)
        finally:
            Rate.leave(held)
        return on_grids(fold_batch_norm(finalize(held)))


@torch.no_grad()
def trimmed(model: nn.Module, names: list[str], wanted: float, task: Task) -> nn.Module:
    """A copy whose file is not larger than `wanted`: where training ended above it, the weights that were nearest to
    zero become zero, a few at a time."""
    model = copy.deepcopy(model)
    held, raws = constraints(model), weights_of(model, every=True)
    while (over := file_bytes(model, task) - wanted) > 0:
        distance = {}
        for name in names:
            [*_, grid] = held[name]
            assert isinstance(grid, Grid)
            distance[name] = (raws[name] / grid.scale).abs().masked_fill(effective_weight(model, name) == 0, math.inf)
        every = torch.cat([d.flatten() for d in distance.values()])
        count = min(max(1, int(over * 8 / WORTH)), int(every.isfinite().sum()))
        limit = every.kthvalue(count).values if count else math.inf
        for name, d in distance.items():
            raws[name].masked_fill_(d <= limit, 0.0)
        if not count:
            break
    return model


def _silenced(model: nn.Module, names: list[str]) -> nn.Module:
    """A plain copy in which these weights are zero."""
    plain = materialize(model)
    with torch.no_grad():
        for name in names:
            plain.get_parameter(name).zero_()
    return plain
