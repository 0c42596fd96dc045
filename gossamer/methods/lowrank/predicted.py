"""Some weights are kept, the others predicted from them: a fixed smooth map, then the weights that are left.

What it does: takes r of the D inputs of a layer (of the I k k places of a kernel) and predicts all weights from those
at these places by kernel ridge regression: a layer of r outputs that is not trained, and one with r weights per output,
those that predict the trained weights best, or with `data` the outputs. Kernel: "smooth" of the distance of places
within a kernel, or of features on a grid of pixels; "covariance" of the inputs on calibration data.
Cost: seconds; with `data` or the kernel "covariance" a matrix of D^2 numbers for each layer.
When it fails: weights that are not smooth in the kernel's sense; `lowrank.svd` has the best map of all for trained
weights. The gain is in the number of trained weights and in MACs; the map is stored as weights are.
Equation: w = k_a^T (K_a + lambda 1)^(-1) w_a; the places a by pivoted Cholesky decomposition of K: each time the one
that those before tell least about.
Source: Denil et al. 2013, arXiv:1306.0543, sections 2 and 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import Layer, groups_of
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, kernel_of
from gossamer.methods.lowrank._common import LowRank, Rank, Spectrum, Unfolding
from gossamer.methods.lowrank._matrices import energy_of, refit

# Ridge lambda, in units of the largest k(i, i).
RIDGE = 1e-6


def smooth(grid: Sequence[int], width: float) -> Tensor:
    """exp(-|i - j|^2 / 2 width^2) between all places of a grid, the last of which runs fastest: (places, places)."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    places = torch.stack([a.flatten() for a in axes], 1)
    squares = (places[:, None] - places[None]).square().sum(2)
    return torch.exp(-squares / (2 * width**2))


def chosen(kernel: Tensor, count: int) -> Tensor:
    """`count` places, those that together tell most about all: greedy pivots of a Cholesky decomposition of (D, D)."""
    rest, picks = kernel.diagonal().clone(), list[int]()
    columns = kernel.new_zeros(len(kernel), count)
    for n in range(count):
        pick = int(rest.argmax())
        picks.append(pick)
        column = kernel[:, pick] - columns[:, :n] @ columns[pick, :n]
        columns[:, n] = column / column[pick].clamp_min(1e-12 * float(kernel.diagonal().max())).sqrt()
        rest = (rest - columns[:, n].square()).clamp_min(0)
        rest[torch.tensor(picks)] = -1.0
    return torch.tensor(picks)


def predictor(kernel: Tensor, picks: Tensor) -> Tensor:
    """(K_a + lambda 1)^(-1) k_a, (r, D): all weights from those at the places `picks`."""
    own = kernel[picks][:, picks]
    ridge = RIDGE * float(kernel.diagonal().max()) * torch.eye(len(picks)).to(kernel)
    return torch.linalg.solve(own + ridge, kernel[picks])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class PredictedParameters(LowRank):
    """kernel: "smooth" or "covariance", which needs data = "inputs" or "accumulated". width: of the smooth one, in
    pixels. grid: of a linear layer's inputs, channels first, such as [1, 28, 28]; channels are not smooth."""

    modes: ClassVar[tuple[str, ...]] = ("places kept",)
    singular: ClassVar[bool] = False
    example: ClassVar[Settings] = {"ranks": {"body.*": 6}}

    kernel: Literal["smooth", "covariance"] = "smooth"
    width: Annotated[float, Range(0, 1000, open_=("low",))] = 1.0
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel == "covariance" and self.data == "none":
            raise BadInput(f"{self.name()}: kernel = 'covariance' needs data = 'inputs' or 'accumulated'")

    def refusal(self, layer: Layer) -> str:
        if self.kernel == "covariance":
            return ""
        if isinstance(layer, nn.Linear):
            fits = math.prod(self.grid) == layer.in_features and self.grid
            return "" if fits else f"its {layer.in_features} inputs are not on the grid {list(self.grid)}"
        return "its kernel has one position" if math.prod(kernel_of(layer)) == 1 else ""

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        few = rank[0] * groups
        first = Factor(inputs=inputs * groups, outputs=few, axes=kernel_axes(layer), groups=groups, fixed=True)
        return [first, Factor(inputs=few, outputs=outputs, groups=groups)]

    def largest(self, weight: Tensor) -> Rank:
        return (weight[0, 0].numel(),)

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        return [(weight.flatten(2), gram)]

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        if need == "noise":
            return super().spectrum(weight, None, need)
        [most], whole = self.largest(weight), float(energy_of(weight.flatten(2), gram).sum())
        lost = torch.ones(most + 1, dtype=torch.float64)
        tried = sorted({max(1, round(most * n / 16)) for n in range(1, 17)})
        for before, rank in zip([0, *tried], tried):
            inner, outer = self.solve(weight, (rank,), gram)
            wrong = float(energy_of(weight.flatten(2) - outer @ inner, gram).sum()) / max(whole, 1e-300)
            lost[rank:] = min(wrong, float(lost[before]))
        return Spectrum(lost=(lost,), noise=())

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        kernels = gram if self.kernel == "covariance" and gram is not None else [self._smooth(weight)] * len(weight)
        picks = [chosen(k, rank[0]) for k in kernels]
        inner = torch.stack([predictor(k, p) for k, p in zip(kernels, picks)])
        return [inner, refit(weight.flatten(2), inner, gram)]

    def _smooth(self, weight: Tensor) -> Tensor:
        channels, *grid = weight.shape[2:] if weight.ndim > 3 else self.grid
        places = smooth(grid, self.width) if grid else torch.ones(1, 1, dtype=torch.float64)
        return torch.kron(torch.eye(channels, dtype=torch.float64), places).to(weight)
