"""Groups of elements of parameters that become zero together: coupled channels, columns, kernels, residual blocks.

A group is a set of elements. It has *carriers*, whose norm says how much of it is left, and elements that are *cleared*
when the carriers are zero. Rows of a layer in front of a batch norm carry nothing: the norm undoes their scale. There
the scale and shift of the batch norm are the carriers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.constraints.weights import weights_of
from gossamer.core.layer_names import layer_name
from gossamer.errors import NoEffect
from gossamer.graph.groups import ChannelGroups, find_groups
from gossamer.graph.tracer import trace
from gossamer.modules.blocks import find_blocks
from gossamer.modules.dead_units import Flags, liveness, output_dimensions
from gossamer.modules.folding import norms_after

Sides = Literal["made", "read", "both"]
Ids = Mapping[str, tuple[Tensor, ...]]
Values = Mapping[str, Tensor]
FOLLOWS = (nn.Linear, nn.modules.conv._ConvNd, _BatchNorm, nn.PReLU)  # vectors that may be zero where a channel is


@dataclass(frozen=True, kw_only=True, eq=False)
class ElementGroups:
    """Groups of elements.

    Args:
        names: of every group, what it is a part of: a layer, or the first layer that makes a channel.
        carried: the group of each element that counts for the norm, by parameter name: int64 arrays of the parameter's
            rank, size 1 where the group does not vary, -1 for none. An element may be in one group of each array.
        cleared: the same for all elements that are zero where the group is.
        whole: whether all groups of one name may go: those of a module with a shortcut around it.
    """

    names: tuple[str, ...]
    carried: Ids
    cleared: Ids
    whole: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def only(self, parameters: Collection[str]) -> "ElementGroups":
        """The same with no carriers but those of the named parameters; groups without any are left out."""
        left = {name: arrays for name, arrays in self.carried.items() if name in parameters}
        has = torch.zeros(len(self), dtype=torch.bool)
        for ids in (ids for arrays in left.values() for ids in arrays):
            has[ids[ids >= 0]] = True
        number = torch.where(has, has.cumsum(0) - 1, -1)
        return ElementGroups(
            names=tuple(name for name, there in zip(self.names, has.tolist()) if there),
            carried={name: tuple(spread([ids], number, -1) for ids in arrays) for name, arrays in left.items()},
            cleared={name: tuple(spread([ids], number, -1) for ids in arrays) for name, arrays in self.cleared.items()},
            whole=self.whole,
        )

    def sums(self, values: Values) -> Tensor:
        """The sum of values over the carriers of each group.

        Args:
            values: one for each element, by parameter name.

        Returns:
            Shape (groups,), of the values' type.
        """
        first = values[next(iter(self.carried))]
        total = first.new_zeros(len(self) + 1)  # the last place is for -1: elements of no group
        for name, arrays in self.carried.items():
            for ids in arrays:
                rest = [d for d, size in enumerate(ids.shape) if size == 1 and values[name].shape[d] > 1]
                value = values[name].sum(rest, keepdim=True) if rest else values[name]
                value = value.expand([max(pair) for pair in zip(value.shape, ids.shape)])
                total.index_add_(0, _place(ids, len(self), value).expand(value.shape).flatten(), value.flatten())
        return total[:-1]

    def norms(self, parameters: Values) -> Tensor:
        """Euclidean norms of the carriers of each group, shape (groups,)."""
        return self.sums({name: parameters[name].detach().square() for name in self.carried}).sqrt()

    def sizes(self, parameters: Values) -> Tensor:
        """The number of carriers of each group, shape (groups,)."""
        total = torch.zeros(len(self) + 1)
        for name, arrays in self.carried.items():
            for ids in arrays:
                each = torch.full((ids.numel(),), float(parameters[name].numel() // ids.numel()))
                total.index_add_(0, _place(ids, len(self), each).flatten(), each)
        return total[:-1].to(parameters[next(iter(self.carried))])

    def spread(self, name: str, values: Tensor, other: float) -> Tensor:
        """A value for every carrier of one parameter.

        Args:
            name: of the parameter.
            values: of each group, shape (groups,).
            other: what elements of no group get.

        Returns:
            The product over the parameter's arrays, of a shape that broadcasts to the parameter's.
        """
        return spread(self.carried[name], values, other)

    def scale(self, parameters: Values, factors: Tensor) -> None:
        """Multiply the carriers by the factors of their groups, shape (groups,), in place."""
        for name in self.carried:
            parameters[name].mul_(self.spread(name, factors, 1.0))

    def restore(self, parameters: Values, before: Values, chosen: Tensor) -> None:
        """Give the carriers of chosen groups, bool (groups,), the values they had before, in place."""
        flags = chosen.to(torch.float32)
        for name, arrays in self.carried.items():
            for ids in arrays:
                parameters[name].copy_(torch.where(spread([ids], flags, 0.0) > 0, before[name], parameters[name]))

    def clear(self, parameters: Values, alive: Tensor) -> None:
        """Set to zero, in place, all that goes with groups that are not alive, shape (groups,)."""
        for name, arrays in self.cleared.items():
            parameters[name].mul_(spread(arrays, alive.to(parameters[name].dtype), 1.0))


def _place(ids: Tensor, count: int, like: Tensor) -> Tensor:
    return torch.where(ids < 0, count, ids).to(like.device)


def spread(arrays: Sequence[Tensor], values: Tensor, other: float) -> Tensor:
    """The product over arrays of group numbers of the values of their groups; `other` where there is none."""
    extended = torch.cat([values, values.new_tensor([other])])
    result = extended[_place(arrays[0], len(values), values)]
    for ids in arrays[1:]:
        result = result * extended[_place(ids, len(values), values)]
    return result


def channel_groups(
    model: nn.Module,
    example_inputs: Any,
    *,
    sides: Sides = "made",
    layers: Iterable[str] = ("*",),
    ignore: Iterable[str] = (),
) -> ElementGroups:
    """One group for every coupled channel that can be removed.

    Args:
        model: without constraints.
        example_inputs: what it is traced on.
        sides: the carriers: "made": rows and biases that make the channel, or the batch norms behind them; "read":
            columns that read it; "both".
        layers: names or patterns of layers; a channel counts if all layers that make it are among them.
        ignore: names or patterns of layers that are left out.

    Returns:
        The groups, in the order of the network.

    Raises:
        NoEffect: no channel of these layers can be removed.

    Example:
        >>> import gossamer
        >>> groups = channel_groups(gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8))
        >>> len(groups), groups.names[0], sorted(groups.carried)[:2]
        (40, 'conv1', ['bn1.bias', 'bn1.weight'])
    """
    wanted = {layer_name(name) for name in weights_of(model, layers, ignore)}
    found = find_groups(model, example_inputs)
    eligible = _eligible(found, wanted)
    channels = np.flatnonzero(eligible)
    if not len(channels):
        why = sorted({f"{group.name}: {group.reason}" for group in found.groups if group.reason})
        raise NoEffect(f"no channel of the selected layers can be removed: {'; '.join(why[:5]) or 'none is coupled'}")
    number = np.full(len(eligible) + 1, -1)  # the last place is for -1: indices of no coupled channel
    number[channels] = np.arange(len(channels))
    normed = _normed(model, example_inputs)
    carried: dict[str, list[Tensor]] = {}
    cleared: dict[str, list[Tensor]] = {}
    outputs = output_dimensions(model)
    for name, p in model.named_parameters():
        axes = found.graph.parameters[name].axes if name in found.graph.parameters else {}
        for d, indices in axes.items():
            ids = torch.from_numpy(number[found.coupled.of_index[indices]])
            if bool((ids < 0).all()):
                continue
            cleared.setdefault(name, []).append(ids)
            made = p.ndim == 1 or d == outputs[name]
            follows = made and layer_name(name) in normed
            if not follows and sides in ("both", "made" if made else "read"):
                carried.setdefault(name, []).append(ids)
    names = tuple(found.groups[found.coupled.group_of[channel]].name for channel in channels)
    return ElementGroups(names=names, carried=_tuples(carried), cleared=_tuples(cleared))


def _tuples(arrays: Mapping[str, list[Tensor]]) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(found) for name, found in arrays.items()}


def _eligible(found: ChannelGroups, wanted: Collection[str]) -> Flags:
    """Which coupled channels can be zero and then be cut: made by selected layers, read, and with nothing between that
    does more to them than a batch norm."""
    live = liveness(found)
    allowed = np.append(live.known & live.read, True)
    modules, outputs = dict(found.model.named_modules()), output_dimensions(found.model)
    for i, group in enumerate(found.groups):
        if group.reason is not None or group.step > 1:
            allowed[:-1][found.coupled.group_of == i] = False
    for name, p in found.model.named_parameters():
        axes = found.graph.parameters[name].axes if name in found.graph.parameters else {}
        owner = layer_name(name)
        for d, indices in axes.items():
            channels = found.coupled.of_index[indices.ravel()]
            strange = p.ndim == 1 and not isinstance(modules[owner], FOLLOWS)
            unwanted = p.ndim > 1 and d == outputs.get(name, 0) and owner not in wanted
            if strange or unwanted:
                allowed[channels] = False
    return allowed[:-1]


def _normed(model: nn.Module, example_inputs: Any) -> set[str]:
    """Layers whose outputs go into a batch norm with a scale."""
    norms = norms_after(model, trace(model, example_inputs))
    return {layer for layer, norm in norms.items() if getattr(model.get_submodule(norm), "affine", False)}


def column_groups(
    model: nn.Module, *, layers: Iterable[str] = ("*",), ignore: Iterable[str] = (), linear: bool = True
) -> ElementGroups:
    """One group for every column of a weight as a matrix: an input feature of a linear layer, one tap of one input
    channel of a convolution. Grouped and transposed convolutions are left out.

    Args:
        model: without constraints.
        layers: names or patterns of layers.
        ignore: names or patterns of layers that are left out.
        linear: whether linear layers count.

    Raises:
        NoEffect: no selected layer has columns.

    Example:
        >>> len(column_groups(nn.Conv2d(2, 5, 3), linear=False))
        18
    """
    return _of_weights(model, layers, ignore, linear, lambda shape: (1, *shape[1:]), "columns")


def kernel_groups(model: nn.Module, *, layers: Iterable[str] = ("*",), ignore: Iterable[str] = ()) -> ElementGroups:
    """One group for every kernel of a convolution: one input channel of one output channel.

    Args:
        model: without constraints.
        layers: names or patterns of layers.
        ignore: names or patterns of layers that are left out.

    Raises:
        NoEffect: no selected layer is a convolution without groups.

    Example:
        >>> len(kernel_groups(nn.Conv2d(2, 5, 3)))
        10
    """
    return _of_weights(model, layers, ignore, False, lambda shape: (*shape[:2], *[1] * (len(shape) - 2)), "kernels")


def _of_weights(
    model: nn.Module, layers: Iterable[str], ignore: Iterable[str], linear: bool, shape_of: Any, what: str
) -> ElementGroups:
    ids: dict[str, tuple[Tensor, ...]] = {}
    names: list[str] = []
    for name, weight in weights_of(model, layers, ignore).items():
        module: Any = model.get_submodule(layer_name(name))
        plain = getattr(module, "groups", 1) == 1 and not getattr(module, "transposed", False)
        if not plain or (isinstance(module, nn.Linear) and not linear):
            continue
        shape = shape_of(tuple(weight.shape))
        count = torch.Size(shape).numel()
        ids[name] = (torch.arange(len(names), len(names) + count).view(shape),)
        names += [layer_name(name)] * count
    if not names:
        raise NoEffect(f"none of the selected layers has {what}: they are of convolutions without groups")
    return ElementGroups(names=tuple(names), carried=ids, cleared=ids)


def block_groups(model: nn.Module, example_inputs: Any) -> ElementGroups:
    """One group for every residual block: a module that hands on its input once its own parameters are zero.

    Args:
        model: without constraints.
        example_inputs: what it is run on.

    Raises:
        NoEffect: the network has no residual blocks.

    Example:
        >>> class Block(nn.Sequential):
        ...     def forward(self, x):
        ...         return x + super().forward(x)
        >>> block_groups(nn.Sequential(Block(nn.Linear(3, 3)), nn.Linear(3, 2)), torch.zeros(1, 3)).names
        ('0',)
    """
    names = [block.name for block in find_blocks(model, example_inputs)]
    if not names:
        raise NoEffect("the network has no residual block that could be left out: regularize channels instead")
    normed = _normed(model, example_inputs)
    carried: dict[str, tuple[Tensor, ...]] = {}
    cleared: dict[str, tuple[Tensor, ...]] = {}
    for i, block in enumerate(names):
        for key, p in model.get_submodule(block).named_parameters(block):
            cleared[key] = (torch.full([1] * p.ndim, i),)
            if layer_name(key) not in normed:
                carried[key] = cleared[key]
    return ElementGroups(names=tuple(names), carried=carried, cleared=cleared, whole=True)
