"""Learned step size quantization (LSQ): train weights and step sizes together, at 8 to 2 bits.

What it does: rounds weights in every forward pass, trains them through the rounding (straight-through estimator), and
trains the step size of each tensor or channel with them, with the uncompressed network as teacher. Activations are not
quantized here.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: at 2 bits in narrow networks, and in first and last layers: give those more bits with layer_bits.
Equation: w = s clamp(round(v / s), -2^(b-1), q), q = 2^(b-1) - 1; dw/ds = round(v/s) - v/s inside, -2^(b-1) or q
outside, times 1 / sqrt(N q); at first s = 2 mean |v| / sqrt(q).
Source: Esser et al. 2020, arXiv:1902.08153, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.grid import (
    Granularity,
    Grid,
    PerTensor,
    bits_by_layer,
    grid_dim,
    grid_scale,
    qmax,
    rows,
)
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain


def first_scales(rows_SN: Tensor, high: int) -> Tensor:
    """Return the initial step sizes 2 mean |v| / sqrt(high), the mean over weights that are not zero.

    Args:
        rows_SN: weights, one row for each scale.
        high: largest code.

    Returns:
        Shape (S,).

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.1.
    """
    used = (rows_SN != 0).sum(1).clamp_min(1)
    scales: Tensor = 2 * rows_SN.abs().sum(1) / used / float(high) ** 0.5
    return scales.clamp_min(torch.finfo(rows_SN.dtype).tiny)


def learned_grid(weight: Tensor, bits: int, granularity: Granularity) -> Grid:
    """Return the grid of all 2^bits codes, with step sizes that are trained.

    Args:
        weight: any shape.
        bits: of the codes, at least 2.
        granularity: one scale per tensor, per channel or per group.
    """
    high = qmax(bits)
    scales = grid_scale(first_scales(rows(weight, granularity), high), granularity)
    return Grid(scales, -high - 1, high, dim=grid_dim(granularity), learned=True)


@dataclass(frozen=True, kw_only=True)
class LearnedStepSize(Retrain):
    """Learned step size quantization (Esser et al. 2020).

    Args:
        bits: bits of a code, in [2, 8].
        granularity: one scale per tensor (`PerTensor`, the default), per channel (`PerChannel`) or per group
            (`PerGroup`).
        layer_bits: other bits for some layers, by name or pattern, such as {"conv1": 8}.
        layers: names or patterns of the layers to quantize, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.quantize.LearnedStepSize(bits=2, layers=("fc1",), epochs=1, lr=0.01)
        >>> quantized, edits = method(model, task)
        >>> len(quantized.fc1.weight.unique()) <= 4
        True
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    usual_epochs: ClassVar[int] = 10
    example: ClassVar[Settings] = {"bits": 3, "epochs": 1, "lr": 0.01}

    bits: Annotated[int, Range(2, 8)] = 4
    granularity: Granularity = field(default_factory=PerTensor)
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        names = {layer_name(name): name for name in weights_of(model, self.layers, self.ignore, tables=True)}
        bits = bits_by_layer(names, self.bits, self.layer_bits)
        grids = {
            n: learned_grid(effective_weight(model, n), bits[layer], self.granularity) for layer, n in names.items()
        }
        result = self.train(constrain(model, grids), task, context, keep="best").model
        for layer, name in names.items():
            after = f"{2 ** bits[layer]} values, {grids[name].scale.numel()} trained scales"
            self.note(context, EditKind.CONSTRAIN, name, before="32-bit floats", after=after)
        return result
