"""MobileNet v1 (Howard et al. 2017, arXiv:1704.04861, table 1)."""

from torch import Tensor, nn

from gossamer.models.layers import conv_bn

# Output channels and stride of the thirteen depthwise-separable blocks at width multiplier 1.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """A strided 3x3 stem, thirteen depthwise 3x3 + pointwise 1x1 blocks, global average pool, a linear head.

    `width` is the paper's alpha: it scales every layer's channels. The input is reduced 32 times, so small images end
    as one pixel.
    """

    def __init__(self, width: float = 1.0, *, in_channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        channels = int(32 * width)
        self.stem = conv_bn(in_channels, channels, 3, 2)
        blocks: list[nn.Module] = []
        for base, stride in BLOCKS:
            out_channels = int(base * width)
            depthwise = conv_bn(channels, channels, 3, stride, groups=channels)
            blocks.append(nn.Sequential(depthwise, conv_bn(channels, out_channels, 1, 1)))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]
