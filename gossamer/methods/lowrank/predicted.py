"""Predicting parameters: keep some weights and predict all others from them by a fixed smooth map.

What it does: takes r of the D inputs of a layer (of the I k k places of a kernel) and predicts all weights from those
at these places by kernel ridge regression. The layer becomes one of r outputs that is not trained, and one with r
trained weights per output: those that predict the trained weights best, or with `data` the outputs. The kernel function
is "smooth" in the distance of places within a kernel, or of features on a grid of pixels; or it is the "covariance" of
the inputs on calibration data.
Cost: seconds; with `data` or kernel="covariance" a matrix of D^2 numbers for each layer.
When it fails: weights that are not smooth in the sense of the kernel function. For weights that are trained already,
`lowrank.svd` has the best map of all. The gain is in the number of trained weights and in MACs; the fixed map is stored
like weights.
Equation: w = k_a^T (K_a + lambda 1)^(-1) w_a. The places a are the pivots of a Cholesky decomposition of K: each time
the place that is explained least by those before.
Source: Denil et al. 2013, arXiv:1306.0543, sections 2 and 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import energy_of, last_factor
from gossamer.methods.lowrank._scheme import Rank, Spectrum, Unfolding

# Ridge lambda, in units of the largest k(i, i).
RIDGE = 1e-6


def smooth(grid: Sequence[int], width: float) -> Tensor:
    """Return exp(-|i - j|^2 / (2 width^2)) between all places of a grid, of which the last axis runs fastest.

    Args:
        grid: sizes of the axes.
        width: in pixels, above 0.

    Returns:
        Shape (places, places), float64.
    """
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    places = torch.stack([a.flatten() for a in axes], 1)
    squares = (places[:, None] - places[None]).square().sum(2)
    return torch.exp(-squares / (2 * width**2))


def chosen_rows(kernel: Tensor, count: int) -> Tensor:
    """Choose the places that together explain most of all: greedy pivots of a Cholesky decomposition.

    Args:
        kernel: shape (D, D), positive semidefinite.
        count: number of places, from 1 to D.

    Returns:
        Indices, in the order in which they were chosen.
    """
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
    """Return (K_a + lambda 1)^(-1) k_a, shape (r, D): the map to all weights from those at the places `picks`."""
    own = kernel[picks][:, picks]
    ridge = RIDGE * float(kernel.diagonal().max()) * torch.eye(len(picks)).to(kernel)
    return torch.linalg.solve(own + ridge, kernel[picks])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class PredictedParameters(LowRank):
    """Replace layers by a fixed map to r places and a trained layer of r weights per output.

    A rank is the number r of places that are kept. The options that choose layers and ranks are those of `LowRank`.

    Args:
        kernel: "smooth" in the distance of places, or the "covariance" of the inputs, which needs data="inputs" or
            data="accumulated".
        width: of the smooth kernel function, in pixels, in (0, 1000].
        grid: of a linear layer's inputs, channels first, such as (1, 28, 28). It is smooth along all axes but the
            first. Linear layers whose inputs are not on the grid are left.

    Raises:
        BadInput: kernel="covariance" without data.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.PredictedParameters(ranks={"conv2": 4})(model, inputs)
        >>> [layer.weight.requires_grad for layer in smaller.conv2]
        [False, True]
    """

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
        picks = [chosen_rows(k, rank[0]) for k in kernels]
        inner = torch.stack([predictor(k, p) for k, p in zip(kernels, picks)])
        return [inner, last_factor(weight.flatten(2), inner, gram)]

    def _smooth(self, weight: Tensor) -> Tensor:
        channels, *grid = weight.shape[2:] if weight.ndim > 3 else self.grid
        places = smooth(grid, self.width) if grid else torch.ones(1, 1, dtype=torch.float64)
        return torch.kron(torch.eye(channels, dtype=torch.float64), places).to(weight)
