"""A body of cross-stage partial blocks, and a neck that joins its maps both ways.

The blocks are those of Wang et al. 2020 (CSPNet, arXiv:1911.11929), the neck is that of Liu et al. 2018 (PANet,
arXiv:1803.01534), both with ReLU, which int8 and small processors compute at no cost.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_bn

CHANNELS = (64, 128, 256, 512, 1024)  # at width 1, from the stem to the coarsest map
DEPTHS = (3, 6, 6, 3)  # bottlenecks at depth 1


class CSPBlock(nn.Module):
    """Half of the channels through bottlenecks, half past them, joined by a 1x1 convolution.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        depth: bottlenecks.
        shortcut: whether they are residual.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.inner = conv_bn(in_channels, half, 1, 1)
        self.past = conv_bn(in_channels, half, 1, 1)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(conv_bn(half, half, 1, 1), conv_bn(half, half, 3, 1)) for _ in range(depth)
        )
        self.shortcut = shortcut
        self.join = conv_bn(2 * half, out_channels, 1, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        inner = self.inner(x_NCHW)
        for layers in self.bottlenecks:
            inner = inner + layers(inner) if self.shortcut else layers(inner)
        return self.join(torch.cat([inner, self.past(x_NCHW)], 1))  # type: ignore[no-any-return]


class PooledPyramid(nn.Module):
    """Max-pools of 5, 9 and 13 pixels beside the map itself, as three pools of 5 one after the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = conv_bn(channels, channels // 2, 1, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = conv_bn(channels // 2 * 4, channels, 1, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        maps = [self.inner(x_NCHW)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.join(torch.cat(maps, 1))  # type: ignore[no-any-return]


class CSPBody(nn.Module):
    """A stem and four stages that halve the side. It gives the maps at 1/8, 1/16 and 1/32 of the image's side.

    Args:
        width: multiplies the channels, which are multiples of 8.
        depth: multiplies the bottlenecks.
        in_channels: of the images.
    """

    def __init__(self, width: float, depth: float, *, in_channels: int = 3) -> None:
        super().__init__()
        sizes = [max(8, round(c * width / 8) * 8) for c in CHANNELS]
        self.channels = tuple(sizes[2:])
        self.stem = conv_bn(in_channels, sizes[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn(before, after, 3, 2), CSPBlock(after, after, max(1, round(count * depth))))
            for before, after, count in zip(sizes, sizes[1:], DEPTHS)
        )
        self.pyramid = PooledPyramid(sizes[-1])

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        x_NCHW = self.stem(x_NCHW)
        maps = []
        for stage in self.stages:
            x_NCHW = stage(x_NCHW)
            maps.append(x_NCHW)
        return [*maps[1:-1], self.pyramid(maps[-1])]


class PANNeck(nn.Module):
    """Joins maps from the coarse ones to the fine ones, and back.

    Args:
        channels: of the maps, the finest first.
        depth: bottlenecks of each block.
    """

    def __init__(self, channels: Sequence[int], depth: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(CSPBlock(a + b, a, depth, shortcut=False) for a, b in reversed(pairs))
        self.strided = nn.ModuleList(conv_bn(a, a, 3, 2) for a, _ in pairs)
        self.up = nn.ModuleList(CSPBlock(a + b, b, depth, shortcut=False) for a, b in pairs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        joined = [maps[-1]]
        for block, fine in zip(self.down, reversed(maps[:-1])):
            scaled = F.interpolate(joined[0], size=fine.shape[2:], mode="nearest")
            joined.insert(0, block(torch.cat([fine, scaled], 1)))
        outputs = [joined[0]]
        for strided, block, coarse in zip(self.strided, self.up, joined[1:]):
            outputs.append(block(torch.cat([strided(outputs[-1]), coarse], 1)))
        return outputs


def rare(classes: int) -> float:
    """The bias of scores by which every class is rare at first: a probability of 1 in 100, less with many classes."""
    share = min(0.01, 0.1 / classes)
    return -math.log((1 - share) / share)
