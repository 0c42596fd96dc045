"""The sandwich rule: a network is trained together with its smallest and some random sub-networks, which learn from it.

Source: Yu & Huang 2019, arXiv:1903.05134, sections 3.1 and 3.3.
"""

from collections.abc import Collection, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.graph.channel_index import Kept
from gossamer.graph.slicing import is_channels_last
from gossamer.modules.elastic import ElasticNetwork
from gossamer.train.batches import unsafe_channels_last
from gossamer.train.distillation import Distillation

POOL = 64  # random sub-networks of a training: each takes some tenths of a second to make


class SharedWeights:
    """Runs a sub-network with the weights of the large network, so that its gradients reach these.

    Args:
        model: the large network, in training.
        elastic: what of it can shrink.
        widths: of the sub-network, by group.
        without: blocks that it does without.
    """

    def __init__(
        self, model: nn.Module, elastic: ElasticNetwork, widths: Mapping[str, int], without: Collection[str]
    ) -> None:
        found = elastic.subnetwork(widths, without)
        self.model, self.kept = model, found.plan.kept
        self.skeleton = found.model.train()
        self.names = [name for name, _ in self.skeleton.named_parameters()]
        self.plain = unsafe_channels_last(self.skeleton)
        for parameter in self.skeleton.parameters():  # its own values are never used
            parameter.data = parameter.data.new_empty(()).expand(parameter.shape)

    def __call__(self, *inputs: Any) -> Any:
        """What the sub-network gives, in train mode."""
        device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
        buffer = next(self.skeleton.buffers(), None)
        if buffer is not None and device is not None and buffer.device != device:
            self.skeleton.to(device)
        if self.plain:
            inputs = tree_map_only(Tensor, plain_layout, inputs)
        own = dict(self.model.named_parameters())
        weights = {name: shared_part(own[name], self.kept.get(name, {}), plain=self.plain) for name in self.names}
        return torch.func.functional_call(self.skeleton, weights, inputs)


def shared_part(tensor: Tensor, kept: Mapping[int, Kept], *, plain: bool = False) -> Tensor:
    """The part of a parameter that a sub-network has; gradients go back to the parameter.

    Args:
        tensor: the parameter.
        kept: positions that stay, by dimension, as in `PruningPlan`.
        plain: whether it is laid out contiguously; else as the parameter is.

    Example:
        >>> weight = torch.ones(3, 2, requires_grad=True)
        >>> shared_part(weight, {0: [0, 1]}).sum().backward()
        >>> weight.grad[:, 0]
        tensor([1., 1., 0.])
    """
    channels_last = not plain and is_channels_last(tensor)
    for d in sorted(kept, reverse=True):  # rows of a group are found by their old positions
        indices = kept[d]
        if indices and isinstance(indices[0], list):
            parts = [
                rows.index_select(d, torch.tensor(own, device=tensor.device))
                for rows, own in zip(tensor.chunk(len(indices), 0), indices)
            ]
            tensor = torch.cat(parts)
        elif indices == list(range(len(indices))):
            tensor = tensor.narrow(d, 0, len(indices))
        else:
            tensor = tensor.index_select(d, torch.tensor(indices, device=tensor.device))
    # Kernels of convolutions would copy weights with gaps themselves, each time they read them.
    return tensor.to(memory_format=torch.channels_last) if channels_last else plain_layout(tensor)


def plain_layout(tensor: Tensor) -> Tensor:
    """The tensor laid out contiguously. `contiguous()` leaves one of a single channel as it is, which is channels-last,
    too, and so is then all that follows."""
    return tensor.reshape(-1).view(tensor.shape)


class Sandwich:
    """The loss of the smallest and some random sub-networks, whose teacher is the network in training itself.

    Args:
        model: the network in training.
        elastic: its sub-networks.
        count: random ones in each step.
        temperature: of the distillation.
        seed: of the sub-networks.
    """

    task_weight = 1.0  # the whole network learns from the labels as without sub-networks

    def __init__(self, model: nn.Module, elastic: ElasticNetwork, *, count: int, temperature: float, seed: int) -> None:
        self.model, self.elastic, self.count, self.seed = model, elastic, count, seed
        self.temperature = temperature
        self.inplace = Distillation(nn.Identity(), temperature=temperature, alpha=0.0)  # it is told what to teach
        self.made: dict[int, SharedWeights] = {}

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """The sum of their soft losses."""
        expected = tree_map_only(Tensor, torch.Tensor.detach, outputs)
        drawn = torch.randint(1, POOL + 1, (self.count,)).tolist()  # from the state that the loop sets for the batch
        losses = [self.inplace.soft(self._subnetwork(n)(*inputs), expected, target) for n in (0, *drawn)]
        return torch.stack(losses).sum()

    def _subnetwork(self, number: int) -> SharedWeights:
        """The smallest for 0, else a random one."""
        if number not in self.made:
            widths, blocks = self.elastic.widths, self.elastic.blocks
            rng = Random(f"{self.seed} {number}")
            if number == 0:
                chosen = {name: options[-1] for name, options in widths.items()}
                without = [block.name for block in blocks]
            else:
                share = rng.random()  # deep and shallow ones alike
                chosen = {name: rng.choice(options) for name, options in widths.items()}
                without = [block.name for block in blocks if rng.random() < share]
            self.made[number] = SharedWeights(self.model, self.elastic, chosen, without)
        return self.made[number]
