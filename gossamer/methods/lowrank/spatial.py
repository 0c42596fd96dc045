"""Spatial decomposition: replace a k x k convolution by a vertical k x 1 and a horizontal 1 x k convolution.

What it does: finds, in closed form, the vertical and the horizontal filters, with r filters between, that are nearest
to the kernel in the sum of squares. In three dimensions the first axis is separated from the other two. With `data`,
both are then fitted to the outputs in turn, until that gains nothing more (data reconstruction). No step makes the
outputs worse.
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer, and up to some 20 s for the
fits of a large one.
When it fails: 3 x 3 kernels that use both directions at once, such as diagonal edges. Depthwise layers save little.
Equation: the matrix T_((n, j), (c, i)) = W_ncij is split by its singular vectors: W ~ sum_r H_nr(j) V_rc(i); the error
is the sum of the squares of the singular values left out.
Source: Tai et al. 2016, arXiv:1511.06067, section 2 (theorem 1); Jaderberg et al. 2014, arXiv:1405.3866, scheme 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Method, Settings
from gossamer.methods._candidates import is_pointwise, planned_ranks
from gossamer.methods.lowrank._alternating import along_rows, alternated
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import balance, best_last_factor, by_columns, channel_gram, split_matrix
from gossamer.methods.lowrank._scheme import Rank, Unfolding


def spatial_pair(weight: Tensor, rank: int, gram: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return V (g, rank, I k) and H (g, O, rank, l) with W_nckl ~ sum_r H_nrl V_rck.

    Args:
        weight: shape (g, O, I, k, l ...).
        rank: number of filters between, in every group.
        gram: second moment of the inputs, shape (g, I k l, I k l); None: the error is that of the weights.
    """
    channels, height, rest = weight.shape[2], weight.shape[3], weight[0, 0, 0, 0].numel()

    def pair(metric: Tensor | None) -> tuple[Tensor, Tensor]:
        outer, vertical = split_matrix(by_columns(weight), rank, metric)
        return vertical, outer.unflatten(1, (-1, rest)).transpose(2, 3)  # type: ignore[no-untyped-call]

    if gram is None:
        return pair(None)
    metric = channel_gram(gram, channels, (height, rest), keep=(0,))
    tried = [pair(metric)[0], pair(None)[0]]
    best, outer = best_last_factor(weight.flatten(2), [along_rows(v, rest) for v in tried], gram)
    vertical, outer = alternated(weight.flatten(2), tried[best], outer, gram, rest)
    by_row = outer.unflatten(2, (rank, rest)).transpose(2, 3).flatten(1, 2)  # type: ignore[no-untyped-call]
    by_row, vertical = balance(by_row, vertical)
    return vertical, by_row.unflatten(1, (-1, rest)).transpose(2, 3)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class SpatialDecomposition(LowRank):
    """Replace k x k convolutions by k x 1 and 1 x k convolutions.

    A rank is the number of filters between the two, in every group. The options that choose layers and ranks are those
    of `LowRank`.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.SpatialDecomposition(macs=0.5)(model, inputs)
        >>> print(edits[-1].before, "->", edits[-1].after)
        Conv2d 3x3 8 to 16, 73,728 MACs -> Conv2d 3x1 8 to 7 + Conv2d 1x3 7 to 16, 32,256 MACs
    """

    example: ClassVar[Settings] = {"energy": 0.7}

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if is_pointwise(layer) or layer.weight.dim() < 4:
            return
        for rank in planned_ranks(len(layer.weight))[:2]:
            yield cls(ranks={name: rank}, layers=(name,), data="inputs")

    def refusal(self, layer: Layer) -> str:
        kernel = kernel_of(layer)
        if len(kernel) < 2:
            return "it has no second axis to take apart; use lowrank.svd or lowrank.channel"
        if kernel[0] == 1 or kernel[1:] == (1,) * (len(kernel) - 1):
            return f"its kernel {'x'.join(map(str, kernel))} is along one axis already"
        return ""

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        between, [first, *rest] = rank[0] * groups, kernel_axes(layer)
        return [
            Factor(inputs=inputs * groups, outputs=between, axes=(first,), groups=groups),
            Factor(inputs=between, outputs=outputs, axes=tuple(rest), groups=groups),
        ]

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        taps = (weight.shape[3], weight[0, 0, 0, 0].numel())
        return [(by_columns(weight), None if gram is None else channel_gram(gram, weight.shape[2], taps, keep=(0,)))]

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        return list(spatial_pair(weight, rank[0], gram))
