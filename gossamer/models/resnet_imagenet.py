"""Residual networks for ImageNet (He et al. 2016, arXiv:1512.03385, table 1), the stride of bottlenecks in the 3x3."""

import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_bn
from gossamer.models.resnet import BasicBlock

WIDTHS = (64, 128, 256, 512)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the width at the end, and a shortcut with a 1x1 where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != 4 * width:
            conv = nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = F.relu(self.bn2(self.conv2(y_NCHW)))
        return F.relu(self.bn3(self.conv3(y_NCHW)) + self.shortcut(x_NCHW))


class ResNetImageNet(nn.Module):
    """A strided 7x7 stem with a max-pool, four stages of `depths` blocks, global average pool, one linear layer."""

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        *,
        bottleneck: bool = False,
        in_channels: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        channels, stages = 64, []
        for number, (depth, width) in enumerate(zip(depths, WIDTHS)):
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if number and not block else 1
                if bottleneck:
                    blocks.append(Bottleneck(channels, width, stride))
                else:
                    blocks.append(BasicBlock(channels, width, stride, option="B"))
                channels = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]
