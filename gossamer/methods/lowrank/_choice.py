"""The choice of the ranks of all layers by one rule, and the reasons why layers are left as they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.core.context import Context
from gossamer.core.layer_names import by_pattern
from gossamer.core.placement import evaluating, place_whole
from gossamer.core.task import Task, loss_of
from gossamer.edits.swap import swap
from gossamer.errors import BadInput
from gossamer.methods.lowrank._chain import (
    Calls,
    chain_macs,
    chain_params,
    dense_factor,
    grouped_weight,
    kernel_of,
)
from gossamer.methods.lowrank._grams import Grams
from gossamer.methods.lowrank._ranks import Options, by_budget, by_energy, rank_grid
from gossamer.methods.lowrank._scheme import Rank, Scheme
from gossamer.methods.lowrank._timed import with_times

# The share of a layer's energy that is taken away to measure what that does.
PROBE = 0.2


def _options(method: Scheme, layer: Layer, lost: Sequence[Tensor], calls: Calls, ranks: Tensor) -> Options:
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


@dataclass(frozen=True, kw_only=True)
class Site:
    """The layers that can be factored, and what is known of them.

    Attributes:
        model: the network.
        layers: the layers by name.
        calls: by layer, the sizes of its inputs and outputs in a run.
        grams: second moments of the layers' inputs.
        task: data, for the options that need some.
        context: seed, goal and progress.
    """

    model: nn.Module
    layers: Mapping[str, Layer]
    calls: Mapping[str, Calls]
    grams: Grams
    task: Task
    context: Context


def choose_ranks(method: Scheme, site: Site) -> tuple[dict[str, Rank], dict[str, str], dict[str, Sequence[Tensor]]]:
    """Choose the ranks of all layers.

    Returns:
        The ranks of the layers to factor; the reasons why others are left; and, for layers whose spectrum was computed,
        the fraction of energy that each rank loses.
    """
    ranks = {name: (rank,) if isinstance(rank, int) else tuple(rank) for name, rank in (method.ranks or {}).items()}
    given = by_pattern(site.layers, ranks, f"{method.name()}: ranks")
    by_noise = method.rule is None
    chosen, why, options = dict[str, Rank](), dict[str, str](), dict[str, Options]()
    seen = dict[str, Sequence[Tensor]]()
    for name in site.context.progress.bar(site.layers, label=f"{method.name()}: ranks"):
        layer, calls = site.layers[name], site.calls[name]
        weight = grouped_weight(layer)
        if name in given:
            rank = _checked(method, name, given[name], layer)
        elif by_noise and method.ranks:
            why[name] = "`ranks` does not name it"
            continue
        elif by_noise:
            spectrum = method.spectrum(weight, None, "noise")
            rank, seen[name] = spectrum.noise, spectrum.lost
        else:
            gram = site.grams(name, weight)
            seen[name] = lost = method.spectrum(weight, gram, "lost").lost
            grid = rank_grid(tuple(len(tail) - 1 for tail in lost))
            options[name] = _options(method, layer, lost, calls, grid[method.possible(layer, grid)])
            continue
        reason = _not_paying(method, layer, rank, calls)
        if reason:
            why[name] = reason
        else:
            chosen[name] = rank
    if method.rule == "time":
        options = with_times(site.model, site.layers, options, method.empty, site.task, site.context)
    weights = _sensitivities(method, site, options) if method.measured and options else None
    for name, pick in _picks(method, options, weights).items():
        if pick is None:
            why[name] = _not_taken(method, options[name])
        else:
            chosen[name] = tuple(options[name].ranks[pick].tolist())
    return chosen, why, seen


@torch.no_grad()
def _sensitivities(method: Scheme, site: Site, options: Mapping[str, Options]) -> dict[str, float]:
    """Return by layer how much the loss rises per logarithm of lost energy.

    Each layer alone is factored to where about PROBE of its energy is lost. The result is at least a thousandth of the
    largest, since one probe is noisy.
    """
    model, task = site.model, site.task
    batches = [place_whole(model, batch) for batch in islice(task.train, method.batches)]
    if not batches:
        raise BadInput(f"{method.name()}: measured = true needs training data; the train loader gave no batch")

    def loss(network: nn.Module) -> float:
        with evaluating(network):
            return sum(float(loss_of(task, network, batch)) for batch in batches) / len(batches)

    before, found = loss(model), dict[str, float]()
    for name in site.context.progress.bar(options, label=f"{method.name()}: sensitivity"):
        o, layer, weight = options[name], site.layers[name], grouped_weight(site.layers[name])
        one = int((o.lost - PROBE).abs().argmin())
        rank = tuple(o.ranks[one].tolist())
        made = method.build(layer, weight, rank, site.grams(name, weight))
        rise = loss(swap(model, {name: made})) - before
        found[name] = max(rise, 0.0) / max(-math.log1p(-min(float(o.lost[one]), 0.999)), 1e-6)
    return {name: max(rate, 1e-3 * max(found.values()), 1e-9) for name, rate in found.items()}


def _picks(
    method: Scheme, options: Mapping[str, Options], weights: Mapping[str, float] | None
) -> dict[str, int | None]:
    """Return by layer the row of its options that the rule takes; None where the layer stays."""
    if method.energy is not None:
        return {name: by_energy(o, method.energy) for name, o in options.items()}
    if method.rule is None or not options:
        return {}
    return by_budget(options, getattr(method, method.rule), method.rule, weights)


def _not_taken(method: Scheme, options: Options) -> str:
    if options.time is not None and not bool(options.paying().any()):
        least = float(options.time.min()) / options.dense_time
        return f"the runtime gains too little: at the lightest rank that was timed it takes {least:.2f} times the time"
    if method.energy is None:
        return "the budget is met with this layer as it is"
    return f"no rank that keeps {method.energy} of the energy takes fewer MACs than its {options.dense_macs:,}"


def _checked(method: Scheme, name: str, rank: Rank, layer: Layer) -> Rank:
    largest = method.largest(grouped_weight(layer))
    if len(rank) != len(largest) or not all(1 <= r <= n for r, n in zip(rank, largest)):
        raise BadInput(f"{method.name()}: ranks of {name!r} = {list(rank)} must be from 1 to {list(largest)}")
    if not bool(method.possible(layer, torch.tensor([rank])).all()):
        raise BadInput(f"{method.name()}: ranks of {name!r} = {list(rank)}: no tensor has all of these at once")
    return rank


def _not_paying(method: Scheme, layer: Layer, rank: Rank, calls: Calls) -> str:
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
