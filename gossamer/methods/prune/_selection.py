"""What the methods share that choose channels by what the layers behind can do without, on a few samples."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.channel_selection import GramSystem, refit
from gossamer.calibration.inputs import Layer
from gossamer.calibration.weight_reconstruction import DAMPENING, layer_system, layers_of, owners
from gossamer.constraints.apply import materialize, refuse_constrained
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect, unknown
from gossamer.graph.tracer import trace
from gossamer.methods._base import Method, Needs
from gossamer.modules.cost import total_macs
from gossamer.modules.dead_units import remove_dead
from gossamer.modules.element_groups import ElementGroups, channel_groups
from gossamer.modules.group_cost import GroupCost, group_cost
from gossamer.modules.shortcuts import Shortcut, shortcut_errors
from gossamer.train.batches import Replayed

HALVINGS = 40  # of the interval in which the share to remove is looked for
Places = dict[str, Tensor]  # the channel of each input of a layer, by the layer's name; -1 for none


class Between:
    """What is done to the network between the choice of a layer's inputs and the fit of its weights: nothing.

    Attributes:
        refits: whether layers that keep all inputs are fitted, too, because earlier layers give something else now.
    """

    refits = False

    def __call__(self, plain: nn.Module, layer: str) -> None:
        """Change weights in place; the inputs of this layer have just been chosen."""

    def finish(self, plain: nn.Module) -> nn.Module:
        """Return the network whose dead channels are removed."""
        return plain


@dataclass(frozen=True, kw_only=True)
class ChannelSelection(Method):
    """Base of the methods that choose channels by reconstruction. Give one of sparsity, speedup, macs, params and
    widths.

    Args:
        sparsity: fraction of the channels to remove in every group, in (0, 1).
        speedup: multiply-adds of the network before over those after, > 1; the same fraction in every group.
        macs: multiply-adds of one sample to keep.
        params: parameters to keep.
        widths: channels to keep by name of the group, as `gossamer analyze` lists them; other groups stay whole.
        residual: whether the last layer of a residual block corrects what its shortcut has become wrong by.
        layers: names or patterns of the layers whose channels may go, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
    """

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "samples"

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    speedup: Annotated[float | None, Range(1, 1e6, open_=("low",))] = None
    macs: Annotated[int | None, Range(1, 10**15)] = None
    params: Annotated[int | None, Range(1, 10**15)] = None
    widths: Mapping[str, int] = field(default_factory=dict)
    residual: bool = True
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = ("sparsity", "speedup", "macs", "params", "widths")
        given = [name for name in ways if getattr(self, name) not in (None, {})]
        if len(given) != 1:
            raise BadInput(f"{self.name()}: give one of {', '.join(ways)}, not {' and '.join(given) or 'none'}")

    @abstractmethod
    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        """Return the channels to keep.

        Args:
            systems: the layers that read the channels.
            count: of the channels.
            keep: how many stay.
        """

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        plain, inputs = materialize(model), task.example_inputs
        groups = channel_groups(plain, inputs, layers=self.layers, ignore=self.ignore)
        widths, left = self.kept_counts(plain, groups, task), torch.ones(len(groups), dtype=torch.bool)
        reads = channels_read(plain, groups)
        order = [name for name in layers_of(trace(plain, inputs)) if name in reads]
        shortcuts = shortcut_errors(plain, inputs) if self.residual else {}
        # A group is chosen when the first layer that reads it comes, and a layer is fitted once all that it reads is
        # chosen: on inputs that are as they will be.
        first: dict[str, str] = {}
        for layer in order:
            for name in dict.fromkeys(groups.names[i] for i in reads[layer].tolist() if i >= 0):
                first.setdefault(name, layer)
        chosen = [name for name in first if widths[name] < groups.names.count(name)]
        if not chosen:
            raise NoEffect(f"{self.name()}: no group of channels gets smaller; ask for more")
        loader, fitted, every = Replayed(task.train, context.seed), list[str](), torch.arange(len(groups))
        between = self.between(plain, groups, widths, task, context)

        def system(layer: str, members: Tensor) -> GramSystem:
            return _gram(plain, model, layer, loader, reads[layer], members, shortcuts.get(layer))

        for layer in context.progress.bar(order, label="choosing channels", total=len(order)):
            for name in [name for name in chosen if first[name] == layer]:
                members = torch.tensor([i for i, own in enumerate(groups.names) if own == name])
                readers = [other for other in order if bool(torch.isin(reads[other], members).any())]
                kept = self.choose([system(other, members) for other in readers], len(members), widths[name])
                left[members] = False
                left[members[kept]] = True
            groups.clear({key: p.detach() for key, p in plain.named_parameters()}, left)
            between(plain, layer)
            if between.refits or not all(left[i] for i in reads[layer].tolist() if i >= 0):
                weight = refit(system(layer, every), left.nonzero().flatten().tolist(), damp=DAMPENING)
                _put(plain.get_submodule(layer), weight)
                fitted.append(layer)
        cleared = remove_dead(between.finish(plain), inputs)
        self._note(context, groups, left, cleared.max_relative, fitted)
        return cleared.model

    def between(
        self, plain: nn.Module, groups: ElementGroups, widths: Mapping[str, int], task: Task, context: Context
    ) -> Between:
        """Return what is done between the choice of a layer's inputs and its fit.

        Args:
            plain: the network, which is changed in place.
            groups: its channels.
            widths: how many channels stay of each group.
            task: data.
            context: of the run.
        """
        return Between()

    def kept_counts(self, model: nn.Module, groups: ElementGroups, task: Task) -> dict[str, int]:
        """Return how many channels stay of each group: the same fraction of all."""
        sizes = {name: groups.names.count(name) for name in dict.fromkeys(groups.names)}
        if self.sparsity is not None:
            return _uniform(sizes, self.sparsity)
        if self.widths:
            return sizes | self._given(sizes)
        cost, wanted = self.priced(model, groups, task)
        least = cost_of(cost, groups, dict.fromkeys(sizes, 1))
        if wanted < least:
            what = "parameters" if self.params is not None else "multiply-adds"
            raise BadInput(
                f"{self.name()}: {wanted:,.0f} {what} cannot be reached: with one channel of each group left there "
                f"would still be {least:,.0f}; ask for more, or leave fewer layers out"
            )
        return nearest_widths(cost, groups, sizes, wanted)

    def _given(self, sizes: Mapping[str, int]) -> dict[str, int]:
        for name, width in self.widths.items():
            if name not in sizes:
                raise unknown("group of channels", name, sizes, listed="`gossamer analyze`")
            if not 1 <= width <= sizes[name]:
                raise BadInput(f"{self.name()}: widths of {name!r} = {width}: must be in [1, {sizes[name]}]")
        return dict(self.widths)

    def shape_only(self) -> "ChannelSelection":
        own = {field.name for field in fields(FirstChannels)}
        return FirstChannels(**{name: value for name, value in self.options().items() if name in own})

    def priced(self, model: nn.Module, groups: ElementGroups, task: Task) -> tuple[GroupCost, float]:
        """Return what the network costs as a function of its channels, and what it is to cost."""
        cost = group_cost(model, task.example_inputs, [groups], "macs" if self.params is None else "params")
        return cost, self.params or self.macs or total_macs(model, task.example_inputs) / (self.speedup or 1.0)

    def _note(self, context: Context, groups: ElementGroups, left: Tensor, proof: float, fitted: Sequence[str]) -> None:
        for name in dict.fromkeys(groups.names):
            own = [lives for group, lives in zip(groups.names, left.tolist()) if group == name]
            if not all(own):
                before, after = f"{len(own)} channels", f"{sum(own)} channels"
                self.note(context, EditKind.RESIZE, name, before=before, after=after, proof=proof)
        if fitted:
            self.note(
                context,
                EditKind.ASSIGN,
                f"{len(fitted)} layers whose inputs changed",
                before="weights of the larger network",
                after="least squares on what they gave there",
            )


@dataclass(frozen=True, kw_only=True)
class FirstChannels(ChannelSelection):
    """The first channels of each group, with the weights as they are: the shape that the other methods lead to."""

    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        return list(range(keep))

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        plain, inputs = materialize(model), task.example_inputs
        groups = channel_groups(plain, inputs, layers=self.layers, ignore=self.ignore)
        counts = self.kept_counts(plain, groups, task)
        left = first_of_each(groups, counts)
        groups.clear({key: p.detach() for key, p in plain.named_parameters()}, left)
        cleared = remove_dead(plain, inputs)
        self._note(context, groups, left, cleared.max_relative, ())
        return cleared.model


def _uniform(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    return {name: max(1, round(size * (1 - sparsity))) for name, size in sizes.items()}


def cost_of(cost: GroupCost, groups: ElementGroups, widths: Mapping[str, int]) -> float:
    return cost(first_of_each(groups, widths))


def first_of_each(groups: ElementGroups, widths: Mapping[str, int]) -> Tensor:
    """Return which channels are the first of their groups, as many as the widths say; bool, shape (groups,)."""
    seen, alive = dict.fromkeys(widths, 0), []
    for name in groups.names:
        seen[name] += 1
        alive.append(seen[name] <= widths[name])
    return torch.tensor(alive)


def nearest_widths(cost: GroupCost, groups: ElementGroups, sizes: Mapping[str, int], wanted: float) -> dict[str, int]:
    """The widths of a common fraction whose cost is the largest not above what is wanted; then single channels are
    given back where there is room."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if cost_of(cost, groups, _uniform(sizes, middle)) <= wanted:
            high = middle
        else:
            low = middle
    widths = _uniform(sizes, high)
    for name in sorted(sizes, key=lambda name: widths[name] / sizes[name]):
        more = widths | {name: min(widths[name] + 1, sizes[name])}
        if cost_of(cost, groups, more) <= wanted:
            widths = more
    return widths


def channels_read(model: nn.Module, groups: ElementGroups) -> Places:
    """The group of each input of the layers that read channels."""
    found = {}
    for name, arrays in groups.cleared.items():
        layer = model.get_submodule(layer_name(name))
        if not isinstance(layer, Layer) or not name.endswith("weight") or owners(model, layer.weight) > 1:
            continue
        for ids in arrays:
            if ids.shape[0] == 1 and ids.shape[1] > 1:
                found[layer_name(name)] = ids.flatten()
    return found


def channels_made(groups: ElementGroups) -> Places:
    """The group of each output of the layers that make channels."""
    found = {}
    for name, arrays in groups.cleared.items():
        for ids in arrays:
            if name.endswith("weight") and ids.ndim > 1 and ids.numel() == ids.shape[0]:
                found[layer_name(name)] = ids.flatten()
    return found


def _gram(
    model: nn.Module,
    original: nn.Module,
    name: str,
    loader: Any,
    reads: Tensor,
    members: Tensor,
    shortcut: Shortcut | None,
) -> GramSystem:
    """What a layer gets now beside what it gave in the original network, with the channels among `members` numbered."""
    layer: Any = model.get_submodule(name)
    normal = layer_system(model, original, name, loader, None, shortcut)
    if normal is None:
        raise BadInput(f"layer {name!r} is not called once in a run, so its inputs cannot be told; put it on `ignore`")
    [same], [cross] = (part.cpu() for part in normal)
    weight = layer.weight.detach().double().cpu().flatten(1).T
    channel = torch.full((int(reads.max()) + 2,), -1)
    inside = members[members < len(channel) - 1]
    channel[inside] = torch.arange(len(members))[: len(inside)]
    columns = channel[reads].repeat_interleave(layer.weight[0, 0].numel() if layer.weight.ndim > 2 else 1)
    mean = same[:-1, -1:] / same[-1, -1]
    centred = same[:-1, :-1] - same[-1, -1] * mean @ mean.T
    energy = max(float(((centred @ weight) * weight).sum()), 1e-30)
    if layer.bias is None:
        same, cross = same[:-1, :-1], cross[:-1]
    else:
        weight = torch.cat([weight, layer.bias.detach().double().cpu()[None]])
        columns = torch.cat([columns, torch.tensor([-1])])
    # The system is of the correction that is missing; with what the weights give now it is that of the whole output.
    return GramSystem(same=same, cross=cross + same @ weight, weight=weight, channels=columns, energy=energy)


@torch.no_grad()
def _put(layer: Any, weight: Tensor) -> None:
    """Give a layer new weights, shape (D, O), the bias last where there is one."""
    if layer.bias is not None:
        layer.bias.copy_(weight[-1])
        weight = weight[:-1]
    layer.weight.copy_(weight.T.reshape(layer.weight.shape))
