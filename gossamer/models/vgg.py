"""VGG-16 for 32x32 images, as the filter pruning papers use it (Li et al. 2017, arXiv:1608.08710, section 4.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOL_AFTER = (2, 4, 7, 10, 13)


class VGG16Small(nn.Module):
    """Thirteen 3x3 convolutions with BatchNorm and five 2x2 max-pools, then 512 units with BatchNorm, then the head.

    The pools round up, which changes nothing at 32x32 and lets 28x28 images through. `widths` are the output channels
    of the thirteen convolutions, so that a pruned network can be built from the numbers that a paper prints.
    """

    def __init__(
        self, *, in_channels: int = 3, classes: int = 10, input_size: int = 32, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = in_channels, input_size
        for number, width in enumerate(widths, start=1):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if number in POOL_AFTER:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                side = -(-side // 2)
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels * side**2, 512)
        self.bn = nn.BatchNorm1d(512)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NF = self.features(x_NCHW).flatten(1)
        return self.fc2(self.relu(self.bn(self.fc1(x_NF))))  # type: ignore[no-any-return]
