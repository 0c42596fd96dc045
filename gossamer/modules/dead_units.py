"""Dead units: coupled channels without any input or without any output left, and their removal.

A coupled channel is *unused* when all weights that read it are zero: removing it changes nothing. It is *unfed* when
all weights that produce it are zero: its value is a constant, which is folded into the biases of the layers that read
it, where that is exact; then it is unused. A removal may leave other channels unused or unfed, so all is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.constraints.apply import materialize
from gossamer.graph.groups import ChannelGroups, find_groups, layer_of
from gossamer.graph.isolation import mode
from gossamer.graph.proof import relative_difference
from gossamer.graph.pruner import prune
from gossamer.graph.slicing import PruningPlan
from gossamer.graph.tracer import output_tensors, own_arguments

Flags = NDArray[np.bool_]
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """A smaller copy.

    Args:
        model: the copy.
        cuts: in the order in which they were done.
        widths: coupled channels before and after, by group.
        folded: number of constants that went into biases.
        max_relative: largest difference of an output over its largest absolute value.
    """

    model: nn.Module
    cuts: tuple[PruningPlan, ...]
    widths: Mapping[str, tuple[int, int]]
    folded: int
    max_relative: float


@dataclass(frozen=True, kw_only=True)
class Liveness:
    """Facts about every coupled channel, bool arrays of shape (coupled channels,).

    Args:
        fed: whether a weight that is not zero produces it.
        used: whether a weight that is not zero reads it.
        read: whether some layer reads it at all.
        known: whether only linear layers and convolutions (and what has one dimension) are involved.
    """

    fed: Flags
    used: Flags
    read: Flags
    known: Flags


def remove_dead(model: nn.Module, example_inputs: Any) -> Cleared:
    """Remove what is unused or unfed from a plain network; its outputs on the example inputs stay what they were, up to
    rounding. The model itself is left alone. Nothing to remove: a copy, and no cuts."""
    current, cuts, folded = materialize(model), list[PruningPlan](), 0
    widths: dict[str, tuple[int, int]] = {}
    while True:
        found = find_groups(current, example_inputs)
        folded += _fold(found)
        step = _cut(found)
        if step is None:
            break
        current, cut = step
        cuts.append(cut)
        for name, (before, after) in cut.widths.items():
            widths[name] = (widths.get(name, (before, after))[0], after)
    return Cleared(
        model=current,
        cuts=tuple(cuts),
        widths={name: pair for name, pair in widths.items() if pair[1] < pair[0]},
        folded=folded,
        max_relative=_difference(model, current, example_inputs),
    )


def liveness(found: ChannelGroups) -> Liveness:
    """Which coupled channels the weights of the network produce and read."""
    count = len(found.coupled.group_of) + 1  # the last place is for -1: indices of no coupled channel
    fed, used, read, unknown = (np.zeros(count, dtype=np.bool_) for _ in range(4))
    roles = output_dimensions(found.model)
    for name, p in found.model.named_parameters():
        value = found.graph.parameters.get(name)
        if value is None or p.ndim < 2:
            continue
        for d, indices in value.axes.items():
            channels = found.coupled.of_index[indices.ravel()]
            rest = [k for k in range(p.ndim) if k >= indices.ndim or indices.shape[k] == 1]
            alive = (
                (p.detach() != 0).any(rest).cpu().numpy().ravel() if rest else (p.detach() != 0).cpu().numpy().ravel()
            )
            if name not in roles:
                unknown[channels] = True
            elif d == roles[name]:
                np.logical_or.at(fed, channels, alive)
            else:
                np.logical_or.at(used, channels, alive)
                read[channels] = True
    return Liveness(fed=fed[:-1], used=used[:-1], read=read[:-1], known=~unknown[:-1])


def output_dimensions(model: nn.Module) -> dict[str, int]:
    """The dimension of outputs of the weights of linear layers and convolutions that belong to one layer only."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None:
                owners.setdefault(id(p), []).append((f"{name}.{key}".removeprefix("."), module))
    roles = {}
    for [(name, module), *others] in owners.values():
        fits = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name.endswith("weight")
        if fits and not others:
            roles[name] = 1 if getattr(module, "transposed", False) else 0
    return roles


@torch.no_grad()
def _fold(found: ChannelGroups) -> int:
    """Fold the constants of unfed channels into the layers that read them, in place; how many."""
    live = liveness(found)
    unfed = np.flatnonzero(live.known & live.read & live.used & ~live.fed)
    if not len(unfed):
        return 0
    readers = _readers(found)
    inputs = _ranges(found, readers)
    folded = 0
    for channel in unfed.tolist():
        plan = []
        for name, columns in readers.items():
            at = np.flatnonzero(columns == channel)
            if len(at):
                plan.append((name, at, inputs.get(name)))
        if plan and all(_exact(found.model, name, at, seen) for name, at, seen in plan):
            for name, at, seen in plan:
                layer: Any = found.model.get_submodule(name)
                part = layer.weight[:, at]
                if seen is not None and bool(seen[0][at].any()):
                    layer.bias += (part.flatten(2).sum(2) if part.ndim > 2 else part) @ seen[0][at]
                layer.weight[:, at] = 0.0
            folded += 1
    return folded


def _readers(found: ChannelGroups) -> dict[str, NDArray[np.int64]]:
    """The coupled channel of every input column (-1: none), by name of the layers without groups that read some."""
    readers = {}
    for name, role in output_dimensions(found.model).items():
        axes = found.graph.parameters[name].axes if name in found.graph.parameters else {}
        owner = name.rpartition(".")[0]
        if role == 0 and 1 in axes:
            grouped = getattr(found.model.get_submodule(owner), "groups", 1) > 1
            columns = found.coupled.of_index[axes[1].ravel()]
            readers[owner] = np.full(len(columns), -1) if grouped else columns
    return readers


def _ranges(found: ChannelGroups, readers: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest value of every input column of these layers, over the example inputs as they are and under
    noise."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note_range(name: str, layer: nn.Module, x: Tensor) -> None:
        columns = x.flatten(0, -2) if isinstance(layer, nn.Linear) else x.transpose(0, 1).flatten(1).T
        low, high = columns.amin(0), columns.amax(0)
        if name in seen:
            low, high = torch.minimum(low, seen[name][0]), torch.maximum(high, seen[name][1])
        seen[name] = low, high

    hooks = []
    for name, layer in found.model.named_modules():
        if name in readers:
            hooks.append(
                layer.register_forward_pre_hook(lambda layer, args, name=name: note_range(name, layer, args[0]))
            )
    try:
        for inputs in (found.example_inputs, _noisy(found.example_inputs)):
            _run(found.model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _noisy(inputs: Any) -> Any:
    draw = torch.Generator().manual_seed(0)

    def add(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=draw).to(x) if x.is_floating_point() else x

    return tree_map_only(Tensor, add, inputs)


def _exact(model: nn.Module, name: str, at: Any, seen: tuple[Tensor, Tensor] | None) -> bool:
    """Whether the columns are constant, and the constant can go into the layer's bias: not where zeros are padded."""
    if seen is None or not torch.equal(seen[0][at], seen[1][at]):
        return False
    layer: Any = model.get_submodule(name)
    if not bool(seen[0][at].any()):
        return True
    padded = getattr(layer, "padding_mode", "zeros") == "zeros" and _pads(getattr(layer, "padding", 0))
    return layer.bias is not None and not padded


def _pads(padding: Any) -> bool:
    return padding != "valid" if isinstance(padding, str) else bool(np.any(padding))


def _cut(found: ChannelGroups) -> tuple[nn.Module, PruningPlan] | None:
    """Remove unused channels; None if there are none, or none whose removal leaves the outputs as they are."""
    live = liveness(found)
    dead = live.known & live.read & ~live.used
    groups = [(i, g) for i, g in enumerate(found.prunable()) if dead[found.coupled.group_of == i].any()]
    whole = _try(found, dead, groups)
    if whole is not None or len(groups) < 2:
        return whole
    return next((step for one in groups if (step := _try(found, dead, [one])) is not None), None)


def _try(found: ChannelGroups, dead: Flags, groups: list[Any]) -> tuple[nn.Module, PruningPlan] | None:
    fractions, scores = {}, {}
    for i, group in groups:
        gone = dead[found.coupled.group_of == i]
        if gone.all():
            gone[0] = False  # a layer must keep one
        if gone.any():
            fractions[group.name] = 1 - gone.sum() / len(gone)
            scores[group.name] = torch.from_numpy(1.0 - gone)
    if not fractions:
        return None
    pruned = prune(found, fractions, scores)
    if not any(after < before for before, after in pruned.plan.widths.values()):
        return None
    if _difference(found.model, pruned.model, found.example_inputs) > TOLERANCE or _removed_alive(
        found, pruned.plan, dead
    ):
        return None
    return pruned.model, pruned.plan


def _removed_alive(found: ChannelGroups, cut: PruningPlan, dead: Flags) -> bool:
    """Whether rounding to what the network needs took a channel that is not dead."""
    kept = np.zeros(len(dead) + 1, dtype=np.bool_)
    touched = np.zeros(len(dead) + 1, dtype=np.bool_)
    for name, dims in cut.kept.items():
        for d, positions in dims.items():
            indices = found.graph.parameters[name].axes[d]
            touched[found.coupled.of_index[indices.ravel()]] = True
            if positions and not isinstance(positions[0], list) and indices.size == indices.shape[d]:
                kept[found.coupled.of_index[indices.ravel()[positions]]] = True
    return bool((touched & ~kept)[:-1][~dead].any())


def _run(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = own_arguments(inputs)
    with torch.no_grad(), mode(model, False):
        return [t for t in output_tensors(model(*args, **kwargs)) if isinstance(t, Tensor)]


def _difference(first: nn.Module, second: nn.Module, inputs: Any) -> float:
    pairs = [(b, a) for x in (inputs, _noisy(inputs)) for a, b in zip(_run(first, x), _run(second, x))]
    return max((relative_difference(b, a) for b, a in pairs), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """Coupled channels that are each one row of a linear layer and one column of another, and nothing else.

    Args:
        maker: the first layer.
        reader: the second layer.
        rows: of the first layer's weight, shape (neurons,).
        columns: of the second layer's weight, shape (neurons,).
        homogeneous: twice the row and bias give exactly twice the value in the column, as behind a ReLU.
    """

    maker: str
    reader: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    homogeneous: bool


def find_neurons(model: nn.Module, example_inputs: Any) -> list[Neurons]:
    """The neurons of every linear layer that go through elementwise operations to one other linear layer."""
    found = find_groups(model, example_inputs)
    cuttable = {i for i, _ in enumerate(found.prunable())}
    places: dict[int, list[tuple[str, int, int]]] = {}  # of a channel: parameter, dimension, index
    for name, value in found.graph.parameters.items():
        for d, indices in value.axes.items():
            for index, channel in enumerate(found.coupled.of_index[indices.ravel()].tolist()):
                if channel >= 0 and found.coupled.group_of[channel] in cuttable:
                    places.setdefault(channel, []).append((name, d, index))
    roles, pairs = output_dimensions(model), dict[tuple[str, str], list[tuple[int, int]]]()
    for where in places.values():
        produced = [(layer_of(n), i) for n, d, i in where if d == 0 and roles.get(n) == 0 and _linear(model, n)]
        read = [(layer_of(n), i) for n, d, i in where if d == 1 and roles.get(n) == 0 and _linear(model, n)]
        rest = [n for n, d, _ in where if n not in roles]
        if (
            len(produced) == len(read) == 1
            and all(n == f"{produced[0][0]}.bias" for n in rest)
            and len(where) == 2 + len(rest)
        ):
            pairs.setdefault((produced[0][0], read[0][0]), []).append((produced[0][1], read[0][1]))
    return [
        Neurons(
            maker=maker,
            reader=reader,
            rows=np.array([row for row, _ in both]),
            columns=np.array([column for _, column in both]),
            homogeneous=_homogeneous(model, maker, reader, example_inputs),
        )
        for (maker, reader), both in pairs.items()
    ]


def _linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(layer_of(name)), nn.Linear)


@torch.no_grad()
def _homogeneous(model: nn.Module, maker: str, reader: str, example_inputs: Any) -> bool:
    """Whether twice what goes out of the one layer is exactly twice what comes into the other."""
    seen: list[Tensor] = []
    hooks = [model.get_submodule(reader).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))]
    _run(model, example_inputs)
    hooks.append(model.get_submodule(maker).register_forward_hook(lambda *call: 2 * call[-1]))
    _run(model, example_inputs)
    for hook in hooks:
        hook.remove()
    half = len(seen) // 2
    return half > 0 and all(torch.equal(2 * a, b) for a, b in zip(seen[:half], seen[half:]))
