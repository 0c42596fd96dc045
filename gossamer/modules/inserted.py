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


class GatheredConv(nn.Module):
    """A 2-D convolution that reads some taps of some input channels only: they are gathered, and a 1 x 1 convolution
    multiplies them. taps: row and column of each tap that is read, and how many channels are read there; channels: of
    the input, tap by tap."""

    channels: Tensor

    def __init__(self, conv: nn.Conv2d, used: Tensor) -> None:
        """conv: without groups, padded with zeros; used: bool, of the shape (I, kernel height, kernel width)."""
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.stride, self.dilation, self.kernel_size = list(conv.stride), list(conv.dilation), list(conv.kernel_size)
        self.padding = [conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]]
        by_tap = used.flatten(1).T
        places = by_tap.nonzero()
        self.taps = [
            [tap // used.shape[2], tap % used.shape[2], int(row.sum())] for tap, row in enumerate(by_tap) if row.any()
        ]
        self.register_buffer("channels", places[:, 1].contiguous())
        self.conv = nn.Conv2d(len(places), conv.out_channels, 1, bias=conv.bias is not None).to(conv.weight)
        with torch.no_grad():
            columns = conv.weight.flatten(2)[:, places[:, 1], places[:, 0]]
            self.conv.weight.copy_(columns[:, :, None, None])
            if conv.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, self.padding)
        high, wide = (
            (size - gap * (kernel - 1) - 1) // step + 1
            for size, gap, kernel, step in zip(x.shape[2:], self.dilation, self.kernel_size, self.stride)
        )
        parts, start = [], 0
        for row, column, count in self.taps:
            top, left = row * self.dilation[0], column * self.dilation[1]
            bottom, right = top + (high - 1) * self.stride[0] + 1, left + (wide - 1) * self.stride[1] + 1
            window = x[:, :, top : bottom : self.stride[0], left : right : self.stride[1]]
            parts.append(window.index_select(1, self.channels[start : start + count]))
            start += count
        return self.conv(torch.cat(parts, 1))  # type: ignore[no-any-return]


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
