"""What the factorizations share: which layers, which ranks, on which data; the swap, and what the history says."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import Layer, moments
from gossamer.constraints.base import refuse_constrained, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name, reasons
from gossamer.core.record import SwapRecord
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Needs
from gossamer.methods.lowrank._chain import (
    Count,
    Factor,
    calls_of,
    chain_macs,
    dense_factor,
    grouped,
    kernel_of,
    make_chain,
)
from gossamer.methods.lowrank._choice import Site, choose
from gossamer.methods.lowrank._grams import Grams
from gossamer.methods.lowrank._matrices import EXACT_SIZE, corrected, energy_of, principal
from gossamer.methods.lowrank._norms import settle, with_norms
from gossamer.methods.lowrank._notes import describe, spectrum_rows, swapped
from gossamer.methods.lowrank._ranks import evbmf_rank, tails
from gossamer.methods.lowrank._timed import slower

RULES = ("energy", "macs", "params", "time")

Rank = tuple[int, ...]
Unfolding = tuple[Tensor, Tensor | None]  # a matrix (g, a, b) whose rank counts, and the metric (g, b, b) of its rows


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Of one layer: the share of energy lost at every rank of every mode, and the ranks that stand out of noise."""

    lost: tuple[Tensor, ...]
    noise: Rank


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """One rule chooses the ranks. energy: the least share that a layer keeps. macs, params: the share that the layers
    which can be factored keep together; time: the same on the job's runtime, in float32, where only layers are replaced
    that gain there. ranks: by layer or pattern, above the rule, and without one only these layers. None of them: EVBMF.
    measured: under macs, params or time, how much the loss on `batches` of training data rises for each layer alone
    weighs its energy; otherwise all count alike.

    data: "none" fits the weights; "inputs" the layer's outputs on calibration inputs; "accumulated" goes from layer to
    layer, and fits the original's outputs on the inputs that the layers before, factored already, make. norm: batch
    normalization between the factors, for training; with statistics of the calibration data, so that at first nothing
    changes. batches: of calibration data. layers, ignore: patterns; a layer that a pattern names and that cannot be
    factored stays as it is.
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

    def roughly(self) -> "LowRank":
        return replace(self, data="none")

    @property
    def rule(self) -> str | None:
        """What chooses the ranks that are not given; None: EVBMF."""
        return next((name for name in RULES if getattr(self, name) is not None), None)

    @property
    def modes(self) -> tuple[str, ...]:
        """What the ranks count."""
        return ("rank",)

    @property
    def singular(self) -> bool:
        """Whether the ranks are those of the unfoldings."""
        return True

    def refusal(self, layer: Layer) -> str:
        """Why this scheme is not for such a layer; "" where it is."""
        small = math.prod(kernel_of(layer)) == 1
        return "its kernel has one position; lowrank.svd is for those" if small else ""

    @abstractmethod
    def chain(self, layer: Layer, rank: Sequence[Count]) -> list[Factor]:
        """The layers that stand in for it, one or more ranks as the scheme has modes."""

    @abstractmethod
    def unfoldings(self, weight: Tensor, gram: Tensor | None) -> list[Unfolding]:
        """The matrices whose ranks the modes are. weight (g, O, I, ...), gram (g, D, D) of `weight.flatten(2)`."""

    @abstractmethod
    def solve(self, weight: Tensor, rank: Rank, gram: Tensor | None) -> list[Tensor]:
        """The weights of the chain."""

    def build(self, layer: Layer, weight: Tensor, rank: Rank, gram: Tensor | None) -> nn.Sequential:
        """The chain, fitted to this weight."""
        return make_chain(layer, self.chain(layer, rank), self.solve(weight, rank, gram))

    def empty(self, layer: Layer, rank: Sequence[int]) -> nn.Module:
        """The chain with any weights: for measuring what it costs."""
        factors = self.chain(layer, rank)
        sizes = [int(factor.size(kernel_of(layer))) for factor in factors]
        return make_chain(layer, factors, [torch.full((size,), 1e-2) for size in sizes])

    def spectrum(self, weight: Tensor, gram: Tensor | None, need: Literal["noise", "lost"]) -> Spectrum:
        """What the rule for the ranks needs to know of a weight."""
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
        """The largest rank of every mode."""
        return tuple(min(matrix.shape[1:]) for matrix, _ in self.unfoldings(weight, None))

    def possible(self, layer: Layer, ranks: Tensor) -> Tensor:
        """Bool (P,): which of these combinations (P, m) a tensor can have. All of them, where there is one mode."""
        return torch.ones(len(ranks), dtype=torch.bool)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """A copy of the model with every layer factored for which that pays; the history has all that it saw."""
        refuse_constrained(model, "swap")
        found, left = _suitable(self, model)
        calls = calls_of(model, list(found), task.example_inputs) if found else {}
        left |= {name: "it is not called as a layer in a run" for name in found if name not in calls}
        found = {name: found[name] for name in calls}
        grams = Grams(model, found, None if self.data == "none" else task.calibration, self.batches)
        site = Site(model=model, layers=found, calls=calls, grams=grams, task=task, context=context)
        chosen, why, lost = choose(self, site)
        left |= why
        for name, reason in left.items():
            text = describe(model.get_submodule(name))
            self.note(context, "swap", name, before=text, after=text, note=reason)
        if not chosen:
            raise NoEffect(f"{self.name()}: no layer was factored: {'; '.join(reasons(left)[:5])}")
        chosen = {name: chosen[name] for name in calls if name in chosen}
        return _factored(self, site, chosen, lost)


def _suitable(method: LowRank, model: nn.Module) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can be factored, and why others cannot. Raises BadInput for one that was asked for by name."""
    keys = weights_of(model, method.layers, method.ignore)
    places: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            places[id(p)] = places.get(id(p), 0) + 1
    paths: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        paths[id(module)] = paths.get(id(module), 0) + 1
    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for key, raw in keys.items():
        name, reason = layer_name(key), ""
        layer: Any = model.get_submodule(name)
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            reason = f"{type(layer).__name__} is none of Linear, Conv1d, Conv2d, Conv3d"
        elif not name:
            reason = "the network is this one layer; put it in a Sequential"
        elif places[id(raw)] > 1 or paths[id(layer)] > 1:
            reason = "its weight is used in several places"
        else:
            reason = method.refusal(layer)
        if reason and name in (*method.layers, *(method.ranks or {})):
            raise BadInput(f"{method.name()}: layer {name!r} cannot be factored: {reason}")
        if reason:
            left[name] = reason
        else:
            found[name] = layer
    return found, left


@torch.no_grad()
def _factored(
    method: LowRank, site: Site, chosen: Mapping[str, Rank], lost: Mapping[str, Sequence[Tensor]]
) -> nn.Module:
    """The swap itself, in the order of the run."""
    model, task, run = site.model, site.task, site.context
    changed, chains, rows = model, dict[str, nn.Sequential](), dict[str, dict[str, Any]]()
    for name in run.progress.bar(chosen, label=method.name()):
        layer: Any = model.get_submodule(name)
        weight, gram = grouped(layer), None
        matrix = weight.flatten(2)
        if method.data == "inputs":
            gram = site.grams(name, weight)
        elif method.data == "accumulated":
            [(gram, cross)] = moments(changed, model, [name], task.calibration, method.batches).values()
            gram = gram.to(weight.dtype)
            weight = corrected(matrix, gram, cross.to(weight.dtype)).reshape(weight.shape)
        made = method.build(layer, weight, chosen[name], gram)
        chains[name] = with_norms(made) if method.norm else made
        if method.data == "accumulated":
            changed = swap(changed, {name: chains[name]})
        shown: SwapRecord | None = None
        if run.original is not None:  # a job: it has a report
            tails = lost.get(name) or _tails(method, weight, gram)
            spectra = spectrum_rows(tails, chosen[name], method.modes, singular=method.singular)
            shown = swapped(layer, chains[name], made, weight, gram, spectra)
        factors = [dense_factor(layer)], method.chain(layer, chosen[name])
        macs = [int(chain_macs(chain, kernel_of(layer), site.calls[name])) for chain in factors]
        rows[name] = {
            "before": f"{describe(layer)}, {macs[0]:,} MACs",
            "after": f"{' + '.join(map(describe, made))}, {macs[1]:,} MACs",
            "note": f"rank {', '.join(map(str, chosen[name]))}",
            "swapped": shown,
        }
    for name, times in (slower(model, chains, task, run) if method.rule == "time" else {}).items():
        text = describe(model.get_submodule(name))
        note = f"{rows[name]['note']}, {times:.2f} times the layer's time in the end; put back"
        rows[name] = {"before": text, "after": text, "note": note}
        chains.pop(name)
    for name, row in rows.items():
        method.note(run, "swap", name, **row)
    if not chains:
        raise NoEffect(f"{method.name()}: the runtime gains by no layer")
    changed = swap(model, chains)
    if method.norm:
        settle(changed, chains, task.calibration, method.batches)
    return changed


def _tails(method: LowRank, weight: Tensor, gram: Tensor | None) -> Sequence[Tensor]:
    """What every rank loses, for a rank that no rule chose; nothing where it would take long to know."""
    if not method.singular or max(method.largest(weight)) > EXACT_SIZE:
        return ()
    return method.spectrum(weight, gram, "lost").lost
