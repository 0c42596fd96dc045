"""Monochromatic convolution approximation: replace a first convolution by filters that see one colour each.

What it does: every filter of a convolution sees one linear mix of the input channels, a colour. There are `rank`
colours, each shared by equally many filters. The result is a 1 x 1 convolution to the colours and a k x k convolution
in which every filter reads one of them. Filters and colours are found together. With `data` the filters are fitted to
the outputs.
Cost: seconds.
When it fails: filters that see several colours, for which no rank is exact; layers of many channels. The rank must
divide the number of filters; one colour for each filter is the most.
Equation: W_nct ~ u_(q(n), c) V_nt, u_q the leading left singular vector of the filters of colour q side by side.
Source: Denton et al. 2014, arXiv:1404.0736, section 3.2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_axes, make_chain, reordered
from gossamer.methods.lowrank._clusters import cluster_order
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import energy_of, last_factor, principal
from gossamer.methods.lowrank._scheme import Rank, Spectrum, Unfolding


def coloured(whole: Tensor, colours: int, gram: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the filters of a kernel by colour.

    Args:
        whole: the kernel, shape (O, I, t).
        colours: number q of colours; it divides O.
        gram: second moment of the inputs; None: the error is that of the weights.

    Returns:
        Colours (q, I), the filters on them (q, O / q, t), and the order of the outputs.
    """
    order = cluster_order(whole.transpose(1, 2), colours, 1)
    filters = whole[order].unflatten(0, (colours, -1))  # type: ignore[no-untyped-call]
    mixes = principal(filters.transpose(1, 2).flatten(2))[0][:, :, 0]
    planes = torch.einsum("qnit,qi->qnt", filters, mixes)
    if gram is not None:
        planes = last_factor(filters.flatten(2), seen(mixes, whole.shape[2]), gram.expand(colours, -1, -1))
    return mixes, planes, order


def seen(mixes: Tensor, taps: int) -> Tensor:
    """Return what the colours are of windows: (q, t, I t)."""
    return torch.einsum("qi,ts->qtis", mixes, torch.eye(taps).to(mixes)).flatten(2)


@dataclass(frozen=True, kw_only=True)
class MonochromaticFactors(LowRank):
    """Replace convolutions by a 1 x 1 convolution to colours and filters that read one colour each.

    A rank is the number of colours. The options that choose layers and ranks are those of `LowRank`; without any of
    them the number of colours is unknown, since EVBMF does not tell it.

    Raises:
        BadInput: none of ranks, energy, macs, params and time is given.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> smaller, edits = gossamer.methods.lowrank.MonochromaticFactors(ranks={"conv2": 4})(model, inputs)
        >>> print(edits[-1].after)
        Conv2d 1x1 8 to 4 + Conv2d 3x3 4 to 16 in 4 groups + Reorder, 11,264 MACs
    """

    modes: ClassVar[tuple[str, ...]] = ("colours",)
    singular: ClassVar[bool] = False
    example: ClassVar[Settings] = {"ranks": {"body.0.conv1": 2}, "data": "inputs"}

    def refusal(self, layer: Layer) -> str:
        return super().refusal(layer) or ("its channels are in groups already" if groups_of(layer) > 1 else "")

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        [colours], [outputs, inputs, *_] = rank, layer.weight.shape
        last = Factor(inputs=colours, outputs=outputs, axes=kernel_axes(layer), groups=colours)
        return [Factor(inputs=inputs, outputs=colours), last]

    def largest(self, weight: Tensor) -> Rank:
        return (weight.shape[1],)

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        return layer.weight.shape[0] % ranks[:, 0] == 0

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        return []

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        if need == "noise":
            raise BadInput(f"{self.name()}: noise does not tell how many colours there are; give ranks, energy or macs")
        whole, lost = weight[0].flatten(2), [1.0]
        energy = float(energy_of(weight.flatten(2), gram).sum())
        for colours in range(1, len(whole) + 1):
            lost.append(lost[-1])
            if len(whole) % colours == 0:
                mixes, planes, order = coloured(whole, colours, gram)
                change = whole.flatten(1)[order].unflatten(0, (colours, -1)) - planes @ seen(mixes, whole.shape[2])  # type: ignore[no-untyped-call]
                lost[-1] = min(float(energy_of(change, gram).sum()) / max(energy, 1e-300), lost[-1])
        return Spectrum(lost=(torch.tensor(lost, dtype=torch.float64),), noise=())

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        return list(coloured(weight[0].flatten(2), rank[0], gram)[:2])

    def build(self, layer: Layer, weight: Tensor, rank: Rank, gram: Tensor | None) -> nn.Sequential:
        mixes, planes, order = coloured(weight[0].flatten(2), rank[0], gram)
        return reordered(make_chain(layer, self.chain(layer, rank), [mixes, planes]), {}, order)
