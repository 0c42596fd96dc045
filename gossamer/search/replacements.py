"""Cheaper modules for single layers, each next to its layer on the layer's own input: which are worth a thought."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.methods._base import Method
from gossamer.methods._catalogue import catalogue
from gossamer.methods.restructure._rewrite import first_inputs
from gossamer.modules.cost import total_macs
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.failures import FailureGuard

MATTERS = 0.05  # of the network's cost: layers of one shape that have less together are left alone
NARROW = 32  # channels: below, kernels run as fast with as many channels as with fewer
GAINS = 0.9  # of a layer's cost: a module that costs more is no gain
SAMPLES = 2  # of an input, to build modules for it

# What modules cost: for groups of modules, and the input of each group.
Compare = Callable[[Sequence[Sequence[nn.Module]], Sequence[Tensor]], list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """A step that puts a cheaper module in the place of one layer. ratio: its cost over the layer's, measured alone;
    saved: of the network's cost, by that; macs: of the new module."""

    layer: str
    step: Method
    ratio: float
    saved: float
    macs: int


@dataclass(frozen=True, kw_only=True)
class FoundReplacements:
    """swaps: that gain, by layer, the gentlest first. left: why a layer keeps what it has."""

    swaps: dict[str, list[Replacement]]
    left: dict[str, str]


def choices(layer: Any, name: str) -> Iterator[Method]:
    """Steps that may make this one layer cheaper: what the methods themselves propose for it, the gentlest of each
    method first."""
    for method in catalogue().values():
        yield from method.layer_candidates(layer, name)


def layer_kind(layer: Any) -> str:
    """What a layer is, in words."""
    if isinstance(layer, nn.Linear):
        return "linear layer"
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return type(layer).__name__
    size = "x".join(map(str, layer.kernel_size))
    if layer.groups == 1:
        return f"{size} convolution"
    return f"{'depthwise' if layer.groups == layer.in_channels else 'grouped'} {size} convolution"


def unfit(layer: Any) -> str:
    """Why no swap is tried for a layer; "" where some are."""
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return f"{layer_kind(layer)}: no cheaper module is known"
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return f"{layer_kind(layer)}: cheap already"
    if min(layer.weight.shape[:2]) < NARROW:
        return f"narrow: below {NARROW} channels nothing is gained by fewer"
    return ""


def reasons_to_leave(model: nn.Module, costs: Mapping[str, float]) -> dict[str, str]:
    """For every layer with weights: why it is left alone, "" where it is worth a try. costs: of layers, in one unit."""
    modules, total = dict(model.named_modules()), sum(costs.values()) or 1.0
    layers = {n: modules[n] for n in costs if n in modules and getattr(modules[n], "weight", None) is not None}
    layers = {name: layer for name, layer in layers.items() if layer.weight.dim() > 1}
    shares: dict[str, float] = {}
    for name, layer in layers.items():
        shares[repr(layer)] = shares.get(repr(layer), 0.0) + costs[name] / total
    little = {
        name: f"too little to gain: {100 * shares[repr(layer)]:.1f} % of the cost"
        for name, layer in layers.items()
        if shares[repr(layer)] < MATTERS
    }
    return {name: unfit(layer) or little.get(name, "") for name, layer in layers.items()}


def made(layer: nn.Module, x: Tensor, step: Method) -> nn.Module | None:
    """What the step makes of a layer named "layer" alone, fitted as little as it can; None where it refuses."""
    network = nn.Sequential(OrderedDict(layer=copy.deepcopy(layer)))
    task = Task(name="layer", train=[x], validation=[x], test=[x], calibration=[x], example_inputs=(x,))
    try:
        return step.shape_only()(network, task).model.get_submodule("layer").eval()
    except BadInput:
        return None


def compared(
    model: nn.Module,
    names: Sequence[str],
    example_inputs: tuple[Any, ...],
    compare: Compare,
    trials: FailureGuard | None = None,
) -> dict[str, dict[str, list[float]]]:
    """By layer and number of its choice, -1 for the layer itself: cost and multiply-adds. Layers that are alike, on
    inputs that are alike, are measured once. A method that fails on a layer is left out there."""
    trials = trials or FailureGuard(CheckpointStore(None, ""), Silent())
    inputs = first_inputs(model, example_inputs, list(names))
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(f"{model.get_submodule(name)} {tuple(inputs[name].shape[1:])}", []).append(name)
    groups, xs = list[dict[str, nn.Module]](), list[Tensor]()
    for first, *_ in alike.values():
        layer, x = model.get_submodule(first), inputs[first]
        modules = {
            str(n): trials(f"{step.name()} of {first}", f"{first} alone: {step!r}", made, layer, x[:SAMPLES], step)
            for n, step in enumerate(choices(layer, "layer"))
        }
        groups.append({"-1": layer, **{n: module for n, module in modules.items() if module is not None}})
        xs.append(x)
    costs = compare([list(group.values()) for group in groups], xs)
    found = {}
    for same, group, cost, x in zip(alike.values(), groups, costs, xs):
        macs = [total_macs(module, (x[:1],)) for module in group.values()]
        for name in same:
            found[name] = {n: [c, float(m)] for n, c, m in zip(group, cost, macs)}
    return found


Table = Mapping[str, Mapping[str, Sequence[float]]]


def find_swaps(model: nn.Module, costs: Mapping[str, float], table: Table) -> FoundReplacements:
    """The swaps that gain, from what `compared` measured. Of two for one layer the one that costs more must compute
    more, else it is of no use."""
    total = sum(costs.values()) or 1.0
    left = {name: reason for name, reason in reasons_to_leave(model, costs).items() if reason}
    swaps = dict[str, list[Replacement]]()
    for name, row in table.items():
        (before, macs), steps = row["-1"], list(choices(model.get_submodule(name), name))
        measured = []
        for n, (cost, count) in row.items():
            if n != "-1" and count < macs:
                ratio = cost / before
                saved = costs[name] / total * (1 - ratio)
                measured.append(Replacement(layer=name, step=steps[int(n)], ratio=ratio, saved=saved, macs=int(count)))
        gaining: list[Replacement] = []
        for swap in sorted(measured, key=lambda s: (-s.macs, s.ratio)):
            if swap.ratio <= GAINS and (not gaining or swap.ratio < gaining[-1].ratio):
                gaining.append(swap)
        if gaining:
            swaps[name] = gaining
        elif measured:
            best = min(measured, key=lambda s: s.ratio)
            left[name] = f"nothing tried gains: {best.step.name()} costs {best.ratio:.2f} times what the layer does"
        else:
            left[name] = "no method takes it"
    return FoundReplacements(swaps=swaps, left=left)


def together(steps: Iterable[Any]) -> tuple[Method, ...]:
    """The same with one step for each method and its options; rewrites first, as recipes want them."""
    merged: dict[str, Any] = {}
    for step in steps:
        key = repr(replace(step, layers=("*",), **({"ranks": None} if "ranks" in step.options() else {})))
        known = merged.get(key)
        if known is None:
            merged[key] = step
            continue
        changes: dict[str, Any] = {"layers": (*known.layers, *step.layers)}
        if "ranks" in step.options():
            changes["ranks"] = {**known.ranks, **(step.ranks or {})}
        merged[key] = replace(known, **changes)
    return tuple(sorted(merged.values(), key=lambda step: (step.stage, step.name())))
