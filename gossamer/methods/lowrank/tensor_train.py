"""Tensor train decomposition (TT): replace a convolution by 1 x 1, k x 1, 1 x k and 1 x 1 convolutions.

What it does: builds a chain of layers, one for the input channels, one for every axis of the kernel and one for the
output channels, with as many channels between as the ranks say. With `data` the last layer is fitted to the outputs.
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer.
When it fails: narrow layers, where three more layers take more time than their MACs suggest.
Equation: W_ncij ~ sum A_ca B_aib D_bje E_en, by singular value decompositions from left to right; the error is at most
the sum of the energies that the unfoldings (c | i j n), (c i | j n), (c i j | n) lose.
Source: Oseledets 2011, SIAM J. Sci. Comput. 33(5), algorithm 1 and theorem 2.2; Garipov et al. 2016, arXiv:1611.03214.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import channel_gram, last_factor, principal
from gossamer.methods.lowrank._scheme import Rank, Unfolding


def tt_svd(weight: Tensor, rank: Rank) -> list[Tensor]:
    """Decompose weights into a tensor train by successive singular value decompositions (TT-SVD).

    Args:
        weight: shape (g, O, I, k, l ...).
        rank: r1, r2, ..., one more than the kernel has axes.

    Returns:
        Factors (g, r1, I), (g, r2, r1, k), ..., (g, O, r_last).
    """
    _, _, channels, *kernel = weight.shape
    rest, before = weight.movedim(1, -1).flatten(2), 1
    factors: list[Tensor] = []
    for size, r in zip((channels, *kernel), rank):
        rows = rest.reshape(len(weight), before * size, -1)
        left = principal(rows)[0][:, :, :r]
        factors.append(left.unflatten(1, (before, size)).permute(0, 3, 1, 2))  # type: ignore[no-untyped-call]
        rest, before = left.mT @ rows, r
    return [factors[0].flatten(2), *factors[1:], rest.mT]


def joined_factors(factors: Sequence[Tensor]) -> Tensor:
    """Return what all layers but the last do to windows: (g, r_last, I k l ...)."""
    total = factors[0]
    for factor in factors[1:]:
        total = torch.einsum("gqrk,grx->gqxk", factor, total).flatten(2)
    return total


@dataclass(frozen=True, kw_only=True)
class TensorTrain(LowRank):
    """Replace convolutions by a tensor train of four (in 2d) small convolutions.

    A rank is a tuple, one number more than the kernel has axes, for every group. The options that choose layers and
    ranks are those of `LowRank`.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.TensorTrain(ranks={"conv2": (4, 6, 8)})(model, inputs)
        >>> [layer.kernel_size for layer in smaller.conv2]
        [(1, 1), (3, 1), (1, 3), (1, 1)]
    """

    modes: ClassVar[tuple[str, ...]] = (
        "rank behind inputs",
        "rank behind the first axis",
        "rank behind the second axis",
        "rank behind the third axis",
    )
    example: ClassVar[Settings] = {"params": 0.6}

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        widths = [inputs * groups, *(r * groups for r in rank), outputs]
        axes = [(), *((a,) for a in range(len(rank) - 1)), ()]
        return [Factor(inputs=a, outputs=b, axes=along, groups=groups) for a, b, along in zip(widths, widths[1:], axes)]

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        kernel, result = tuple(weight.shape[3:]), list[Unfolding]()
        for axes in range(len(kernel) + 1):
            # (g, O, remaining axes, I, axes so far), the last two as columns
            moved = weight.movedim(2, -1)
            for _ in range(axes):
                moved = moved.movedim(2, -1)
            metric = None if gram is None else channel_gram(gram, weight.shape[2], kernel, keep=tuple(range(axes)))
            columns = weight.shape[2] * math.prod(kernel[:axes])
            result.append((moved.reshape(len(weight), -1, columns), metric))
        return result

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        sizes = torch.tensor(kernel_of(layer))
        return (ranks[:, 1:] <= ranks[:, :-1] * sizes).all(1)

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        factors = tt_svd(weight, rank)
        if gram is not None:
            factors[-1] = last_factor(weight.flatten(2), joined_factors(factors[:-1]), gram)
        return factors
