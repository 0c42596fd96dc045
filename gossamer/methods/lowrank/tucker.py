"""Tucker-2 decomposition: replace a convolution by 1 x 1, k x k and 1 x 1 convolutions.

What it does: reduces the input channels, convolves with a small k x k core, and expands to the output channels. With
`data` the core and the last factor are those with the least error of the outputs on calibration inputs.
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer.
When it fails: narrow layers, where two more layers take more time than their MACs suggest.
Equation: W_nct ~ sum_pr A_np K_prt B_rc, A and B orthonormal, by alternating least squares from the singular vectors
(higher-order orthogonal iteration).
Source: Kim et al. 2016, arXiv:1511.06530, sections 3.1 to 3.3.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Method, Settings
from gossamer.methods._candidates import is_pointwise, planned_ranks
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import (
    balance,
    best_last_factor,
    by_inputs,
    channel_gram,
    over_taps,
    principal,
    split_matrix,
)
from gossamer.methods.lowrank._scheme import Rank, Unfolding

SWEEPS = 10


def alternating_sweeps(weight: Tensor, rank: Rank) -> tuple[Tensor, Tensor]:
    """Return A (g, O, p) and B (g, I, r), orthonormal, with the least error that ten sweeps find.

    Args:
        weight: shape (g, O, I, taps).
        rank: p (of outputs) and r (of inputs).
    """
    outputs, inputs = rank

    def directions(matrix: Tensor, count: int) -> Tensor:
        return principal(matrix)[0][:, :, :count]

    b = directions(weight.transpose(1, 2).flatten(2), inputs)
    for _ in range(SWEEPS):
        a = directions(torch.einsum("gnct,gcr->gnrt", weight, b).flatten(2), outputs)
        b = directions(torch.einsum("gnct,gnp->gcpt", weight, a).flatten(2), inputs)
    return a, b


def tucker(weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
    """Return B (g, r, I), the core (g, p, r, taps) and A (g, O, p), in the order of the layers.

    Args:
        weight: shape (g, O, I, taps...).
        rank: p (of outputs) and r (of inputs).
        gram: second moment of the inputs, shape (g, I taps, I taps); None: the error is that of the weights.
    """
    weight = weight.flatten(3)
    taps = weight.shape[3]
    a, b = alternating_sweeps(weight, rank)
    if gram is None:
        core = torch.einsum("gnct,gnp,gcr->gprt", weight, a, b).flatten(2)
        outer, inner = balance(a, core)
        return [b.mT, inner.unflatten(2, (-1, taps)), outer]  # type: ignore[no-untyped-call]
    metric = channel_gram(gram, weight.shape[2], (taps,))
    mixes = [b.mT, split_matrix(by_inputs(weight), rank[1], metric)[1]]
    parts: list[list[Tensor]] = []
    errors: list[float] = []
    for mix in mixes:
        inner = over_taps(mix, taps)
        _, few = best_last_factor(weight.flatten(2), [inner], gram)
        outer, core = split_matrix(few, rank[0], inner @ gram @ inner.mT)
        change = weight.flatten(2) - outer @ core @ inner
        parts.append([mix, core.unflatten(2, (-1, taps)), outer])  # type: ignore[no-untyped-call]
        errors.append(float((change @ gram * change).sum()))
    return parts[errors.index(min(errors))]


@dataclass(frozen=True, kw_only=True)
class Tucker(LowRank):
    """Replace convolutions by 1 x 1, k x k and 1 x 1 convolutions (Tucker-2).

    A rank is a pair (of outputs, of inputs), for every group. The options that choose layers and ranks are those of
    `LowRank`.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.Tucker(ranks={"conv2": (8, 4)})(model, inputs)
        >>> print(edits[-1].after)
        Conv2d 1x1 8 to 4 + Conv2d 3x3 4 to 8 + Conv2d 1x1 8 to 16, 28,672 MACs
    """

    modes: ClassVar[tuple[str, ...]] = ("rank of outputs", "rank of inputs")
    example: ClassVar[Settings] = {"macs": 0.6, "data": "accumulated", "batches": 2}

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if is_pointwise(layer):
            return
        outputs, inputs = map(planned_ranks, layer.weight.shape[:2])
        for pair in list(zip(outputs, inputs))[:2]:
            yield cls(ranks={name: pair}, layers=(name,), data="inputs")

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        last, first = rank[0] * groups, rank[1] * groups
        return [
            Factor(inputs=inputs * groups, outputs=first, groups=groups),
            Factor(inputs=first, outputs=last, axes=kernel_axes(layer), groups=groups),
            Factor(inputs=last, outputs=outputs, groups=groups),
        ]

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        taps = weight[0, 0, 0].numel()
        metric = None if gram is None else channel_gram(gram, weight.shape[2], (taps,))
        return [(weight.flatten(2), gram), (by_inputs(weight), metric)]

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        taps = math.prod(kernel_of(layer))
        return (ranks[:, 0] <= ranks[:, 1] * taps) & (ranks[:, 1] <= ranks[:, 0] * taps)

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        return tucker(weight, rank, gram)
