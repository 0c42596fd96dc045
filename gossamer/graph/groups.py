"""Which channels are coupled: what must be cut together, what can be cut, and why not where not."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.constraints.base import refuse_constrained
from gossamer.errors import BadInput, unknown
from gossamer.graph.channel_index import (
    Choose,
    CouplingGraph,
    Shape,
    Slots,
    Value,
    distinct,
    last,
)
from gossamer.graph.coupling import CoupledUnits, Mask, find_units
from gossamer.graph.rules import Propagation, propagate
from gossamer.graph.tracer import Op, Trace, trace


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that are cut by one count.

    name: the first layer that produces them. size: how many units can be cut one by one; a unit is everything that
    goes together. step: a count to keep is a multiple of it (more constraints may round further). members: the
    parameter dimensions that shrink, as (name, dimension). reason: why it cannot be cut, or None.
    """

    name: str
    size: int
    members: tuple[tuple[str, int], ...]
    layers: tuple[str, ...]
    step: int = 1
    reason: str | None = None


@dataclass
class ChannelGroups:
    """What find_channels knows of a network. groups: those that can be cut first, then those that cannot."""

    model: nn.Module
    example_inputs: Any
    graph: CouplingGraph
    units: CoupledUnits
    walks: dict[bool, Propagation]
    groups: list[Group]
    notes: list[str] = field(default_factory=list)
    training_inputs: Any = None
    fitter: Any = None  # what earlier cuts have found out, see fit.py

    def inputs(self, training: bool) -> Any:
        """The example inputs; for a run in training mode perhaps a larger batch."""
        return self.training_inputs if training else self.example_inputs

    def cuttable(self) -> list[Group]:
        """The groups that can be cut."""
        return [group for group in self.groups if group.reason is None]

    def index(self, name: str) -> int:
        """Number of the group of this name."""
        for i, group in enumerate(self.groups):
            if group.name == name:
                if group.reason is not None:
                    raise BadInput(f"group {name!r} cannot be cut: {group.reason}")
                return i
        raise unknown("group", name, [group.name for group in self.cuttable()], listed="`gossamer analyze`")

    def unit_scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Element-wise scores, by parameter name, summed over everything that a unit cuts; shape (units,) by group."""
        total = np.zeros(len(self.units.group_of) + 1)
        for name, score in scores.items():
            value = self.graph.parameters.get(name)
            if value is None:
                continue
            array = score.detach().float()
            for t in value.layers.values():
                units = self.units.of_slot[t].ravel()
                if (units >= 0).any():
                    rest = [d for d in range(array.ndim) if t.shape[d] == 1]
                    sums = (array.sum(rest) if rest else array).double().cpu().numpy().ravel()
                    total += np.bincount(units + 1, weights=sums, minlength=len(total))  # the first place is no unit's
        result = {}
        for i, group in enumerate(self.cuttable()):
            result[group.name] = torch.from_numpy(total[1:][self.units.group_of == i])
        return result

    def select(self, counts: Mapping[str, Slots], scores: Mapping[str, Tensor], held: Mask) -> Mask:
        """Which units stay, shape (units,): in each cell of a group the given count of those with the largest scores;
        those that are held first."""
        keep = np.ones(len(self.units.group_of), dtype=np.bool_)
        for name, per_cell in counts.items():
            i = self.index(name)
            if name not in scores:
                raise BadInput(f"no scores for group {name!r}")
            values = np.zeros(len(keep))
            values[self.units.group_of == i] = scores[name].detach().cpu().double().numpy()
            values[held] = np.inf
            for members, count in zip(self.units.cells[i].members, per_cell.tolist()):
                order = np.argsort(-values[members], kind="stable")
                keep[members[order[count:]]] = False
        return keep

    def slot_mask(self, keep: Mask) -> Mask:
        """Which slots stay, shape (slots,)."""
        return np.append(keep, True)[self.units.of_slot]


def _kernel_free(model: nn.Module, traces: list[Trace]) -> dict[str, int]:
    """Convolution weights by name, with their groups: dimensions after the second are no channels."""
    found: dict[str, int] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and id(module.weight) in names:
            found[names[id(module.weight)]] = module.groups
    for t in traces:
        for op in t.ops:
            if op.name in ("aten.convolution", "aten._convolution") and op.args[1].index in t.names:
                found[t.names[op.args[1].index]] = op.arg("groups", 1)
    return found


def _number_slots(graph: CouplingGraph, model: nn.Module, kernels: Mapping[str, int]) -> list[tuple[str, int]]:
    """Give every dimension of every floating point parameter and buffer its slots; the list of (name, dimension)."""
    kinds: list[tuple[str, int]] = []
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in seen or not tensor.is_floating_point() or isinstance(tensor, nn.UninitializedParameter):
            continue
        seen.add(id(tensor))
        shape: Shape = tuple(tensor.shape)
        layers = {}
        for d in range(min(len(shape), 2) if name in kernels else len(shape)):
            if shape[d] < 2:
                continue
            groups = kernels.get(name, 1) if d == 1 else 1
            slots = graph.fresh(shape[d] * groups)
            kinds.append((name, d))
            if groups > 1:  # every group of a grouped convolution has its own
                t = np.repeat(slots.reshape(groups, shape[d]), shape[0] // groups, axis=0)
                layers[d] = t.reshape(*t.shape, *[1] * (len(shape) - 2))
            else:
                layers[d] = slots.reshape([-1 if i == d else 1 for i in range(len(shape))])
        graph.parameters[name] = Value(layers)
    return kinds


def _head_split(model: nn.Module) -> Any:
    """Which part of a split shrinks when whole heads are cut: the one that the module counts as heads."""
    modules = dict(model.named_modules())

    def choose(op: Op) -> Choose:
        module = modules.get(op.modules[-1]) if op.modules else model
        counts = {
            value
            for key, value in vars(module).items()
            if "head" in key and "dim" not in key and isinstance(value, int) and value > 1
        }

        def of_split(dims: Any, shape: Shape) -> int:
            heads = [d for d in dims if any(shape[d] % n == 0 and shape[d] // n in (1, 2, 3, 4, 8) for n in counts)]
            exact = [d for d in dims if shape[d] in counts and d != dims[-1]]
            if exact:
                return exact[-1]  # type: ignore[no-any-return]
            return heads[0] if len(dims) == 2 and heads[:1] == [dims[0]] else last(dims, shape)

        return of_split

    return choose


def _unused(model: nn.Module, t: Trace) -> list[str]:
    used = set(t.names.values())
    return [name for name, p in model.named_parameters() if name not in used]


def _training_trace(model: nn.Module, example_inputs: Any) -> tuple[Trace, Any] | None:
    """A run in training mode; with the batch twice if batch norm refuses a batch of one."""
    doubled = tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim > 0 else t, example_inputs)
    for inputs in (example_inputs, doubled):
        with contextlib.suppress(BadInput):
            return trace(model, inputs, training=True), inputs
    return None


def find_groups(model: nn.Module, example_inputs: Any, *, heads: bool = False) -> ChannelGroups:
    """Trace a run of the model and group its channels. Nothing of the model changes.

    heads: where channels are split into heads, cut whole heads instead of dimensions of every head. Parameters that
    only a run in training mode uses (auxiliary heads) follow; parameters that no run uses stay.
    """
    refuse_constrained(model, "resize")
    traces = {False: trace(model, example_inputs)}
    notes = []
    unused = _unused(model, traces[False])
    training_inputs = None
    if unused:
        training = _training_trace(model, example_inputs)
        if training is not None:
            traces[True], training_inputs = training
            unused = [name for name in unused if name in _unused(model, traces[True])]
        if unused:
            notes.append(f"no run uses {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}: left as is")
    graph = CouplingGraph()
    kinds = _number_slots(graph, model, _kernel_free(model, list(traces.values())))
    choose = _head_split(model) if heads else lambda op: last
    walks = {key: propagate(graph, t, choose) for key, t in traces.items()}
    units, groups = group(graph, kinds, walks)
    return ChannelGroups(model, example_inputs, graph, units, walks, groups, notes, training_inputs)


def group(
    graph: CouplingGraph, kinds: list[tuple[str, int]], walks: dict[bool, Propagation]
) -> tuple[CoupledUnits, list[Group]]:
    """Units and groups from the facts so far."""
    kind_of_slot = np.zeros(graph.size, dtype=np.int64)
    owner: list[str] = [""] + [name for name, _ in kinds]
    for k, (name, d) in enumerate(kinds, 1):
        kind_of_slot[graph.parameters[name].layers[d].ravel()] = k
    units = find_units(graph, kind_of_slot)
    groups: list[Group] = []
    taken: dict[str, int] = {}
    for i, ((_, slot), slots, reason) in enumerate(zip(units.first, units.slots, units.reasons)):
        member_kinds = distinct(kind_of_slot[slots])
        members = tuple(kinds[k - 1] for k in member_kinds.tolist() if k > 0)
        name = layer_of(owner[kind_of_slot[slot]])
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        cells = units.cells[i] if reason is None else None
        made = int((kind_of_slot[slots] == kind_of_slot[slot]).sum())  # what is fixed is not counted in its bias again
        size = int(cells.sizes.sum()) if cells is not None else made
        step = size // cells.parts if cells is not None and cells.rows else 1
        layers = tuple(dict.fromkeys(layer_of(member) for member, _ in members))
        groups.append(Group(name=name, size=size, members=members, layers=layers, step=step, reason=reason))
    return units, groups


def layer_of(parameter: str) -> str:
    """The module that owns a parameter; the parameter itself if that is the network."""
    return parameter.rpartition(".")[0] or parameter
