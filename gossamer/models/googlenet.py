"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842, table 1): biases, true 5x5 branches, no BatchNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_relu, he_normal

# Per block: 1x1; 1x1 before 3x3, 3x3; 1x1 before 5x5, 5x5; 1x1 after the pool. None: a 3x3 max-pool of stride 2.
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY_AFTER = {"4a": "aux1", "4d": "aux2"}


class InceptionModule(nn.Module):
    """Four branches side by side: 1x1, 3x3 and 5x5 behind reducing 1x1, max-pool before a 1x1."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.branch1 = conv_relu(in_channels, one, 1)
        self.branch3 = nn.Sequential(*conv_relu(in_channels, reduce3, 1), *conv_relu(reduce3, three, 3, padding=1))
        self.branch5 = nn.Sequential(*conv_relu(in_channels, reduce5, 1), *conv_relu(reduce5, five, 5, padding=2))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv_relu(in_channels, pool, 1))
        self.out_channels = one + three + five + pool

    def forward(self, x_NCHW: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x_NCHW) for branch in branches], 1)


class AuxiliaryHead(nn.Module):
    """A small classifier on a map in the middle: 5x5 average pool of stride 3, 1x1-128, 1024 units, classes."""

    def __init__(self, in_channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv = nn.Conv2d(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * ((side - 5) // 3 + 1) ** 2, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NF = F.relu(self.conv(self.pool(x_NCHW))).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x_NF))))  # type: ignore[no-any-return]


class GoogLeNet(nn.Module):
    """A stem, nine Inception blocks, global average pool, one linear layer.

    With `auxiliary` two heads sit on blocks 4a and 4d. They run while training only and their outputs do not leave
    `forward`, which always gives the logits: what trains them reads them with hooks on `heads.aux1`, `heads.aux2`.
    """

    def __init__(
        self, *, auxiliary: bool = False, in_channels: int = 3, classes: int = 1000, input_size: int = 224
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *conv_relu(in_channels, 64, 7, 2, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5),
            *conv_relu(64, 64, 1),
            *conv_relu(64, 192, 3, padding=1),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        channels = 192
        self.blocks = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        # Four layers of stride 2 before the heads; the pools round up.
        side = (input_size + 1) // 2
        for _ in range(3):
            side = side // 2
        for name, widths in BLOCKS.items():
            if widths is None:
                self.blocks[name] = nn.MaxPool2d(3, 2, ceil_mode=True)
                continue
            block = InceptionModule(channels, widths)
            self.blocks[name] = block
            channels = block.out_channels
            if auxiliary and name in AUXILIARY_AFTER:
                self.heads[AUXILIARY_AFTER[name]] = AuxiliaryHead(channels, side, classes)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.stem(x_NCHW)
        for name, block in self.blocks.items():
            x_NCHW = block(x_NCHW)
            head = AUXILIARY_AFTER.get(name, "")
            if self.training and head in self.heads:
                self.heads[head](x_NCHW)
        return self.fc(self.dropout(x_NCHW.mean((2, 3))))  # type: ignore[no-any-return]
