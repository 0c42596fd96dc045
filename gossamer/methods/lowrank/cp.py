"""CP decomposition (canonical polyadic, CANDECOMP/PARAFAC): replace a convolution by 1 x 1, depthwise and 1 x 1.

What it does: writes W as a sum of r outer products of vectors over outputs, inputs and each axis of the kernel. Each
axis becomes one depthwise convolution. With apart=False the whole kernel becomes one depthwise k x k convolution, which
loses less at the same rank and is faster where kernels are small. A penalty on the norms of the factors keeps large
terms from cancelling each other, which would make the chain hard to train and to quantize. With `data` the last layer
is fitted to the outputs.
Cost: small layers: damped Gauss-Newton steps on all factors, about a second. Others: alternating least squares, 2 r |W|
multiply-adds a sweep: minutes for layers of millions of weights and ranks of hundreds. A rule for the ranks (but EVBMF)
decomposes at several ranks and interpolates.
When it fails: high ranks of deep networks. More terms than channels are fitted slowly; give more sweeps. Depthwise
layers save less time than MACs. Grouped layers are refused.
Equation: W_ncij ~ sum_r A_nr B_cr P_ir Q_jr, min |W - W'|^2 + mu (|A|^2 + |B|^2 + |P|^2 + |Q|^2).
Source: Lebedev et al. 2015, arXiv:1412.6553, section 3; bounded norms as in Phan et al. 2020, arXiv:2008.05441.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import Count, Factor
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._cpd import cp
from gossamer.methods.lowrank._matrices import by_inputs, energy_of, last_factor
from gossamer.methods.lowrank._ranks import probed
from gossamer.methods.lowrank._scheme import Rank, Spectrum, Unfolding


def inner_map(factors: Sequence[Tensor]) -> Tensor:
    """Return what all layers but the last do to windows, (1, r, I k l ...), from the factors for I, k, l ..."""
    total = factors[0].T
    for factor in factors[1:]:
        total = (total[:, :, None] * factor.T[:, None]).flatten(1)
    return total[None]


@dataclass(frozen=True, kw_only=True)
class CP(LowRank):
    """Replace convolutions by chains of 1 x 1, depthwise and 1 x 1 convolutions (CP decomposition).

    A rank is the number of terms. The options that choose layers and ranks are those of `LowRank`.

    Args:
        apart: whether each axis of the kernel gets a depthwise convolution of its own; False: one k x k for all.
        penalty: mu in [0, 1], in units in which the kernel's energy is 1; 0 bounds nothing.
        sweeps: largest number of sweeps of alternating least squares, or of Gauss-Newton steps.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> method = gossamer.methods.lowrank.CP(ranks={"conv2": 4}, apart=False, sweeps=10)
        >>> print(method(model, inputs).edits[-1].after)
        Conv2d 1x1 8 to 4 + Conv2d 3x3 4 to 4 in 4 groups + Conv2d 1x1 4 to 16, 8,448 MACs
    """

    modes: ClassVar[tuple[str, ...]] = ("terms",)
    singular: ClassVar[bool] = False
    example: ClassVar[Settings] = {"ranks": {"body.0.conv1": 6}, "sweeps": 20}

    apart: bool = True
    penalty: Annotated[float, Range(0, 1)] = 1e-4
    sweeps: Annotated[int, Range(1, 100_000)] = 100

    def refusal(self, layer: Layer) -> str:
        grouped = "its channels are in groups; lowrank.tucker is for those" if groups_of(layer) > 1 else ""
        return super().refusal(layer) or grouped

    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        [r], [outputs, inputs, *kernel] = rank, layer.weight.shape
        axes = [(axis,) for axis in range(len(kernel))] if self.apart else [tuple(range(len(kernel)))]
        along = [Factor(inputs=r, outputs=r, axes=one, groups=r) for one in axes]
        return [Factor(inputs=inputs, outputs=r), *along, Factor(inputs=r, outputs=outputs)]

    def largest(self, weight: Tensor) -> Rank:
        """Return the largest rank that has no more parameters than the kernel."""
        _, outputs, inputs, *kernel = weight.shape
        along = sum(kernel) if self.apart else math.prod(kernel)
        return (max(weight.numel() // (outputs + inputs + along), 1),)

    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        """Return, for EVBMF, those over outputs and over inputs, of which the larger rank counts."""
        return [(weight.flatten(2), None), (by_inputs(weight), None)]

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        if need == "noise":
            return Spectrum(lost=(), noise=(max(super().spectrum(weight, None, "noise").noise),))
        [most], whole = self.largest(weight), float(energy_of(weight.flatten(2), gram).sum())

        def lost(rank: int) -> float:
            change = weight.flatten(2) - self._product(self.solve(weight, (rank,), gram))
            return float(energy_of(change, gram).sum()) / max(whole, 1e-300)

        return Spectrum(lost=(probed(most, lost),), noise=())

    @staticmethod
    def _product(weights: Sequence[Tensor]) -> Tensor:
        *inner, outer = weights
        return outer @ inner_map([w.T for w in inner])

    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        tensor = weight[0].double() if self.apart else weight[0].double().flatten(2)
        outer, *inner = cp(tensor, rank[0], penalty=self.penalty, sweeps=self.sweeps, generator=generator)
        if gram is not None:
            outer = last_factor(weight.flatten(2).double(), inner_map(inner), gram.double())[0]
        return [factor.T for factor in inner] + [outer]
