"""A convolution with few filters and a 1 x 1 convolution, or the reverse: low rank across channels.

What it does: "outputs": k x k to r channels, then 1 x 1 to all outputs. "inputs": 1 x 1 to r channels, then k x k.
With `data` the error of the outputs is made small; with data="accumulated" against what the original gave, from inputs
that the factored layers before make (the asymmetric form of Zhang et al., without the ReLU).
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer.
When it fails: narrow layers; 1 x 1 before k x k with stride works on the larger side.
Equation: outputs: W_(n, c i j) = A_nr B_(r, c i j), as `lowrank.svd`. inputs: W_(n i j, c) = H_(n i j, r) P_rc, P in
the metric of the channels' second moments, H then by least squares on the outputs.
Source: Zhang et al. 2015, arXiv:1505.06798, sections 3.1 to 3.3; Denton et al. 2014, arXiv:1404.0736.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from gossamer.calibration.moments import Layer, groups_of
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes
from gossamer.methods.lowrank._common import LowRank, Rank, Unfolding
from gossamer.methods.lowrank._matrices import (
    balance,
    best_refit,
    by_inputs,
    channel_gram,
    over_taps,
    split,
)


def mixed_inputs(weight: Tensor, rank: int, gram: Tensor | None) -> tuple[Tensor, Tensor]:
    """H (g, O, rank, taps) and P (g, rank, I) with W_nct ~ sum_r H_nrt P_rc."""
    channels, taps = weight.shape[2], weight[0, 0, 0].numel()

    def pair(metric: Tensor | None) -> tuple[Tensor, Tensor]:
        return split(by_inputs(weight), rank, metric)

    if gram is None:
        outer, mix = pair(None)
    else:
        mixes = [pair(channel_gram(gram, channels, (taps,)))[1], pair(None)[1]]
        best, fitted = best_refit(weight.flatten(2), [over_taps(mix, taps) for mix in mixes], gram)
        outer, mix = balance(fitted.unflatten(2, (rank, taps)).transpose(2, 3).flatten(1, 2), mixes[best])  # type: ignore[no-untyped-call]
    return outer.unflatten(1, (-1, taps)).transpose(2, 3), mix  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class ChannelDecomposition(LowRank):
    """across: which channels are few. rank: in every group."""

    example: ClassVar[Settings] = {"macs": 0.5}

    across: Literal["outputs", "inputs"] = "outputs"

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        groups, [outputs, inputs, *_] = groups_of(layer), layer.weight.shape
        few = rank[0] * groups
        axes = [kernel_axes(layer), ()] if self.across == "outputs" else [(), kernel_axes(layer)]
        return [
            Factor(inputs=inputs * groups, outputs=few, axes=axes[0], groups=groups),
            Factor(inputs=few, outputs=outputs, axes=axes[1], groups=groups),
        ]

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        if self.across == "outputs":
            return [(weight.flatten(2), gram)]
        taps = weight[0, 0, 0].numel()
        return [(by_inputs(weight), None if gram is None else channel_gram(gram, weight.shape[2], (taps,)))]

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        if self.across == "outputs":
            outer, inner = split(weight.flatten(2), rank[0], gram)
        else:
            outer, inner = mixed_inputs(weight, rank[0], gram)
        return [inner, outer]
