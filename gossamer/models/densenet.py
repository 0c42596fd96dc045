"""DenseNet and DenseNet-BC (Huang et al. 2017, arXiv:1608.06993), for 32x32 images and for ImageNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_bn


class DenseLayer(nn.Module):
    """BN-ReLU-3x3 that adds `growth` channels to its input; with `bottleneck` behind a BN-ReLU-1x1 of 4 growth."""

    def __init__(self, in_channels: int, growth: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.reduce: nn.Module = nn.Identity()
        if bottleneck:
            conv = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
            self.reduce = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), conv)
            in_channels = 4 * growth
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([x_NCHW, self.conv(F.relu(self.bn(self.reduce(x_NCHW))))], 1)


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """BN-ReLU-1x1 and a 2x2 average pool."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), conv, nn.AvgPool2d(2))


class DenseNet(nn.Module):
    """Dense blocks of `depths` layers with transitions in between, BN-ReLU, global average pool, one linear layer.

    compression: share of the channels that a transition keeps, the paper's theta. stem: "cifar", one 3x3 of `first`
    channels; "imagenet", a strided 7x7 and a strided max-pool.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        growth: int,
        first: int,
        *,
        bottleneck: bool = True,
        compression: float = 0.5,
        stem: str = "imagenet",
        in_channels: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem: nn.Module
        if stem == "cifar":
            self.stem = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        else:
            self.stem = nn.Sequential(*conv_bn(in_channels, first, 7, 2), nn.MaxPool2d(3, 2, 1))
        channels = first
        blocks: list[nn.Module] = []
        for number, depth in enumerate(depths):
            if number:
                kept = int(channels * compression)
                blocks.append(transition(channels, kept))
                channels = kept
            layers = [DenseLayer(channels + i * growth, growth, bottleneck=bottleneck) for i in range(depth)]
            blocks.append(nn.Sequential(*layers))
            channels += depth * growth
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.blocks(self.stem(x_NCHW))
        return self.fc(F.relu(self.bn(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]


def densenet_cifar(depth: int, growth: int, *, compact: bool, in_channels: int = 3, classes: int = 10) -> DenseNet:
    """DenseNet (depth, growth) for 32x32 images, three blocks; `compact` is BC: bottlenecks and halving transitions."""
    layers = (depth - 4) // (6 if compact else 3)
    return DenseNet(
        (layers,) * 3,
        growth,
        2 * growth if compact else 16,
        bottleneck=compact,
        compression=0.5 if compact else 1.0,
        stem="cifar",
        in_channels=in_channels,
        classes=classes,
    )
