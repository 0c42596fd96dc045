"""Which channels are coupled: what must be removed together, what can be removed, and why not where not."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.conditions import own_conditions
from gossamer.core.copies import check_network
from gossamer.core.kinds import checked_arguments
from gossamer.errors import BadInput, unknown
from gossamer.graph.channel_index import Choose, CouplingGraph, IndexedValue, Indices, Shape, distinct, last
from gossamer.graph.coupling import CoupledChannels, Mask, find_coupled_channels
from gossamer.graph.propagation import Propagations
from gossamer.graph.rules import propagate
from gossamer.graph.slicing import convolution_weights
from gossamer.graph.tracer import Op, Trace, tensor_names, trace

if TYPE_CHECKING:
    from gossamer.graph.solver import CutSolver


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that are pruned by one count.

    Args:
        name: the first layer that produces them.
        size: the number of coupled channels, which can be removed one by one.
        members: the parameter dimensions that shrink, as (name, dimension).
        layers: the layers that own these parameters.
        step: a count to keep is a multiple of it; more constraints may round further.
        reason: why it cannot be pruned, None where it can.

    Example:
        >>> import torch, gossamer
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> group = gossamer.graph.find_groups(net, torch.ones(1, 8)).prunable()[0]
        >>> group.name, group.size, group.members
        ('0', 4, (('0.weight', 0), ('0.bias', 0), ('2.weight', 1)))
    """

    name: str
    size: int
    members: tuple[tuple[str, int], ...]
    layers: tuple[str, ...]
    step: int = 1
    reason: str | None = None


@dataclass
class ChannelGroups:
    """What `find_groups` knows of a network.

    Args:
        model: the network, which is only read.
        example_inputs: what it was traced on.
        graph: all facts about its channel indices.
        coupled: the coupled channels that follow from them.
        propagations: the traced runs with the channel indices of all their tensors.
        groups: those that can be pruned first, then those that cannot.
        notes: what a user should know about the result.
        training_inputs: what it was traced on in training mode, if it was.
        solver: what earlier prunings have learned about this network; later ones are cheap because of it.

    Example:
        >>> import torch, gossamer
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> groups = gossamer.graph.find_groups(net, torch.ones(1, 8))
        >>> [group.name for group in groups.prunable()], len(groups.groups)
        (['0'], 2)
        >>> groups.channel_scores({"0.weight": torch.ones(4, 8)})["0"]
        tensor([8., 8., 8., 8.], dtype=torch.float64)
    """

    model: nn.Module
    example_inputs: Any
    graph: CouplingGraph
    coupled: CoupledChannels
    propagations: Propagations
    groups: list[Group]
    notes: list[str] = field(default_factory=list)
    training_inputs: Any = None
    solver: "CutSolver | None" = None

    def inputs(self, training: bool) -> Any:
        """The example inputs; for a run in training mode perhaps a larger batch."""
        return self.training_inputs if training else self.example_inputs

    def prunable(self) -> list[Group]:
        """The groups that can be pruned."""
        return [group for group in self.groups if group.reason is None]

    def index(self, name: str) -> int:
        """Number of the group of this name. Raises BadInput if it is unknown or cannot be pruned."""
        for i, group in enumerate(self.groups):
            if group.name == name:
                if group.reason is not None:
                    raise BadInput(f"group {name!r} cannot be pruned: {group.reason}")
                return i
        raise unknown("group", name, [group.name for group in self.prunable()], listed="`gossamer analyze`")

    def channel_scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum element-wise scores over everything that is removed with each coupled channel.

        Args:
            scores: one score for each element, by parameter name.

        Returns:
            Scores by group name, float64, shape (group size,).
        """
        total = np.zeros(len(self.coupled.group_of) + 1)  # the first place is for what always stays
        for name, score in scores.items():
            value = self.graph.parameters.get(name)
            if value is None:
                continue
            array = (score.detach().abs() if score.is_complex() else score.detach()).float()
            for indices in value.axes.values():
                channels = self.coupled.of_index[indices].ravel()
                if (channels >= 0).any():
                    # Sum over all dimensions along which the indices do not vary, then over equal indices (`bincount`).
                    rest = [d for d in range(array.ndim) if indices.shape[d] == 1]
                    sums = (array.sum(rest) if rest else array).double().cpu().numpy().ravel()
                    total += np.bincount(channels + 1, weights=sums, minlength=len(total))
        result = {}
        for i, group in enumerate(self.prunable()):
            result[group.name] = torch.from_numpy(total[1:][self.coupled.group_of == i])
        return result

    def select(self, counts: Mapping[str, Indices], scores: Mapping[str, Tensor], required: Mask) -> Mask:
        """Choose which coupled channels stay: of each equivalence class those with the largest scores.

        Args:
            counts: how many stay of each class, by group name; other groups stay whole.
            scores: shape (group size,), by group name.
            required: coupled channels that must stay, shape (coupled channels,).

        Returns:
            True where a coupled channel stays, shape (coupled channels,).
        """
        keep = np.ones(len(self.coupled.group_of), dtype=np.bool_)
        for name, per_class in counts.items():
            i = self.index(name)
            if name not in scores:
                raise BadInput(f"no scores for group {name!r}")
            values = np.zeros(len(keep))
            values[self.coupled.group_of == i] = scores[name].detach().cpu().double().numpy()
            # Infinite scores: what must stay is always among the largest.
            values[required] = np.inf
            for members, count in zip(self.coupled.classes[i].members, per_class.tolist()):
                order = np.argsort(-values[members], kind="stable")  # of equal scores the first stay
                keep[members[order[count:]]] = False
        return keep

    def index_mask(self, keep: Mask) -> Mask:
        """Which channel indices stay, shape (channel indices,), if these coupled channels do."""
        # The appended True is where -1 points: an index without a coupled channel stays.
        return np.append(keep, True)[self.coupled.of_index]


def _convolution_weights(model: nn.Module, traces: list[Trace]) -> dict[str, int]:
    """Convolution weights by name, with their groups: dimensions after the second are no channels."""
    found: dict[str, int] = {}
    names = tensor_names(model)
    for tensor, groups in convolution_weights(model):
        found[names[id(tensor)]] = groups
    for t in traces:
        for op in t.ops:
            if op.name in ("aten.convolution", "aten._convolution") and op.args[1].index in t.names:
                found[t.names[op.args[1].index]] = op.arg("groups", 1)
    return found


def _number_indices(graph: CouplingGraph, model: nn.Module, kernels: Mapping[str, int]) -> list[tuple[str, int]]:
    """Number the channel indices of all parameters and buffers that hold real or complex numbers; the list of (name,
    dimension)."""
    dimensions: list[tuple[str, int]] = []
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if not (tensor.is_floating_point() or tensor.is_complex()):
            graph.parameters[name] = IndexedValue(lost=f"{name} holds {str(tensor.dtype).removeprefix('torch.')}")
            continue
        shape: Shape = tuple(tensor.shape)
        axes = {}
        for d in range(min(len(shape), 2) if name in kernels else len(shape)):
            if shape[d] < 2:
                continue
            groups = kernels.get(name, 1) if d == 1 else 1
            indices = graph.new_indices(shape[d] * groups)
            dimensions.append((name, d))
            if groups > 1:  # position i of a grouped weight is another input channel in every group: it has its own
                by_row = np.repeat(indices.reshape(groups, shape[d]), shape[0] // groups, axis=0)
                axes[d] = by_row.reshape(*by_row.shape, *[1] * (len(shape) - 2))
            else:
                axes[d] = indices.reshape([-1 if i == d else 1 for i in range(len(shape))])
        graph.parameters[name] = IndexedValue(axes)
    return dimensions


def _fix_compiled(graph: CouplingGraph, model: nn.Module) -> None:
    """TorchScript has its sizes in its code, and its modules cannot be copied with other tensors."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for key, _ in module.named_parameters(name, recurse=False):
                why = f"{name or 'the network'} is compiled by TorchScript: prune the module that it was made from"
                for indices in graph.parameters.get(key, IndexedValue()).axes.values():
                    graph.fix(indices, why)


def _head_split(model: nn.Module) -> Any:
    """Which part of a split shrinks when whole heads are pruned: the one that the module counts as heads."""
    modules = dict(model.named_modules())

    def choose(op: Op) -> Choose:
        module = modules.get(op.modules[-1]) if op.modules else model
        # By names of attributes: `num_heads`, `n_head`, `heads` count heads; `head_dim` does not.
        counts = {
            value
            for key, value in vars(module).items()
            if "head" in key and "dim" not in key and isinstance(value, int) and value > 1
        }

        def of_split(dims: Any, shape: Shape) -> int:
            # One dimension may count several things for each head: 3 x heads where queries, keys and values are packed.
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
    """A run in training mode, and its inputs: the batch twice if batch norm refuses a batch of one."""
    # Batch norm in training mode refuses one value per channel, which a batch of one may give.
    doubled = tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim > 0 else t, example_inputs)
    for inputs in (example_inputs, doubled):
        with contextlib.suppress(BadInput):
            return trace(model, inputs, training=True), inputs
    return None


@checked_arguments
@own_conditions()
def find_groups(model: nn.Module, example_inputs: Any, *, heads: bool = False) -> ChannelGroups:
    """Trace a run of a network and group its coupled channels. Nothing of the network changes.

    Parameters that only a run in training mode uses (auxiliary heads) are pruned too. Parameters that no run uses stay
    as they are, and a note says so.

    Args:
        model: any network that runs, without constraints.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        heads: where channels are split into heads, prune whole heads instead of dimensions of every head.

    Returns:
        The groups, with everything that pruning needs.

    Raises:
        BadInput: if the network is constrained, rejects the example inputs, or gives no tensor.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group.name, group.size) for group in find_groups(model, torch.zeros(1, 4)).prunable()]
        [('0', 8)]
    """
    check_network(model)
    refuse_constrained(model, "resize")
    run = trace(model, example_inputs)
    training_run, training_inputs = None, None
    notes = []
    if not run.outputs:
        raise BadInput(
            f"{type(model).__name__} gives no tensor; what it gives must be tensors, or tuples, lists, dicts or "
            "objects that hold some (no generator)"
        )
    # Training mode costs a second trace, so it is tried only where eval mode leaves parameters out.
    unused = _unused(model, run)
    if unused:
        training = _training_trace(model, example_inputs)
        if training is not None:
            training_run, training_inputs = training
            unused = [name for name in unused if name in _unused(model, training_run)]
        if unused:
            notes.append(f"no run uses {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}: left as is")
    graph = CouplingGraph()
    runs = [run] if training_run is None else [run, training_run]
    dimensions = _number_indices(graph, model, _convolution_weights(model, runs))
    _fix_compiled(graph, model)
    choose: Callable[[Op], Choose] = _head_split(model) if heads else lambda op: last
    # Both runs state their facts about the same channel indices of the same parameters.
    propagations = Propagations(*(propagate(graph, one, choose) for one in runs))
    notes += dict.fromkeys(why for _, run in propagations.runs() for why in run.failures)
    coupled, groups = group(graph, dimensions)
    return ChannelGroups(model, example_inputs, graph, coupled, propagations, groups, notes, training_inputs)


def group(graph: CouplingGraph, dimensions: list[tuple[str, int]]) -> tuple[CoupledChannels, list[Group]]:
    """The coupled channels and the groups that follow from the facts so far.

    Args:
        graph: the facts.
        dimensions: every parameter dimension that has channel indices, as (name, dimension).
    """
    # Numbered from 1: 0 is for indices of no parameter (the border of a padding).
    dimension_of_index = np.zeros(graph.size, dtype=np.int64)
    owner: list[str] = [""] + [name for name, _ in dimensions]
    for k, (name, d) in enumerate(dimensions, 1):
        dimension_of_index[graph.parameters[name].axes[d].ravel()] = k
    coupled = find_coupled_channels(graph, dimension_of_index)
    groups: list[Group] = []
    taken: dict[str, int] = {}
    for i, ((_, first_index), indices, reason) in enumerate(zip(coupled.first, coupled.indices, coupled.reasons)):
        numbers = distinct(dimension_of_index[indices])
        members = tuple(dimensions[k - 1] for k in numbers.tolist() if k > 0)
        name = layer_of(owner[dimension_of_index[first_index]])
        # One layer can produce several groups (queries and values of a packed projection): name#2, name#3.
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        if reason is None:
            classes = coupled.classes[i]
            size = int(classes.sizes.sum())
            # With constraints the group keeps j / divisor of itself, so its counts are multiples of size / divisor.
            step = size // classes.divisor if classes.equal_counts else 1
        else:  # counted in the weight that produces them; their bias has the same channels again
            size, step = int((dimension_of_index[indices] == dimension_of_index[first_index]).sum()), 1
        layers = tuple(dict.fromkeys(layer_of(member) for member, _ in members))
        groups.append(Group(name=name, size=size, members=members, layers=layers, step=step, reason=reason))
    return coupled, groups


def layer_of(parameter: str) -> str:
    """The module that owns a parameter; the parameter itself if that is the network."""
    return parameter.rpartition(".")[0] or parameter
