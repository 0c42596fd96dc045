"""Round weights to equally spaced values. Needs no data; the baseline of everything that learns where to round.

What it does: every weight becomes scale * integer, with one scale per tensor or per channel; zero stays zero.
Cost: none to speak of.
When it fails: below about 6 bits without training afterwards; `quantize.lsq` trains the scales and the weights, and
`quantize.adaround` learns the directions of rounding from unlabelled data.
Equation: w = s clamp(round(w / s), -q, q), q = 2^(bits-1) - 1; s = max |w| / q, or that with the least squared error.
Source: Vanhoucke, Senior, Mao 2011, NIPS workshop; Krishnamoorthi 2018, arXiv:1806.08342, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from gossamer.constraints.base import Grid, constrain, effective_weight, weights_of
from gossamer.constraints.grid import (
    Granularity,
    PerChannel,
    bits_by_layer,
    grid_dim,
    grid_scale,
    max_scales,
    mse_scales,
    qmax,
    rows,
)
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Settings

SCALES = {"max": max_scales, "mse": mse_scales}


def bits_grid(weight: Tensor, bits: int, granularity: Granularity, scale: str = "max") -> Grid:
    """The grid of 2^bits - 1 values, symmetric about zero, that fits a weight."""
    high = qmax(bits)
    scales = SCALES[scale](rows(weight, granularity), high)
    return Grid(grid_scale(scales, granularity), -high, high, dim=grid_dim(granularity))


def step_grid(weight: Tensor, step: float) -> Grid:
    """All multiples of `step` that the weight needs."""
    high = max(round(float(weight.abs().max()) / step), 1)
    return Grid(step, -high, high)


@dataclass(frozen=True, kw_only=True)
class UniformQuantization(Method):
    """Give bits, or step: the distance of neighbouring values, the same in all layers.

    scale: "max" reaches the largest weight, "mse" has the least squared error. layer_bits: other bits for some layers,
    by name or pattern, such as {"conv1": 8}.
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
        names = {layer_name(name): name for name in weights_of(model, self.layers, self.ignore)}
        bits = bits_by_layer(names, self.bits or 0, self.layer_bits)
        grids: dict[str, Grid] = {}
        for layer, name in names.items():
            weight = effective_weight(model, name)
            if self.step is not None:
                grids[name] = step_grid(weight, self.step)
            else:
                grids[name] = bits_grid(weight, bits[layer], self.granularity, self.scale)
            after = f"{grids[name].high - grids[name].low + 1} values, {grids[name].scale.numel()} scales"
            self.note(context, "constrain", name, before="32-bit floats", after=after)
        return constrain(model, grids)
