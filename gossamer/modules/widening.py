"""More channels, and the same function: the opposite of a cut.

A coupled channel is repeated wherever it occurs; the layers that read it divide its weights among the copies. Copies
lie next to their original, so that concatenations, splits and flattened maps keep their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gossamer.core.placement import evaluating
from gossamer.errors import BadInput, GossamerError, first_line
from gossamer.graph.channel_index import Indices
from gossamer.graph.groups import ChannelGroups
from gossamer.graph.proof import relative_difference
from gossamer.graph.slicing import PruningPlan, changed_attributes, resize
from gossamer.graph.tracer import output_tensors, own_arguments

# Copies share their channel's outgoing weights as 1 +- this: equal shares would get equal gradients for ever.
UNEVEN = 0.25


@dataclass(frozen=True, kw_only=True)
class Widened:
    """A wider copy of a network.

    Args:
        model: the copy.
        widths: coupled channels before and after, by group.
        proof: the largest relative difference of an output.
        left: groups that stay as they are, with the reason.
    """

    model: nn.Module
    widths: Mapping[str, tuple[int, int]]
    proof: float
    left: Mapping[str, str] = field(default_factory=dict)


def widen(channels: ChannelGroups, widths: Mapping[str, int], *, seed: int = 0, tolerance: float = 1e-5) -> Widened:
    """Give groups so many channels: all they have, then copies of some drawn at random (Chen, Goodfellow & Shlens 2015,
    arXiv:1511.05641, section 2.2).

    A group stays as it is where copies would change the outputs of the network by more than `tolerance` (relative):
    where something normalises over channels, or a size is fixed in a `forward`.
    """
    for name, width in widths.items():
        size = channels.groups[channels.index(name)].size
        if width < size:
            raise BadInput(f"widths: {name} = {width} must be at least {size}, the channels that it has")
    wanted, left = dict(widths), dict[str, str]()
    result = _tried(channels, wanted, seed, tolerance)
    if isinstance(result, str):
        for name in widths:
            alone = _tried(channels, {name: widths[name]}, seed, tolerance)
            if isinstance(alone, str):
                left[name] = alone
                del wanted[name]
        result = _tried(channels, wanted, seed, tolerance)
    if isinstance(result, str):
        raise BadInput(f"widen: {', '.join(wanted)} cannot be widened together: {result}")
    model, proof = result
    done = {name: (channels.groups[channels.index(name)].size, width) for name, width in wanted.items()}
    return Widened(model=model, widths=done, proof=proof, left=left)


def _tried(
    channels: ChannelGroups, widths: Mapping[str, int], seed: int, tolerance: float
) -> tuple[nn.Module, float] | str:
    """The wider network and its proof, or why there is none."""
    try:
        model = _wider(channels, widths, torch.Generator().manual_seed(seed))
        proof = output_difference(channels.model, model, channels.example_inputs)
    except (GossamerError, RuntimeError, ValueError) as error:
        return first_line(error)
    if not proof <= tolerance:
        return f"copies would change the outputs by {proof:.2g} (relative)"
    return model, proof


def _wider(channels: ChannelGroups, widths: Mapping[str, int], generator: torch.Generator) -> nn.Module:
    shares = [np.ones(1)] * len(channels.coupled.group_of)
    for name, width in widths.items():
        index = channels.index(name)
        if channels.coupled.classes[index].equal_counts:
            raise BadInput(f"{name} has parts that would have to grow alike, as the groups of a convolution")
        members = np.flatnonzero(channels.coupled.group_of == index)
        drawn = torch.randint(len(members), (width - len(members),), generator=generator).numpy()
        for channel, copies in zip(members.tolist(), (1 + np.bincount(drawn, minlength=len(members))).tolist()):
            shares[channel] = _shares(copies, generator)
    read = np.ones(channels.graph.size, dtype=np.bool_)
    for _, produced in channels.graph.produced:
        read[produced] = False
    named = dict([*channels.model.named_parameters(), *channels.model.named_buffers()])
    kept: dict[str, dict[int, list[int]]] = {}
    weighed: dict[str, dict[int, NDArray[np.float64]]] = {}
    for name, value in channels.graph.parameters.items():
        for d, t in value.axes.items():
            of_place = channels.coupled.of_index[t]
            if all(len(shares[channel]) == 1 for channel in np.unique(of_place[of_place >= 0]).tolist()):
                continue
            if t.size != t.shape[d]:
                raise BadInput(f"{name} has parts that would have to grow alike, as the groups of a convolution")
            indices, parts = repeated_indices(of_place.ravel(), shares)
            kept.setdefault(name, {})[d] = indices
            # A weight with several dimensions reads what it does not produce; norms and biases, with one, do neither.
            if named[name].ndim > 1 and read[t].all():
                weighed.setdefault(name, {})[d] = parts
    shapes = {name: tuple(named[name].shape) for name in kept}
    after = {name: tuple(len(dims.get(d, range(n))) for d, n in enumerate(shapes[name])) for name, dims in kept.items()}
    cut = PruningPlan(dict(kept), shapes, changed_attributes(channels.model, after))
    model = resize(channels.model, channels.example_inputs, cut)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, dims in weighed.items():
            for d, parts in dims.items():
                shape = [-1 if i == d else 1 for i in range(named[name].ndim)]
                named[name].mul_(torch.from_numpy(parts).to(named[name]).view(shape))
    return model


def _shares(copies: int, generator: torch.Generator) -> NDArray[np.float64]:
    """Positive numbers that add up to 1."""
    drawn = 1 + UNEVEN * (2 * torch.rand(copies, generator=generator, dtype=torch.float64) - 1)
    shares: NDArray[np.float64] = (drawn / drawn.sum()).numpy()
    return shares


def repeated_indices(coupled: Indices, shares: list[NDArray[np.float64]]) -> tuple[list[int], NDArray[np.float64]]:
    """Indices with the copies, and the share of each, for a dimension whose positions belong to these channels.

    A run of positions of one channel (the positions of a flattened map) is copied as a whole.

    Args:
        coupled: the coupled channel of every position, shape (positions,); -1 for none.
        shares: the shares of the copies of every coupled channel; they add up to 1.
    """
    indices: list[int] = []
    parts: list[float] = []
    start = 0
    while start < len(coupled):
        end = start + 1
        while end < len(coupled) and coupled[end] == coupled[start] >= 0:
            end += 1
        for share in shares[coupled[start]].tolist() if coupled[start] >= 0 else [1.0]:
            indices += range(start, end)
            parts += [share] * (end - start)
        start = end
    return indices, np.array(parts)


@torch.no_grad()
def output_difference(one: nn.Module, other: nn.Module, inputs: object) -> float:
    """The largest relative difference of an output, both in eval mode."""
    results = []
    for model in (one, other):
        args, kwargs = own_arguments(inputs)
        with evaluating(model):
            results.append(output_tensors(model(*args, **kwargs)))
    return max((relative_difference(b, a) for a, b in zip(*results, strict=True)), default=0.0)
