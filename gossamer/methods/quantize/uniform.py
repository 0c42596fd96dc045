"""Uniform weight quantization: round weights to equally spaced values (round-to-nearest post-training quantization).

What it does: every weight becomes scale * integer, with one scale per tensor or per channel (of an embedding: per row).
Zeros stay zero. It needs no data, and is the baseline of all methods that learn the rounding.
Cost: negligible.
When it fails: below about 6 bits without training afterwards; `quantize.lsq` trains the scales and the weights, and
`quantize.adaround` learns the rounding from unlabelled data.
Equation: w = s clamp(round(w / s), -q, q), q = 2^(bits-1) - 1; s = max |w| / q, or the s with the least squared error.
Source: Vanhoucke, Senior, Mao 2011, NIPS workshop; Krishnamoorthi 2018, arXiv:1806.08342, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.grid import (
    Granularity,
    Grid,
    PerChannel,
    bits_by_layer,
    grid_dim,
    grid_scale,
    max_scales,
    mse_scales,
    qmax,
    rows,
)
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Settings

SCALES = {"max": max_scales, "mse": mse_scales}


def bits_grid(weight: Tensor, bits: int, granularity: Granularity, scale: str = "max") -> Grid:
    """Return the symmetric grid of 2^bits - 1 values that fits a weight.

    Args:
        weight: any shape.
        bits: of the codes, at least 2.
        granularity: one scale per tensor, per channel or per group.
        scale: "max": the largest weight is on the grid; "mse": the least squared error.
    """
    high = qmax(bits)
    scales = SCALES[scale](rows(weight, granularity), high)
    return Grid(grid_scale(scales, granularity), -high, high, dim=grid_dim(granularity))


def step_grid(weight: Tensor, step: float) -> Grid:
    """Return the grid of the multiples of `step` up to the largest weight."""
    high = max(round(float(weight.abs().max()) / step), 1)
    return Grid(step, -high, high)


@dataclass(frozen=True, kw_only=True)
class UniformQuantization(Method):
    """Uniform weight quantization (Krishnamoorthi 2018). Give `bits` or `step`.

    Args:
        bits: bits of a code, in [2, 16].
        step: distance of neighbouring values, > 0, the same in all layers.
        granularity: one scale per tensor (`PerTensor`), per channel (`PerChannel`, the default) or per group
            (`PerGroup`).
        scale: "max": the largest weight is on the grid; "mse": the scale with the least squared error.
        layer_bits: other bits for some layers, by name or pattern, such as {"conv1": 8}.
        layers: names or patterns of the layers to quantize, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: neither or both of bits and step are given, or step with layer_bits.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(64, 4)
        >>> quantized, edits = gossamer.methods.quantize.UniformQuantization(bits=3)(model)
        >>> max(len(row.unique()) for row in quantized.weight) <= 7
        True
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    example: ClassVar[Settings] = {"bits": 3}

    bits: Annotated[int | None, Range(2, 16)] = None
    step: Annotated[float | None, Range(0, 1e6, open_=("low",))] = None
    granularity: Granularity = field(default_factory=PerChannel)
    scale: Literal["max", "mse"] = "max"
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits is None) == (self.step is None):
            raise BadInput(f"{self.name()}: give either bits or step")
        if self.step is not None and self.layer_bits:
            raise BadInput(f"{self.name()}: layer_bits goes with bits, not with step")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        names = {layer_name(name): name for name in weights_of(model, self.layers, self.ignore, tables=True)}
        bits = bits_by_layer(names, self.bits or 0, self.layer_bits)
        grids: dict[str, Grid] = {}
        for layer, name in names.items():
            weight = effective_weight(model, name)
            if self.step is not None:
                grids[name] = step_grid(weight, self.step)
            else:
                grids[name] = bits_grid(weight, bits[layer], self.granularity, self.scale)
            after = f"{grids[name].qmax - grids[name].qmin + 1} values, {grids[name].scale.numel()} scales"
            self.note(context, EditKind.CONSTRAIN, name, before="32-bit floats", after=after)
        return constrain(model, grids)
