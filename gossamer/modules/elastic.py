"""Sub-networks that share the weights of one network: fewer channels of a group, and no residual block here and there.

The channels of every group are sorted by importance once. So the first channels are the best ones, and those of a
narrow sub-network are among those of every wider one (Cai et al. 2020, arXiv:1908.09791, section 3.3).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gossamer.errors import GossamerError, NoEffect
from gossamer.graph.channel_index import Indices, Kept
from gossamer.graph.groups import ChannelGroups, Group, find_groups
from gossamer.graph.proof import Proof
from gossamer.graph.pruner import prune, prune_as_learned
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.modules.blocks import RemovableBlock, find_blocks, remove_blocks
from gossamer.modules.widening import output_difference

SHARES = (1.0, 0.75, 0.5, 0.25)  # of the channels of a group that sub-networks have
TOLERANCE = 1e-4  # relative: another order of channels is another order of sums


@dataclass(frozen=True, kw_only=True, repr=False)
class Subnetwork:
    """A smaller network, with weights of its own.

    Attributes:
        model: of the user's own class.
        plan: of its channels, where these were cut.
        proof: that it computes what the large network computes with the other channels masked; None where it was not
            asked for or no channel is gone. A block that is left out is an identity, exactly.
    """

    model: nn.Module
    plan: PruningPlan
    proof: Proof | None


@dataclass(frozen=True, kw_only=True, repr=False)
class ElasticNetwork:
    """A network and the sub-networks that share its weights.

    Args:
        channels: of the network, as `find_groups` gives them; of each group the first channels stay.
        widths: that a group can have, the largest first, by name of the group.
        blocks: that can be left out.

    Example:
        >>> import gossamer
        >>> from gossamer.modules.elastic import elastic_network
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> elastic = elastic_network(model, task.example_inputs)
        >>> elastic.widths["conv1"]
        (8, 6, 4, 2)
        >>> elastic.subnetwork({"conv1": 4}).model.conv1.out_channels
        4
    """

    channels: ChannelGroups
    widths: Mapping[str, tuple[int, ...]]
    blocks: tuple[RemovableBlock, ...]

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.channels.model

    def subnetwork(
        self, widths: Mapping[str, int], without: Collection[str] = (), *, prove: bool = False
    ) -> Subnetwork:
        """One sub-network, a copy.

        Args:
            widths: channels to keep by group, of `self.widths`; other groups stay whole.
            without: names of blocks that are left out.
            prove: whether to compare it with the masked network.
        """
        sizes = {name: options[0] for name, options in self.widths.items()}
        fractions = {name: width / sizes[name] for name, width in widths.items() if width < sizes[name]}
        scores = self.channels.channel_scores({})  # nothing is scored: of equal scores the first stay
        cut = prune if prove and fractions else prune_as_learned
        pruned = cut(self.channels, fractions, scores)
        gone = [block for block in self.blocks if block.name in without]
        model = remove_blocks(pruned.model, gone) if gone else pruned.model
        return Subnetwork(model=model, plan=pruned.plan, proof=pruned.proof)

    def within(self, block: str) -> list[str]:
        """Groups that are gone with a block: all their layers are inside of it."""
        return [
            group.name
            for group in self.channels.prunable()
            if group.name in self.widths and all(f"{layer}.".startswith(f"{block}.") for layer in group.layers)
        ]

    def layer_shares(self, widths: Mapping[str, int], without: Collection[str] = ()) -> dict[str, float]:
        """What is left of each layer: the product of the shares of its output and input channels, 0 in a block that is
        left out. Multiply-adds of a layer fall in proportion to it."""
        kept = np.ones(len(self.channels.groups) + 1)  # the last place is for positions of no group
        for number, group in enumerate(self.channels.prunable()):
            kept[number] = widths.get(group.name, group.size) / group.size
        found = {}
        for layer, dimensions in self._dimensions.items():
            shares = [float(counts @ kept) for counts in dimensions]
            gone = any(f"{layer}.".startswith(f"{block}.") for block in without)
            found[layer] = 0.0 if gone else math.prod(shares)
        return found

    @cached_property
    def _dimensions(self) -> dict[str, list[NDArray[np.float64]]]:
        """For the dimensions of each layer's weight: which share of its positions each group has."""
        coupled, found = self.channels.coupled, {}
        for name, value in self.channels.graph.parameters.items():
            layer, _, own = name.rpartition(".")
            if own != "weight" or len(value.axes) == 0:
                continue
            rows = []
            for indices in value.axes.values():
                channel = coupled.of_index[indices].ravel()
                group = np.where(channel >= 0, coupled.group_of[channel], len(self.channels.groups))
                rows.append(np.bincount(group, minlength=len(self.channels.groups) + 1) / len(group))
            found[layer] = rows
        return found


def elastic_network(model: nn.Module, example_inputs: Any, *, round_to: int = 1) -> ElasticNetwork:
    """What of a network can shrink, for sub-networks that share its weights.

    Args:
        model: whose channels are in the order in which they stay; see `sort_channels`.
        example_inputs: what it is traced on.
        round_to: widths are multiples of it where the group is that large.

    Returns:
        The network with the widths of its groups and its residual blocks.

    Raises:
        NoEffect: no channels can be cut, and there is no residual block.
    """
    channels = find_groups(model, example_inputs)
    widths = {group.name: _options(group, round_to) for group in channels.prunable()}
    widths = {name: options for name, options in widths.items() if len(options) > 1}
    smallest = {name: options[-1] / options[0] for name, options in widths.items()}
    # What the smallest needs to run, all others need; what cannot be cut so far is not cut.
    skipped = prune(channels, smallest, channels.channel_scores({})).skipped
    widths = {name: options for name, options in widths.items() if name not in skipped}
    blocks = tuple(find_blocks(model, example_inputs))
    if not widths and not blocks:
        raise NoEffect("this network has no sub-networks: no channels can be cut, and there is no residual block")
    return ElasticNetwork(channels=channels, widths=widths, blocks=blocks)


def _options(group: Group, round_to: int) -> tuple[int, ...]:
    multiple = math.lcm(round_to, group.step)
    found = {min(group.size, max(multiple, multiple * round(share * group.size / multiple))) for share in SHARES}
    return tuple(sorted(found | {group.size}, reverse=True))


@dataclass(frozen=True, kw_only=True)
class SortedChannels:
    """A network whose channels are sorted.

    Attributes:
        model: a copy that computes the same.
        groups: that are sorted.
        difference: the largest relative difference of an output.
        left: groups that stay in their order, since the network would give something else.
    """

    model: nn.Module
    groups: tuple[str, ...]
    difference: float
    left: tuple[str, ...] = field(default=())


def sort_channels(model: nn.Module, example_inputs: Any, scores: Mapping[str, Tensor]) -> SortedChannels:
    """Put the channels of every group in the order of their importance, the most important first.

    Args:
        model: is left as it is.
        example_inputs: what it is traced on, and both networks are compared on.
        scores: of each weight, by parameter name; see `ChannelGroups.channel_scores`.

    Returns:
        The sorted copy. Groups whose order something depends on stay as they are.

    Example:
        >>> import gossamer
        >>> from gossamer.modules.elastic import sort_channels
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> scores = {"conv1.weight": model.conv1.weight.detach().square()}
        >>> norms = sort_channels(model, task.example_inputs, scores).model.conv1.weight.flatten(1).norm(dim=1)
        >>> bool((norms.diff() <= 0).all())
        True
    """
    channels = find_groups(model, example_inputs)
    order = channels.channel_scores(scores)
    names = list(order)
    result = _sorted(channels, order)
    if result is None:  # one by one, to find those whose order does not matter
        names = [name for name in names if _sorted(channels, {name: order[name]}) is not None]
        result = _sorted(channels, {name: order[name] for name in names}) or _sorted(channels, {})
    assert result is not None
    left = tuple(name for name in order if name not in names)
    return SortedChannels(model=result[0], groups=tuple(names), difference=result[1], left=left)


def _sorted(channels: ChannelGroups, scores: Mapping[str, Tensor]) -> tuple[nn.Module, float] | None:
    """The network with these groups sorted, and how far its outputs are off; None where it gives something else."""
    source = np.arange(len(channels.coupled.group_of))
    for name, score in scores.items():
        index = channels.index(name)
        values = np.zeros(len(source))
        values[channels.coupled.group_of == index] = score.numpy()
        for members in channels.coupled.classes[index].members:
            source[np.sort(members)] = members[np.argsort(-values[members], kind="stable")]
    named = dict([*channels.model.named_parameters(), *channels.model.named_buffers()])
    kept: dict[str, dict[int, Kept]] = {}
    for name, value in channels.graph.parameters.items():
        for d, indices in value.axes.items():
            if (moved := _moved(channels.coupled.of_index[indices], d, source)) is not None:
                kept.setdefault(name, {})[d] = moved
    plan = PruningPlan(dict(kept), {name: tuple(named[name].shape) for name in kept})
    try:
        model = resize(channels.model, None, plan)
        difference = output_difference(channels.model, model, channels.example_inputs)
    except (GossamerError, RuntimeError, ValueError, IndexError):
        return None
    return (model, difference) if difference <= TOLERANCE else None


def _moved(channel: Indices, d: int, source: Indices) -> Kept | None:
    """Where what now stands at each position of a dimension comes from; None where nothing moves.

    channel: the coupled channel of every position, an array of the parameter's rank.
    source: for every coupled channel, the one that takes its place.
    """
    if channel.size == channel.shape[d]:
        moved = _positions(channel.ravel(), source)
        return None if moved == list(range(len(moved))) else moved
    # The second dimension of a grouped convolution: rows of a group are alike.
    rows = channel.reshape(channel.shape[0], channel.shape[1])
    starts = [0, *(i for i in range(1, len(rows)) if not np.array_equal(rows[i], rows[i - 1]))]
    per_group = [_positions(rows[i], source) for i in starts]
    return None if all(one == list(range(len(one))) for one in per_group) else per_group


def _positions(channel: Indices, source: Indices) -> list[int]:
    """A channel may have several positions (those of a flattened map): the k-th goes to the k-th."""
    places: dict[int, list[int]] = {}
    for at, one in enumerate(channel.tolist()):
        places.setdefault(one, []).append(at)
    count: dict[int, int] = {}
    found = []
    for at, one in enumerate(channel.tolist()):
        k = count[one] = count.get(one, -1) + 1
        found.append(places[int(source[one])][k] if one >= 0 else at)
    return found
