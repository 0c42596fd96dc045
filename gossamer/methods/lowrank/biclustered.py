"""Biclustering approximation: replace a convolution by low-rank blocks between groups of similar channels.

What it does: sorts the input channels into G and the output channels into H groups of equal size, so that the channels
of a group lie near a common subspace. Then each of the G H blocks of the kernel is factored. form="svd" takes
singular vectors and gives grouped 1 x 1, k x k and 1 x 1 convolutions. form="outer" takes sums of outer products, found
one by one; then the k x k convolution is depthwise. With `data` the last layer is fitted to the outputs.
Cost: seconds. Reordering channels and grouped convolutions take more time than their MACs suggest.
When it fails: layers whose channels are grouped already, or whose channels are not a multiple of the groups, are left.
Equation: W_gh ~ sum_pr A_np K_prt B_rc by the leading inputs, then the leading outputs; or W_gh ~ sum_r A_nr B_cr T_tr,
each term by alternating least squares on the rest of those before, A at last by least squares.
Source: Denton et al. 2014, arXiv:1404.0736, sections 3.2.2, 3.2.3 and 3.3 (the clusters).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import (
    Count,
    Factor,
    kernel_axes,
    kernel_of,
    make_chain,
    reordered,
)
from gossamer.methods.lowrank._clusters import cluster_order
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import energy_of, last_factor, principal
from gossamer.methods.lowrank._ranks import probed
from gossamer.methods.lowrank._scheme import Rank, Spectrum, Unfolding

POWER_STEPS = 20  # for one outer product


def normalize(vectors: Tensor) -> Tensor:
    """Return rows of length one; zeros stay zeros."""
    return F.normalize(vectors, dim=1, eps=1e-300)


def outer_products(blocks: Tensor, rank: int) -> list[Tensor]:
    """Fit rank-one tensors one by one to the rest of (b, n, c, t), each by alternating least squares.

    Args:
        blocks: shape (b, n, c, t).
        rank: number of terms.

    Returns:
        Factors (b, n, rank), (b, c, rank) and (b, t, rank). The rest never grows from one term to the next.
    """
    rest, found = blocks.clone(), []
    for _ in range(rank):
        # From the output that has most of what is left.
        largest = rest.square().sum((2, 3)).argmax(1)
        first = rest[torch.arange(len(rest)), largest]
        t = principal(first.mT)[0][:, :, 0]
        c = normalize(torch.einsum("bct,bt->bc", first, t))
        for _ in range(POWER_STEPS):
            a = normalize(torch.einsum("bnct,bc,bt->bn", rest, c, t))
            c = normalize(torch.einsum("bnct,bn,bt->bc", rest, a, t))
            t = normalize(torch.einsum("bnct,bn,bc->bt", rest, a, c))
        a = torch.einsum("bnct,bc,bt->bn", rest, c, t)
        rest = rest - torch.einsum("bn,bc,bt->bnct", a, c, t)
        found.append([a, c, t])
    return [torch.stack(columns, 2) for columns in zip(*found)]


def directions(blocks: Tensor, rank: Rank) -> list[Tensor]:
    """Return A (b, n, p), B (b, c, r) and the core (b, p, r, t) of blocks (b, n, c, t).

    B holds the leading directions of the inputs, A those of the outputs of what remains. rank: p and r.
    """
    b = principal(blocks.transpose(1, 2).flatten(2))[0][:, :, : rank[1]]
    wide = torch.einsum("bnct,bcr->bnrt", blocks, b).flatten(2)
    a = principal(wide)[0][:, :, : rank[0]]
    return [a, b, (a.mT @ wide).unflatten(2, (rank[1], -1))]  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of a kernel between groups of channels.

    Attributes:
        values: shape (g h, n, c, t), between group g of the inputs and group h of the outputs.
        inputs: order of the input channels.
        outputs: order of the output channels.
    """

    values: Tensor
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, whole: Tensor, g: int, h: int) -> "Blocks":
        """Cluster the channels of a kernel (O, I, t) into g and h groups."""
        inputs = cluster_order(whole.transpose(0, 1).flatten(1)[:, None], g, max(whole.shape[1] // g // 2, 1))
        outputs = cluster_order(whole.flatten(1)[:, None], h, max(len(whole) // h // 2, 1))
        sorted_ = whole[outputs][:, inputs].reshape(h, len(whole) // h, g, whole.shape[1] // g, -1)
        return cls(values=sorted_.permute(2, 0, 1, 3, 4).flatten(0, 1), inputs=inputs, outputs=outputs)


def inner_windows(inner: Tensor, inputs: Tensor, g: int) -> Tensor:
    """Return what all layers but the last do to windows, by group of outputs: (h, g p, I t) from (g h, p, c, t)."""
    h, p, taps = len(inner) // g, inner.shape[1], inner.shape[3]
    total = inner.new_zeros(h, g, p, len(inputs), taps)
    for i, channels in enumerate(inputs.view(g, -1)):
        total[:, i].index_copy_(2, channels, inner[i * h : (i + 1) * h])
    return total.flatten(1, 2).flatten(2)


@dataclass(frozen=True, kw_only=True)
class BiclusteredFactors(LowRank):
    """Replace convolutions by blocks of low rank between clusters of channels.

    A rank is a pair (of outputs, of inputs) for form="svd", one number of terms for form="outer"; it holds for every
    block. The options that choose layers and ranks are those of `LowRank`.

    Args:
        form: "svd" factors each block by singular vectors, "outer" into outer products.
        inputs: number of groups G of input channels, at least 1; it must divide them.
        outputs: number of groups H of output channels, at least 1; it must divide them.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> method = gossamer.methods.lowrank.BiclusteredFactors(ranks={"conv2": (4, 3)})
        >>> smaller, edits = method(model, inputs)
        >>> edits[-1].target, edits[-1].note
        ('conv2', 'rank 4, 3')
    """

    example: ClassVar[Settings] = {"macs": 0.6}

    form: Literal["svd", "outer"] = "svd"
    inputs: Annotated[int, Range(1, 65_536)] = 2
    outputs: Annotated[int, Range(1, 65_536)] = 2

    @property
    def modes(self) -> tuple[str, ...]:
        return ("rank of outputs", "rank of inputs") if self.form == "svd" else ("terms",)

    @property
    def singular(self) -> bool:
        return self.form == "svd"

    def refusal(self, layer: Layer) -> str:
        if why := super().refusal(layer) or ("its channels are in groups already" if groups_of(layer) > 1 else ""):
            return why
        outputs, inputs = layer.weight.shape[:2]
        pairs = (("inputs", inputs, self.inputs), ("outputs", outputs, self.outputs))
        return " and ".join(f"its {n} {what} are no multiple of {groups}" for what, n, groups in pairs if n % groups)

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        (o, i, *_), blocks = layer.weight.shape, self.inputs * self.outputs
        many, few = blocks * rank[0], blocks * rank[-1]
        groups = blocks if self.form == "svd" else few
        return [
            Factor(inputs=i, outputs=few, groups=self.inputs),
            Factor(inputs=few, outputs=many, axes=kernel_axes(layer), groups=groups),
            Factor(inputs=many, outputs=o, groups=self.outputs),
        ]

    def largest(self, weight: Tensor) -> Rank:
        n, c, taps = weight.shape[1] // self.outputs, weight.shape[2] // self.inputs, weight[0, 0, 0].numel()
        if self.form == "svd":
            return (min(n, c * taps), min(c, n * taps))
        return (max(n * c * taps // (n + c + taps), 1),)

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        taps = math.prod(kernel_of(layer))
        return (ranks[:, 0] <= ranks[:, -1] * taps) & (ranks[:, -1] <= ranks[:, 0] * taps)

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        """Return those of the blocks, without a metric: the inputs of different blocks are not independent."""
        values = self._blocks(weight).values
        return [(values.flatten(2), None), (values.transpose(2, 3).flatten(1, 2), None)]

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        if self.form == "svd":
            return super().spectrum(weight, gram, need)
        if need == "noise":
            return Spectrum(lost=(), noise=(max(super().spectrum(weight, None, need).noise),))
        [most], whole = self.largest(weight), float(energy_of(weight.flatten(2), gram).sum())
        blocks = self._blocks(weight)
        terms = outer_products(blocks.values, most)

        def lost(rank: int) -> float:
            last, inner = self._fitted(weight, blocks, [t[:, :, :rank] for t in terms], gram)[2:]
            change = weight[0].flatten(1)[blocks.outputs].unflatten(0, (self.outputs, -1)) - last @ inner  # type: ignore[no-untyped-call]
            return float(energy_of(change, gram).sum()) / max(whole, 1e-300)

        return Spectrum(lost=(probed(most, lost),), noise=())

    def _blocks(self, weight: Tensor) -> Blocks:
        return Blocks.of(weight[0].flatten(2), self.inputs, self.outputs)

    def _fitted(self, weight: Tensor, blocks: Blocks, parts: Sequence[Tensor], gram: Tensor | None) -> list[Tensor]:
        """The weights of the three layers, and what the first two do to windows."""
        a, b, *rest = parts
        if self.form == "svd":
            core = rest[0]
            inner = torch.einsum("bprt,bcr->bpct", core, b)
        else:
            core = rest[0].mT
            inner = torch.einsum("bcr,brt->brct", b, core)
        g, h = self.inputs, self.outputs
        seen = inner_windows(inner, blocks.inputs, g)
        last = a.unflatten(0, (g, h)).permute(1, 2, 0, 3).flatten(2)  # type: ignore[no-untyped-call]
        if gram is not None or self.form == "outer":
            target = weight[0].flatten(1)[blocks.outputs].unflatten(0, (h, -1))  # type: ignore[no-untyped-call]
            last = last_factor(target, seen, None if gram is None else gram.expand(h, -1, -1))
        # Columns of the last layer as long as the rows that they meet.
        long, wide = last.norm(dim=1), seen.norm(dim=2)
        scale = (long / wide).sqrt().where((long > 0) & (wide > 0), 1.0)
        even = scale.unflatten(1, (g, -1)).transpose(0, 1).flatten(0, 1)
        core = core * even.view(*even.shape, *[1] * (core.ndim - 2))
        return [b.mT, core, last / scale[:, None], seen * scale[:, :, None]]

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        return self._solve(weight, self._blocks(weight), rank, gram)

    def _solve(self, weight: Tensor, blocks: Blocks, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        values = blocks.values
        parts = directions(values, rank) if self.form == "svd" else outer_products(values, rank[0])
        return self._fitted(weight, blocks, parts, gram)[:3]

    def build(self, layer: Layer, weight: Tensor, rank: Rank, gram: Tensor | None) -> nn.Sequential:
        blocks = self._blocks(weight)
        made = make_chain(layer, self.chain(layer, rank), self._solve(weight, blocks, rank, gram))
        between = torch.arange(self.inputs * self.outputs * rank[0]).view(self.inputs, self.outputs, -1)
        return reordered(made, {0: blocks.inputs, 2: between.transpose(0, 1).flatten()}, blocks.outputs)
