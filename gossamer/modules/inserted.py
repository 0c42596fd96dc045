"""Modules that methods put into networks, where torch.nn has none that does the same."""

from typing import Any

import torch
from torch import Tensor, nn


class Reorder(nn.Module):
    """Channel j of the output is channel order[j] of the input."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


class Skip(nn.Identity):
    """Hands on its first input, whatever else the network gives to the module in whose place it stands."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return next(iter((*inputs, *named.values())))


class Fire(nn.Module):
    """Squeeze, expand in two ways, and put the output channels into the old order; no activations."""

    order: Tensor

    def __init__(self, squeeze: nn.Module, expand1: nn.Module, expand3: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.squeeze, self.expand1, self.expand3 = squeeze, expand1, expand3
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        s = self.squeeze(x)
        return torch.cat([self.expand1(s), self.expand3(s)], 1).index_select(1, self.order)


class Inception(nn.Module):
    """Branches side by side, their output channels put into the old order."""

    order: Tensor

    def __init__(self, branches: list[nn.Module], order: Tensor) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1).index_select(1, self.order)


class Shuffle(nn.Module):
    """Channels (g, C / g) to (C / g, g): channel a of group b goes to place a g + b. Its inverse has C / g groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.view(len(x), self.groups, -1, *x.shape[2:])
        return grouped.transpose(1, 2).flatten(1, 2)


class Residual(nn.Module):
    """block(x) + gain * x; the gain is zero at first, one for each channel (dimension 1)."""

    def __init__(self, block: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.block = block
        self.gain = nn.Parameter(x.new_zeros(x.shape[1], *[1] * (x.dim() - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.gain * x  # type: ignore[no-any-return]


class Branched(nn.Module):
    """A convolution, a 1 x 1 convolution with a batch norm, and, where shapes allow it, a batch norm of the input."""

    def __init__(self, conv: Any, point: nn.Module) -> None:
        super().__init__()
        self.conv, self.point = conv, nn.Sequential(point, silent_norm(conv))
        same = conv.in_channels == conv.out_channels and set(conv.stride) == {1}
        self.skip = silent_norm(conv) if same else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + self.point(x)
        return y if self.skip is None else y + self.skip(x)  # type: ignore[no-any-return]


def silent_norm(conv: Any) -> nn.Module:
    """A batch norm that gives zero."""
    norm = nn.BatchNorm2d(conv.out_channels).to(conv.weight)
    nn.init.zeros_(norm.weight)
    return norm
