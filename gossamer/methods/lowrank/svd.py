"""Truncated singular value decomposition (SVD): replace a linear layer or a 1 x 1 convolution by two thin ones.

What it does: W = A B of rank r: a layer to r features and one from them, without an activation between. With `data` the
two layers give the least error of the outputs on calibration inputs, not of the weights. For the last layer of a
network it is the low-rank final layer of Sainath et al.
Cost: seconds; above 2,048 on the smaller side a randomized decomposition finds the leading quarter of the spectrum.
With `data`, a matrix of inputs^2 numbers for each layer.
When it fails: weights whose spectrum is flat; it pays only for r < m n / (m + n).
Equation: min |(W - A B) G^(1/2)|_F, G = E[x x^T] or 1: A = U_r, B = U_r^T W, U the left singular vectors of W G^(1/2).
Source: Denton et al. 2014, arXiv:1404.0736, section 3.3; Sainath et al. 2013, ICASSP, section 2.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Method, Settings
from gossamer.methods._candidates import is_pointwise, planned_ranks
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import split_matrix
from gossamer.methods.lowrank._scheme import Rank, Unfolding


@dataclass(frozen=True, kw_only=True)
class SVD(LowRank):
    """Replace linear layers and 1 x 1 convolutions by two thin layers of rank r.

    A rank is that of the linear layer, or of every group of the convolution. The options that choose layers and ranks
    are those of `LowRank`.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.SVD(ranks={"fc1": 4})(model, inputs)
        >>> print(edits[-1].before, "->", edits[-1].after)
        Linear 16 to 16, 256 MACs -> Linear 16 to 4 + Linear 4 to 16, 128 MACs
    """

    example: ClassVar[Settings] = {"ranks": {"head": 1}, "data": "inputs"}

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if not is_pointwise(layer):
            return
        for rank in planned_ranks(min(layer.weight.shape[:2])):
            yield cls(ranks={name: rank}, layers=(name,), data="inputs")

    def refusal(self, layer: Layer) -> str:
        size = math.prod(kernel_of(layer))
        return "" if size == 1 else "its kernel is larger than 1; lowrank.channel and lowrank.spatial are for those"

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        middle = rank[0] * groups
        first = Factor(inputs=inputs * groups, outputs=middle, axes=kernel_axes(layer), groups=groups)
        return [first, Factor(inputs=middle, outputs=outputs, groups=groups)]

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        return [(weight.flatten(2), gram)]

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        outer, inner = split_matrix(weight.flatten(2), rank[0], gram)
        return [inner, outer]
