"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567): large kernels as chains of 3x3, of 1x7 and 7x1."""

import torch
from torch import Tensor, nn

from gossamer.models.layers import GlobalAveragePool

Kernel = tuple[int, int]


def conv(in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1, *, valid: bool = False) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; the map keeps its size unless `valid`, then there is no padding."""
    padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels, eps=1e-3), nn.ReLU())


def chain(in_channels: int, *steps: tuple[int, Kernel], reduce: bool = False) -> nn.Sequential:
    """Convolutions of (output channels, kernel), one after the other; `reduce` gives the last one stride 2 and no
    padding."""
    layers: list[nn.Module] = []
    for number, (width, kernel) in enumerate(steps, start=1):
        last = reduce and number == len(steps)
        layers.append(conv(in_channels, width, kernel, 2 if last else 1, valid=last))
        in_channels = width
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Branches side by side on one input, their channels one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([branch(x_NCHW) for branch in self.branches], 1)


def pool_branch(in_channels: int, width: int) -> nn.Sequential:
    """3x3 average pool, 1x1."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(in_channels, width, (1, 1)))


def block_35(in_channels: int, pool: int) -> Branches:
    """On maps of 35x35: 1x1; 5x5; 3x3 twice; pool. 224 + pool channels."""
    return Branches(
        chain(in_channels, (64, (1, 1))),
        chain(in_channels, (48, (1, 1)), (64, (5, 5))),
        chain(in_channels, (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        pool_branch(in_channels, pool),
    )


def block_17(width: int) -> Branches:
    """On maps of 17x17: 1x1; 7x7 as 1x7 and 7x1, once and twice; pool. 768 channels."""
    return Branches(
        chain(768, (192, (1, 1))),
        chain(768, (width, (1, 1)), (width, (1, 7)), (192, (7, 1))),
        chain(768, (width, (1, 1)), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))),
        pool_branch(768, 192),
    )


def block_8(in_channels: int) -> Branches:
    """On maps of 8x8: 1x1; 3x3 as 1x3 next to 3x1, after a 1x1 and after a 3x3; pool. 2048 channels."""

    def fork() -> Branches:
        return Branches(chain(384, (384, (1, 3))), chain(384, (384, (3, 1))))

    return Branches(
        chain(in_channels, (320, (1, 1))),
        nn.Sequential(*chain(in_channels, (384, (1, 1))), fork()),
        nn.Sequential(*chain(in_channels, (448, (1, 1)), (384, (3, 3))), fork()),
        pool_branch(in_channels, 192),
    )


def stem(in_channels: int) -> nn.Sequential:
    """Six layers from 299x299 pixels to 35x35."""
    return nn.Sequential(
        conv(in_channels, 32, (3, 3), 2, valid=True),
        conv(32, 32, (3, 3), valid=True),
        conv(32, 64, (3, 3)),
        nn.MaxPool2d(3, 2),
        conv(64, 80, (1, 1)),
        conv(80, 192, (3, 3), valid=True),
        nn.MaxPool2d(3, 2),
    )


class InceptionV3(nn.Module):
    """Three, four and two blocks on maps of 35, 17 and 8 pixels; pools next to strided convolutions in between.

    With `auxiliary` a head with BatchNorm sits after the blocks on 17x17. It runs while training only and its output
    does not leave `forward`, which always gives the logits: what trains it reads it with a hook on `head`.
    """

    def __init__(self, *, auxiliary: bool = False, in_channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        self.front = nn.Sequential(
            stem(in_channels),
            block_35(192, 32),
            block_35(256, 64),
            block_35(288, 64),
            Branches(
                chain(288, (384, (3, 3)), reduce=True),
                chain(288, (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), reduce=True),
                nn.MaxPool2d(3, 2),
            ),
            block_17(128),
            block_17(160),
            block_17(160),
            block_17(192),
        )
        self.head: nn.Module | None = None
        if auxiliary:
            narrow, wide = conv(768, 128, (1, 1)), conv(128, 768, (5, 5), valid=True)
            self.head = nn.Sequential(nn.AvgPool2d(5, 3), narrow, wide, GlobalAveragePool(), nn.Linear(768, classes))
        self.back = nn.Sequential(
            Branches(
                chain(768, (192, (1, 1)), (320, (3, 3)), reduce=True),
                chain(768, (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), reduce=True),
                nn.MaxPool2d(3, 2),
            ),
            block_8(1280),
            block_8(2048),
        )
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.1, a=-0.2, b=0.2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.front(x_NCHW)
        if self.training and self.head is not None:
            self.head(x_NCHW)
        return self.fc(self.dropout(self.back(x_NCHW).mean((2, 3))))  # type: ignore[no-any-return]
