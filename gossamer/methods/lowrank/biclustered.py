"""Blocks between groups of alike channels, each of low rank: grouped convolutions in the place of one.

What it does: sorts the input channels into G and the outputs into H groups of equal size, so that those of a group lie
near a common subspace, and takes apart each of the G H blocks of the kernel: by singular vectors, into grouped 1 x 1, k
x k and 1 x 1 convolutions ("svd"); or into outer products, found one by one, of which the k x k convolution becomes
depthwise ("outer"). With `data` the last layer is fitted to the outputs.
Cost: seconds. Sorting channels and grouped convolutions cost more time than their MACs say.
When it fails: layers whose channels are in groups already, or no multiple of the groups, are left.
Equation: W_gh ~ sum_pr A_np K_prt B_rc by the leading inputs, then the leading outputs; or W_gh ~ sum_r A_nr B_cr T_tr,
each term by alternating least squares on what those before leave, A at last by least squares.
Source: Denton et al. 2014, arXiv:1404.0736, sections 3.2.2, 3.2.3 and 3.3 (the clusters).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.calibration.moments import Layer, groups_of
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._alike import alike
from gossamer.methods.lowrank._chain import (
    Count,
    Factor,
    kernel_axes,
    kernel_of,
    make_chain,
    reordered,
)
from gossamer.methods.lowrank._common import LowRank, Rank, Spectrum, Unfolding
from gossamer.methods.lowrank._matrices import energy_of, principal, refit
from gossamer.methods.lowrank._ranks import probed

POWER_STEPS = 20  # for one outer product


def normalize(vectors: Tensor) -> Tensor:
    """Rows of length one; zeros stay zeros."""
    return F.normalize(vectors, dim=1, eps=1e-300)


def outer_products(blocks: Tensor, rank: int) -> list[Tensor]:
    """(b, n, rank), (b, c, rank), (b, t, rank): rank-one tensors fitted one by one to the rest of (b, n, c, t), each by
    alternating least squares, so that the rest never grows."""
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
    """A (b, n, p), B (b, c, r) and the core (b, p, r, t) of (b, n, c, t): the leading directions of the inputs, then
    those of the outputs of what is left."""
    b = principal(blocks.transpose(1, 2).flatten(2))[0][:, :, : rank[1]]
    wide = torch.einsum("bnct,bcr->bnrt", blocks, b).flatten(2)
    a = principal(wide)[0][:, :, : rank[0]]
    return [a, b, (a.mT @ wide).unflatten(2, (rank[1], -1))]  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """values (g h, n, c, t): between group g of the inputs and group h of the outputs; the channels in their order."""

    values: Tensor
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, whole: Tensor, g: int, h: int) -> "Blocks":
        """Of a kernel (O, I, t)."""
        inputs = alike(whole.transpose(0, 1).flatten(1)[:, None], g, max(whole.shape[1] // g // 2, 1))
        outputs = alike(whole.flatten(1)[:, None], h, max(len(whole) // h // 2, 1))
        sorted_ = whole[outputs][:, inputs].reshape(h, len(whole) // h, g, whole.shape[1] // g, -1)
        return cls(values=sorted_.permute(2, 0, 1, 3, 4).flatten(0, 1), inputs=inputs, outputs=outputs)


def windows(inner: Tensor, inputs: Tensor, g: int) -> Tensor:
    """What all but the last layer do to windows, for each group of outputs: (h, g p, I t) of (g h, p, c, t)."""
    h, p, taps = len(inner) // g, inner.shape[1], inner.shape[3]
    total = inner.new_zeros(h, g, p, len(inputs), taps)
    for i, channels in enumerate(inputs.view(g, -1)):
        total[:, i].index_copy_(2, channels, inner[i * h : (i + 1) * h])
    return total.flatten(1, 2).flatten(2)


@dataclass(frozen=True, kw_only=True)
class BiclusteredFactors(LowRank):
    """inputs, outputs: the numbers of groups. rank: of the outputs and of the inputs ("svd"), or the number of terms
    ("outer"), in every block."""

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
        """Of the blocks, in no metric: what goes into different ones is not independent."""
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
        seen = windows(inner, blocks.inputs, g)
        last = a.unflatten(0, (g, h)).permute(1, 2, 0, 3).flatten(2)  # type: ignore[no-untyped-call]
        if gram is not None or self.form == "outer":
            target = weight[0].flatten(1)[blocks.outputs].unflatten(0, (h, -1))  # type: ignore[no-untyped-call]
            last = refit(target, seen, None if gram is None else gram.expand(h, -1, -1))
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
