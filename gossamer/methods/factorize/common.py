"""What the factorizations share: which layers, which ranks, on which data; the swap, and what the history says."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, NoEffect
from gossamer.methods.base import Method
from gossamer.methods.factorize.chain import (
    Calls,
    Count,
    Factor,
    calls_of,
    chain_macs,
    chain_params,
    dense_factor,
    grouped,
    kernel_of,
    make_chain,
)
from gossamer.methods.factorize.matrices import EXACT_SIZE, corrected, energy_of, principal
from gossamer.methods.factorize.norms import settle, with_norms
from gossamer.methods.factorize.notes import describe, spectrum_rows, swapped
from gossamer.methods.factorize.ranks import Options, by_budget, by_energy, evbmf_rank, rank_grid, tails
from gossamer.network import swap, weights_of
from gossamer.network.constrain import refuse_constrained
from gossamer.network.moments import Layer, evaluating, input_moments, moments, place_whole
from gossamer.network.names import by_pattern, layer_name
from gossamer.ranges import Range
from gossamer.record import Swapped
from gossamer.run import Run
from gossamer.task import Task

# The share of a layer's energy that is taken away to measure what that does.
PROBE = 0.2

Rank = tuple[int, ...]
Unfolding = tuple[Tensor, Tensor | None]  # a matrix (g, a, b) whose rank counts, and the metric (g, b, b) of its rows


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Of one layer: the share of energy lost at every rank of every mode, and the ranks that stand out of noise."""

    lost: tuple[Tensor, ...]
    noise: Rank


@dataclass(frozen=True, kw_only=True)
class Factorize(Method):
    """One rule chooses the ranks. energy: the least share that a layer keeps. macs, params: the share that the layers
    which can be factored keep together. ranks: by layer or pattern, above the rule, and without one only these layers.
    None of them: EVBMF. measured: under macs or params, how much the loss on `batches` of training data rises for each
    layer alone weighs its energy; otherwise all count alike.

    data: "none" fits the weights; "inputs" the layer's outputs on calibration inputs; "accumulated" goes from layer to
    layer, and fits the original's outputs on the inputs that the layers before, factored already, make. norm: batch
    normalization between the factors, for training; with statistics of the calibration data, so that at first nothing
    changes. batches: of calibration data. layers, ignore: patterns; a layer that a pattern names and that cannot be
    factored stays as it is.
    """

    stage: ClassVar[int | None] = 20
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")

    energy: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    macs: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    params: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    measured: bool = False
    ranks: Mapping[str, int | tuple[int, ...]] | None = None
    data: Literal["none", "inputs", "accumulated"] = "none"
    norm: bool = False
    batches: Annotated[int, Range(1, 1_000_000)] = 16
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = [name for name in ("energy", "macs", "params") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise BadInput(f"{self.name()}: {' and '.join(rules)} are both given; one of them chooses the ranks")
        if self.measured and self.macs is None and self.params is None:
            raise BadInput(f"{self.name()}: measured = true needs macs or params, which it spreads")

    def roughly(self) -> "Factorize":
        return replace(self, data="none")

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
        return "its kernel has one position; factorize.svd is for those" if small else ""

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

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """A copy of the model with every layer factored for which that pays; the history has all that it saw."""
        refuse_constrained(model, "swap")
        found, reasons = _suitable(self, model)
        calls = calls_of(model, list(found), task.example_inputs) if found else {}
        reasons |= {name: "it is not called as a layer in a run" for name in found if name not in calls}
        found = {name: found[name] for name in calls}
        chosen, why, lost = _choose(self, model, found, calls, task, run)
        reasons |= why
        for name, reason in reasons.items():
            text = describe(model.get_submodule(name))
            self.note(run, "swap", name, before=text, after=text, note=reason)
        if not chosen:
            raise NoEffect(
                f"{self.name()}: no layer was factored; " + "; ".join(f"{n}: {r}" for n, r in reasons.items())
            )
        chosen = {name: chosen[name] for name in calls if name in chosen}
        return _factored(self, model, chosen, lost, calls, task, run)


def _suitable(method: Factorize, model: nn.Module) -> tuple[dict[str, Layer], dict[str, str]]:
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
    reasons: dict[str, str] = {}
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
            reasons[name] = reason
        else:
            found[name] = layer
    return found, reasons


def _options(method: Factorize, layer: Layer, lost: Sequence[Tensor], calls: Calls, ranks: Tensor) -> Options:
    kernel, dense = kernel_of(layer), [dense_factor(layer)]
    chain = method.chain(layer, ranks.unbind(1))
    summed = sum((tail.cpu()[ranks[:, mode]] for mode, tail in enumerate(lost)), torch.zeros(len(ranks)).double())
    return Options(
        ranks=ranks,
        macs=torch.as_tensor(chain_macs(chain, kernel, calls)),
        params=torch.as_tensor(chain_params(chain, kernel)),
        lost=summed.clamp(max=1),
        dense_macs=int(chain_macs(dense, kernel, calls)),
        dense_params=int(chain_params(dense, kernel)),
    )


def _choose(
    method: Factorize, model: nn.Module, layers: Mapping[str, Layer], calls: Mapping[str, Calls], task: Task, run: Run
) -> tuple[dict[str, Rank], dict[str, str], dict[str, Sequence[Tensor]]]:
    """The ranks of the layers that will be factored, why the others stay, and what a rule saw that each rank loses."""
    ranks = {name: (rank,) if isinstance(rank, int) else tuple(rank) for name, rank in (method.ranks or {}).items()}
    given = by_pattern(layers, ranks, f"{method.name()}: ranks")
    by_noise = method.energy is method.macs is method.params is None
    chosen, why, options = dict[str, Rank](), dict[str, str](), dict[str, Options]()
    seen = dict[str, Sequence[Tensor]]()
    for name in run.progress.bar(layers, label=f"{method.name()}: ranks"):
        layer = layers[name]
        weight = grouped(layer)
        if name in given:
            rank = _checked(method, name, given[name], layer)
        elif by_noise and method.ranks:
            why[name] = "`ranks` does not name it"
            continue
        elif by_noise:
            spectrum = method.spectrum(weight, None, "noise")
            rank, seen[name] = spectrum.noise, spectrum.lost
        else:
            gram = _gram(method, model, name, task, weight)
            seen[name] = lost = method.spectrum(weight, gram, "lost").lost
            grid = rank_grid(tuple(len(tail) - 1 for tail in lost))
            options[name] = _options(method, layer, lost, calls[name], grid[method.possible(layer, grid)])
            continue
        reason = _not_paying(method, layer, rank, calls[name])
        if reason:
            why[name] = reason
        else:
            chosen[name] = rank
    weights = _sensitivities(method, model, layers, options, task, run) if method.measured and options else None
    for name, pick in _picks(method, options, weights).items():
        if pick is None:
            asked = f"that keeps {method.energy} of the energy" if method.energy else "that the budget prefers to it"
            why[name] = f"no rank {asked} takes fewer MACs than its {options[name].dense_macs:,}"
        else:
            chosen[name] = tuple(options[name].ranks[pick].tolist())
    return chosen, why, seen


def _gram(method: Factorize, model: nn.Module, name: str, task: Task, weight: Tensor) -> Tensor | None:
    if method.data == "none":
        return None
    return input_moments(model, [name], task.calibration, method.batches)[name].to(weight.dtype)


@torch.no_grad()
def _sensitivities(
    method: Factorize,
    model: nn.Module,
    layers: Mapping[str, Layer],
    options: Mapping[str, Options],
    task: Task,
    run: Run,
) -> dict[str, float]:
    """By layer, the rise of the loss over the logarithm of the energy that is lost, with this layer alone factored to
    where about PROBE of it is; at least a thousandth of the largest, since one probe is noisy."""
    batches = [place_whole(model, batch) for batch in islice(task.train, method.batches)]
    if not batches:
        raise BadInput(f"{method.name()}: measured = true needs training data; the train loader gave no batch")

    def loss(network: nn.Module) -> float:
        with evaluating(network):
            return sum(float(task.loss(network, batch)) for batch in batches) / len(batches)

    before, found = loss(model), dict[str, float]()
    for name in run.progress.bar(options, label=f"{method.name()}: sensitivity"):
        o, layer, weight = options[name], layers[name], grouped(layers[name])
        one = int((o.lost - PROBE).abs().argmin())
        rank = tuple(o.ranks[one].tolist())
        made = method.build(layer, weight, rank, _gram(method, model, name, task, weight))
        rise = loss(swap(model, {name: made})) - before
        found[name] = max(rise, 0.0) / max(-math.log1p(-min(float(o.lost[one]), 0.999)), 1e-6)
    return {name: max(rate, 1e-3 * max(found.values()), 1e-9) for name, rate in found.items()}


def _picks(
    method: Factorize, options: Mapping[str, Options], weights: Mapping[str, float] | None
) -> dict[str, int | None]:
    """The row of each layer's options that the rule takes."""
    if method.energy is not None:
        return {name: by_energy(o, method.energy) for name, o in options.items()}
    if method.macs is not None and options:
        return by_budget(options, method.macs, "macs", weights)
    return by_budget(options, method.params, "params", weights) if method.params is not None and options else {}


def _checked(method: Factorize, name: str, rank: Rank, layer: Layer) -> Rank:
    largest = method.largest(grouped(layer))
    if len(rank) != len(largest) or not all(1 <= r <= n for r, n in zip(rank, largest)):
        raise BadInput(f"{method.name()}: ranks of {name!r} = {list(rank)} must be from 1 to {list(largest)}")
    if not bool(method.possible(layer, torch.tensor([rank])).all()):
        raise BadInput(f"{method.name()}: ranks of {name!r} = {list(rank)}: no tensor has all of these at once")
    return rank


def _not_paying(method: Factorize, layer: Layer, rank: Rank, calls: Calls) -> str:
    if not all(rank):
        return "EVBMF finds nothing but noise in its spectrum"
    lost = [torch.zeros(r + 1) for r in rank]
    one = _options(method, layer, lost, calls, torch.tensor([rank]))
    if bool(one.paying()):
        return ""
    return (
        f"rank {', '.join(map(str, rank))} would take {int(one.macs):,} MACs and {int(one.params):,} weights; "
        f"the layer takes {one.dense_macs:,} and {one.dense_params:,}"
    )


@torch.no_grad()
def _factored(
    method: Factorize,
    model: nn.Module,
    chosen: Mapping[str, Rank],
    lost: Mapping[str, Sequence[Tensor]],
    calls: Mapping[str, Calls],
    task: Task,
    run: Run,
) -> nn.Module:
    """The swap itself, in the order of the run."""
    changed, chains = model, dict[str, nn.Sequential]()
    for name in run.progress.bar(chosen, label=method.name()):
        layer: Any = model.get_submodule(name)
        weight, gram = grouped(layer), None
        matrix = weight.flatten(2)
        if method.data == "inputs":
            gram = _gram(method, model, name, task, weight)
        elif method.data == "accumulated":
            [(gram, cross)] = moments(changed, model, [name], task.calibration, method.batches).values()
            gram = gram.to(weight.dtype)
            weight = corrected(matrix, gram, cross.to(weight.dtype)).reshape(weight.shape)
        made = method.build(layer, weight, chosen[name], gram)
        chains[name] = with_norms(made) if method.norm else made
        if method.data == "accumulated":
            changed = swap(changed, {name: chains[name]})
        shown: Swapped | None = None
        if run.original is not None:  # a job: it has a report
            tails = lost.get(name) or _tails(method, weight, gram)
            spectra = spectrum_rows(tails, chosen[name], method.modes, singular=method.singular)
            shown = swapped(layer, chains[name], made, weight, gram, spectra)
        factors = [dense_factor(layer)], method.chain(layer, chosen[name])
        macs = [int(chain_macs(chain, kernel_of(layer), calls[name])) for chain in factors]
        method.note(
            run,
            "swap",
            name,
            before=f"{describe(layer)}, {macs[0]:,} MACs",
            after=f"{' + '.join(map(describe, made))}, {macs[1]:,} MACs",
            note=f"rank {', '.join(map(str, chosen[name]))}",
            swapped=shown,
        )
    changed = changed if method.data == "accumulated" else swap(model, chains)
    if method.norm:
        settle(changed, chains, task.calibration, method.batches)
    return changed


def _tails(method: Factorize, weight: Tensor, gram: Tensor | None) -> Sequence[Tensor]:
    """What every rank loses, for a rank that no rule chose; nothing where it would take long to know."""
    if not method.singular or max(method.largest(weight)) > EXACT_SIZE:
        return ()
    return method.spectrum(weight, gram, "lost").lost
