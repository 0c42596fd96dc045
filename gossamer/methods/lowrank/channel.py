"""Channel decomposition: replace a convolution by one with few filters and a 1 x 1 convolution.

What it does: across="outputs" puts a k x k convolution to r channels and then a 1 x 1 convolution to all outputs.
across="inputs" puts a 1 x 1 convolution to r channels first, then k x k. With `data` the error of the outputs is made
small instead of that of the weights. With data="accumulated" the target is what the original gave, and the inputs are
those that the layers before make after they were factored (the asymmetric form of Zhang et al., without the ReLU).
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer.
When it fails: narrow layers. A 1 x 1 convolution before a k x k one with stride works on the larger map.
Equation: outputs: W_(n, c i j) = A_nr B_(r, c i j), as `lowrank.svd`. inputs: W_(n i j, c) = H_(n i j, r) P_rc, P in
the metric of the channels' second moments, H then by least squares on the outputs.
Source: Zhang et al. 2015, arXiv:1505.06798, sections 3.1 to 3.3; Denton et al. 2014, arXiv:1404.0736.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Method, Settings
from gossamer.methods._candidates import is_pointwise, planned_ranks
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import (
    balance,
    best_last_factor,
    by_inputs,
    channel_gram,
    over_taps,
    split_matrix,
)
from gossamer.methods.lowrank._scheme import Rank, Unfolding


def mixed_inputs(weight: Tensor, rank: int, gram: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return H (g, O, rank, taps) and P (g, rank, I) with W_nct ~ sum_r H_nrt P_rc.

    Args:
        weight: shape (g, O, I, taps...).
        rank: number of channels between, in every group.
        gram: second moment of the inputs, shape (g, I taps, I taps); None: the error is that of the weights.
    """
    channels, taps = weight.shape[2], weight[0, 0, 0].numel()

    def pair(metric: Tensor | None) -> tuple[Tensor, Tensor]:
        return split_matrix(by_inputs(weight), rank, metric)

    if gram is None:
        outer, mix = pair(None)
    else:
        mixes = [pair(channel_gram(gram, channels, (taps,)))[1], pair(None)[1]]
        best, fitted = best_last_factor(weight.flatten(2), [over_taps(mix, taps) for mix in mixes], gram)
        outer, mix = balance(fitted.unflatten(2, (rank, taps)).transpose(2, 3).flatten(1, 2), mixes[best])  # type: ignore[no-untyped-call]
    return outer.unflatten(1, (-1, taps)).transpose(2, 3), mix  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class ChannelDecomposition(LowRank):
    """Replace convolutions by a k x k convolution of r channels and a 1 x 1 convolution.

    A rank is the number of channels between the two, in every group of the convolution. The options that choose layers
    and ranks are those of `LowRank`.

    Args:
        across: which side has few channels: "outputs" of the k x k convolution, or its "inputs".

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.ChannelDecomposition(ranks={"conv2": 6})(model, inputs)
        >>> print(edits[-1].after)
        Conv2d 3x3 8 to 6 + Conv2d 1x1 6 to 16, 33,792 MACs
    """

    example: ClassVar[Settings] = {"macs": 0.5}

    across: Literal["outputs", "inputs"] = "outputs"

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if is_pointwise(layer):
            return
        for rank in planned_ranks(len(layer.weight))[:1]:
            yield cls(ranks={name: rank}, layers=(name,), data="inputs")

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
            outer, inner = split_matrix(weight.flatten(2), rank[0], gram)
        else:
            outer, inner = mixed_inputs(weight, rank[0], gram)
        return [inner, outer]
