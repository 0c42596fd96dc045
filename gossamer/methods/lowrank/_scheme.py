"""What a low-rank scheme defines, and the options that all of them have."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs
from gossamer.methods.lowrank._chain import Count, Factor, kernel_of, make_chain
from gossamer.methods.lowrank._matrices import energy_of, principal
from gossamer.methods.lowrank._ranks import evbmf_rank, tails

RULES = ("energy", "macs", "params", "time")

Rank = tuple[int, ...]
Unfolding = tuple[Tensor, Tensor | None]  # a matrix (g, a, b) whose rank counts, and the metric (g, b, b) of its rows


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The spectrum of a layer's weight.

    Attributes:
        lost: for every mode, the fraction of energy lost at ranks 0, 1, ...
        noise: for every mode, the rank above which there is only noise (EVBMF).
    """

    lost: tuple[Tensor, ...]
    noise: Rank


@dataclass(frozen=True, kw_only=True)
class Scheme(Method):
    """The options of all low-rank schemes, and what each of them defines.

    One rule chooses the ranks: `energy`, `macs`, `params` or `time`. Without a rule and without `ranks`, EVBMF chooses
    them from the noise in the spectrum.

    Args:
        energy: the least fraction of its energy that a layer keeps, in (0, 1).
        macs: fraction of the multiply-adds that the layers which can be factored keep together, in (0, 1).
        params: fraction of the weights that they keep together, in (0, 1).
        time: fraction of the time that they keep together on the job's runtime, in float32, in (0, 1). Only layers that
            gain time are replaced.
        measured: under macs, params or time, weigh each layer's energy by how much the loss rises when this layer
            alone is factored. It needs labelled training data. False: all layers count alike.
        ranks: rank by layer name or pattern, above the rule. Without a rule only these layers are factored.
        data: "none" fits the weights. "inputs" fits the layer's outputs on calibration inputs. "accumulated" goes from
            layer to layer and fits the original's outputs on the inputs that the factored layers before give.
        norm: put batch normalization between the factors, for later training. Its statistics come from the calibration
            data, so that it changes nothing at first.
        batches: number of batches of calibration data, at least 1.
        layers: patterns of layers. A layer that matches a pattern and cannot be factored stays as it is; one that is
            named in full raises BadInput.
        ignore: patterns of layers to leave.

    Raises:
        BadInput: more than one rule is given, or `measured` without a rule that it applies to.
        NoEffect: no layer was factored.
    """

    stage: ClassVar[int | None] = 20
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "inputs"

    energy: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    macs: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    params: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    time: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    measured: bool = False
    ranks: Mapping[str, int | tuple[int, ...]] | None = None
    data: Literal["none", "inputs", "accumulated"] = "none"
    norm: bool = False
    batches: Annotated[int, Range(1, 1_000_000)] = 16
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in RULES if getattr(self, name) is not None]
        if len(given) > 1:
            raise BadInput(f"{self.name()}: {' and '.join(given)} are both given; one of them chooses the ranks")
        if self.measured and self.rule in (None, "energy"):
            raise BadInput(f"{self.name()}: measured = true needs macs, params or time, which it spreads")

    def needed(self) -> Needs:
        if self.measured:
            return "labels"
        return "inputs" if self.data == "none" and not self.norm else "samples"

    def shape_only(self) -> "Scheme":
        return replace(self, data="none")

    @property
    def rule(self) -> str | None:
        """Name of the option that chooses the ranks that are not given; None: EVBMF."""
        return next((name for name in RULES if getattr(self, name) is not None), None)

    @property
    def modes(self) -> tuple[str, ...]:
        """What each number of a rank counts."""
        return ("rank",)

    @property
    def singular(self) -> bool:
        """Whether the ranks are those of matrices (the unfoldings)."""
        return True

    def refusal(self, layer: Layer) -> str:
        """Return why this scheme cannot replace a layer; "" if it can."""
        small = math.prod(kernel_of(layer)) == 1
        return "its kernel has one position; lowrank.svd is for those" if small else ""

    @abstractmethod
    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        """Return the layers that replace a layer at a rank."""

    @abstractmethod
    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        """Return the matrices whose ranks are the modes. weight (g, O, I, ...), gram (g, D, D) of its inputs."""

    @abstractmethod
    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        """Return the weights of the chain."""

    def build(self, layer: Layer, weight: Tensor, rank: Rank, gram: Tensor | None) -> nn.Sequential:
        """Return the chain, fitted to this weight."""
        return make_chain(layer, self.chain(layer, rank), self.solve(weight, rank, gram))

    def empty(self, layer: Layer, rank: Sequence[int]) -> nn.Module:
        """Return the chain with any weights, to measure what it costs."""
        factors = self.chain(layer, rank)
        sizes = [int(factor.size(kernel_of(layer))) for factor in factors]
        return make_chain(layer, factors, [torch.full((size,), 1e-2) for size in sizes])

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        """Return what the rule for the ranks needs to know of a weight."""
        unfolded = self.unfoldings(weight, gram if need == "lost" else None)
        found = [(matrix, principal(matrix, metric)[1], energy_of(matrix, metric)) for matrix, metric in unfolded]
        lost = tuple(tails(energies.sum(0), float(total.sum())) for _, energies, total in found)
        if need == "lost":
            return Spectrum(lost=lost, noise=())
        noise = tuple(
            max(evbmf_rank(e, (m.shape[1], m.shape[2]), float(t)) for e, t in zip(energies, total))
            for m, energies, total in found
        )
        return Spectrum(lost=lost, noise=noise)

    def largest(self, weight: Tensor) -> Rank:
        """Return the largest rank of every mode."""
        return tuple(min(matrix.shape[1:]) for matrix, _ in self.unfoldings(weight, None))

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        """Return bool (P,): which of these combinations of ranks (P, m) a tensor can have."""
        return torch.ones(len(ranks), dtype=torch.bool)
