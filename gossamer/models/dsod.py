"""DSOD300: its body and its prediction layers (Shen et al. 2017, arXiv:1708.01241, table 1)."""

import torch
from torch import Tensor, nn

from gossamer.models.densenet import DenseLayer
from gossamer.models.layers import conv_bn
from gossamer.models.ssd import RATIOS_300, SCALES_300, PriorHeads, prior_shapes

GROWTH = 48
DEPTHS = (6, 8, 8, 8)
CHANNELS = (800, 512, 512, 256, 256, 256)


def bn_relu_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """BatchNorm, ReLU, convolution without bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), conv)


def dense_block(channels: int, depth: int) -> nn.Sequential:
    """`depth` layers with bottlenecks of 192 channels that add 48 each."""
    return nn.Sequential(*(DenseLayer(channels + i * GROWTH, GROWTH, bottleneck=True) for i in range(depth)))


class DownScale(nn.Module):
    """The next scale: half of its channels learned (1x1, strided 3x3), half from the pooled map (2x2 max-pool, 1x1).

    padding 0 takes a map of 3x3 to one pixel, padding 1 halves the side, rounding up.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.learned = nn.Sequential(*bn_relu_conv(in_channels, half, 1), *bn_relu_conv(half, half, 3, 2, padding))
        self.pooled = nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=bool(padding)), *bn_relu_conv(in_channels, half, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([self.learned(x_NCHW), self.pooled(x_NCHW)], 1)


class DSODBody(nn.Module):
    """Dense blocks that give six maps of 38, 19, 10, 5, 3 and 1 pixels for images of 300x300; trained from scratch."""

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *conv_bn(in_channels, 64, 3, 2), *conv_bn(64, 64, 3, 1), *conv_bn(64, 128, 3, 1), nn.MaxPool2d(2)
        )
        channels = 128
        blocks: list[nn.Module] = []
        for depth in DEPTHS:
            blocks.append(dense_block(channels, depth))
            channels += depth * GROWTH
            # The last transition is a narrow one, next to what comes from the first scale.
            narrow = len(blocks) == 2 * len(DEPTHS) - 1
            blocks.append(bn_relu_conv(channels, CHANNELS[1] // 2 if narrow else channels, 1))
        self.block1, self.transition1, self.block2, self.transition2, *rest = blocks
        self.blocks34 = nn.Sequential(*rest)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.pooled = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *bn_relu_conv(CHANNELS[0], CHANNELS[1] // 2, 1))
        self.scales = nn.ModuleList(
            DownScale(CHANNELS[i], CHANNELS[i + 1], padding=0 if i == 4 else 1) for i in range(1, 5)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        x_NCHW = self.pool(self.transition1(self.block1(self.stem(x_NCHW))))
        first_NCHW = self.transition2(self.block2(x_NCHW))
        deep_NCHW = self.blocks34(self.pool(first_NCHW))
        maps = [first_NCHW, torch.cat([deep_NCHW, self.pooled(first_NCHW)], 1)]
        for scale in self.scales:
            maps.append(scale(maps[-1]))
        return maps


class DSOD(nn.Module):
    """The body, and for each map BatchNorm and the heads of SSD; trained from scratch.

    Args:
        in_channels: of the images.
        classes: of the objects, without the background.
    """

    def __init__(self, *, in_channels: int = 3, classes: int = 20) -> None:
        super().__init__()
        self.body = DSODBody(in_channels=in_channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in CHANNELS)
        self.heads = PriorHeads(CHANNELS, prior_shapes(SCALES_300, RATIOS_300), classes)

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        maps = [norm(map_NCHW) for norm, map_NCHW in zip(self.norms, self.body(x_NCHW))]
        return self.heads(maps, x_NCHW.shape[2], x_NCHW.shape[3])  # type: ignore[no-any-return]
