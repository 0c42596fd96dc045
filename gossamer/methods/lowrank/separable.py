"""Separable filters: replace a convolution by k x 1 and 1 x k depthwise filters and a 1 x 1 convolution.

What it does: gives each input channel r separable filters, computed as k x 1 and 1 x k depthwise convolutions, and
mixes all of their outputs by one 1 x 1 convolution. basis="own": every channel has its own r filters (Jaderberg's first
scheme). "shared": all channels have the same r filters, learned from all filters of the layer (Rigamonti's).
"dct", "haar": the r products of cosines, or of wavelets, that hold most energy, without any learning. With `data` the
mix is fitted to the outputs (data reconstruction).
Cost: seconds; with `data`, a matrix of (inputs x positions)^2 numbers for each layer.
When it fails: depthwise layers save less time than MACs. For 3 x 3 kernels r must be about 1 to 5. r = k^2 is exact.
Equation: W_nc ~ sum_r A_ncr u_cr v_cr^T, by alternating least squares over A, u, v; dct: u, v columns of
C_ij = sqrt((1 + [j > 0]) / k) cos(pi (2 i + 1) j / 2 k); haar: columns of Haar wavelets on halves of halves.
Source: Jaderberg et al. 2014, arXiv:1405.3866, scheme 1; Rigamonti et al. 2013, CVPR, section 3.3 (SEP-TD).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import energy_of, last_factor
from gossamer.methods.lowrank._scheme import Rank, Spectrum, Unfolding

SWEEPS = 30
LETTERS = "ijk"


def cosines(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (size, size): column j is the j-th cosine, float64."""
    i, j = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis: Tensor = torch.cos(torch.pi * (2 * i + 1) * j / (2 * size)) * (2 / size) ** 0.5
    basis[:, 0] /= 2**0.5
    return basis


def haar(size: int) -> Tensor:
    """Return orthonormal Haar wavelets (size, size), float64: a constant column, then differences of two halves.

    Each interval is halved until it has one element. Where its length is odd, the first half has one more, and the two
    levels are such that the column has mean 0 and norm 1.

    Source: Haar 1910; Girardi & Sweldens 1997 (halves of different lengths).
    """
    basis = torch.zeros(size, size, dtype=torch.float64)
    basis[:, 0] = size**-0.5
    intervals, column = [(0, size)], 1
    for begin, end in intervals:  # coarse to fine: the halves follow at the end of the list
        if end - begin < 2:
            continue
        middle = (begin + end + 1) // 2
        first, second = middle - begin, end - middle
        basis[begin:middle, column] = (second / (first * (end - begin))) ** 0.5
        basis[middle:end, column] = -((first / (second * (end - begin))) ** 0.5)
        column += 1
        intervals += [(begin, middle), (middle, end)]
    return basis


TRANSFORMS = {"dct": cosines, "haar": haar}


def strongest_products(stack: Tensor, bases: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Return the products of columns of bases that hold most energy of the filters.

    Args:
        stack: filters, shape (b, n, k, l ...).
        bases: for every axis, shape (b, k, k).
        rank: number of products.

    Returns:
        For every axis the columns of the products, shape (b, k, rank).
    """
    letters = LETTERS[: len(bases)]
    turned = torch.einsum(
        f"bn{letters}," + ",".join(f"b{a}{a.upper()}" for a in letters) + f"->bn{letters.upper()}", stack, *bases
    )
    order = turned.square().sum(1).flatten(1).argsort(dim=1, descending=True, stable=True)[:, :rank]
    picks = torch.unravel_index(order, stack.shape[2:])
    return [basis.gather(2, pick[:, None].expand(-1, basis.shape[1], -1)) for basis, pick in zip(bases, picks)]


def filters(factors: Sequence[Tensor]) -> Tensor:
    """Return the products (b, r, k l ...) of columns (b, k, r), (b, l, r), ..."""
    total = factors[0].mT
    for f in factors[1:]:
        total = (total[..., None] * f.mT[:, :, None]).flatten(2)
    return total


def learned(stack: Tensor, rank: int) -> list[Tensor]:
    """Learn separable filters whose span holds as much of a set of filters as possible, by alternating least squares.

    Args:
        stack: filters, shape (b, n, k, l ...).
        rank: number of separable filters.

    Returns:
        For every axis, shape (b, k, rank).
    """
    kernel = stack.shape[2:]
    # Only the span matters: at most k l filters have all of it.
    stack = torch.linalg.qr(stack.flatten(2), mode="r").R.unflatten(2, kernel)
    bases = [torch.linalg.svd(stack.movedim(a + 2, 1).flatten(2), full_matrices=False).U for a in range(len(kernel))]
    bases = [b if b.shape[2] == b.shape[1] else torch.linalg.qr(b, mode="complete").Q for b in bases]
    factors = strongest_products(stack, bases, rank)
    if rank >= math.prod(kernel):
        return factors
    letters = LETTERS[: len(kernel)]
    for _ in range(SWEEPS):
        mix = _least_squares(filters(factors), stack.flatten(2))
        for axis, a in enumerate(letters):
            others = [f for n, f in enumerate(factors) if n != axis]
            terms = "".join(f",b{c}r" for c in letters if c != a)
            right = torch.einsum(f"bn{letters},bnr{terms}->br{a}", stack, mix, *others)
            normal = torch.stack([f.mT @ f for f in (mix, *others)]).prod(0)
            found = _damped(normal, right).mT
            length = found.norm(dim=1, keepdim=True).clamp_min(1e-300)
            factors[axis], mix = found / length, mix * length
    return factors


def _damped(normal: Tensor, right: Tensor) -> Tensor:
    ridge = 1e-9 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-300
    return torch.linalg.solve(normal + ridge * torch.eye(normal.shape[1]).to(normal), right)  # type: ignore[no-any-return]


def _least_squares(basis: Tensor, stack: Tensor) -> Tensor:
    """(b, n, r): how the filters (b, n, D) are best mixed from a basis (b, r, D)."""
    return _damped(basis @ basis.mT, basis @ stack.mT).mT


@dataclass(frozen=True, kw_only=True)
class SeparableFilters(LowRank):
    """Replace convolutions by separable depthwise filters and a 1 x 1 convolution.

    A rank is the number of separable filters for each input channel. The options that choose layers and ranks are those
    of `LowRank`.

    Args:
        basis: "own" filters for each channel, filters "shared" by all channels, cosines ("dct") or wavelets ("haar").

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> method = gossamer.methods.lowrank.SeparableFilters(ranks={"conv2": 2}, basis="dct")
        >>> [layer.kernel_size for layer in method(model, inputs).model.conv2]
        [(3, 1), (1, 3), (1, 1)]
    """

    modes: ClassVar[tuple[str, ...]] = ("filters for a channel",)
    singular: ClassVar[bool] = False
    example: ClassVar[Settings] = {"ranks": {"body.*": 2}, "data": "inputs"}

    basis: Literal["own", "shared", "dct", "haar"] = "own"

    def refusal(self, layer: Layer) -> str:
        return "" if sum(size > 1 for size in kernel_of(layer)) > 1 else "its kernel is not along two axes"

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        inputs, kernel = layer.weight.shape[1] * groups_of(layer), kernel_of(layer)
        many = rank[0] * inputs
        along = [Factor(inputs=many, outputs=many, axes=(a,), groups=many) for a in range(1, len(kernel))]
        first = Factor(inputs=inputs, outputs=many, axes=(0,), groups=inputs)
        return [first, *along, Factor(inputs=many, outputs=layer.weight.shape[0], groups=groups_of(layer))]

    def largest(self, weight: Tensor) -> Rank:
        return (math.prod(weight.shape[3:]),)

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        """Return, for EVBMF, the filters of each channel, or of all, in the space of k x k filters."""
        return [(self._stack(weight).flatten(2), None)]

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        if need == "noise":
            return super().spectrum(weight, None, need)
        [most], whole = self.largest(weight), float(energy_of(weight.flatten(2), gram).sum())
        lost = [1.0]
        for rank in range(1, most + 1):
            *inner, outer = self.solve(weight, (rank,), gram)
            change = weight.flatten(2) - outer @ self._windows(weight, inner)
            lost.append(min(float(energy_of(change, gram).sum()) / max(whole, 1e-300), lost[-1]))
        return Spectrum(lost=(torch.tensor(lost, dtype=torch.float64),), noise=())

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        stack, groups, channels = self._stack(weight), len(weight), weight.shape[2]
        if self.basis in TRANSFORMS:
            transform = TRANSFORMS[self.basis]
            bases = [transform(size).to(weight).expand(len(stack), -1, -1) for size in weight.shape[3:]]
            factors = strongest_products(stack, bases, rank[0])
        else:
            factors = learned(stack, rank[0])
        inner = [f.mT.expand(groups * channels, -1, -1) if len(f) == 1 else f.mT for f in factors]
        own = weight.transpose(1, 2).flatten(0, 1).flatten(2)  # (g I, O, taps)
        mix = _least_squares(filters([f.mT for f in inner]), own)
        outer = mix.unflatten(0, (groups, channels)).transpose(1, 2).flatten(2)  # type: ignore[no-untyped-call]
        if gram is not None:
            windows, target = self._windows(weight, inner), weight.flatten(2)
            fitted = last_factor(target, windows, gram)
            errors = [float(energy_of(target - one @ windows, gram).sum()) for one in (outer, fitted)]
            outer = fitted if errors[1] < errors[0] else outer
        return [*inner, outer]

    def _stack(self, weight: Tensor) -> Tensor:
        """(b, n, k, l ...): the filters that get a basis of their own."""
        by_channel = weight.transpose(1, 2).flatten(0, 1)
        return by_channel if self.basis == "own" else by_channel.flatten(0, 1)[None]

    @staticmethod
    def _windows(weight: Tensor, inner: Sequence[Tensor]) -> Tensor:
        """What all layers but the last do to windows: (g, I r, I k l ...)."""
        made = filters([f.mT for f in inner]).unflatten(0, (len(weight), -1))  # type: ignore[no-untyped-call]
        same = torch.eye(made.shape[1]).to(made)
        return torch.einsum("gcrt,cd->gcrdt", made, same).flatten(3).flatten(1, 2)
