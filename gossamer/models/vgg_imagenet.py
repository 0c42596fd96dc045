"""VGG-16 and VGG-19 (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, columns D and E)."""

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ending in a 2x2 max-pool, then three linear layers. No BatchNorm.

    `depths` are the convolutions per stage.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        *,
        in_channels: int = 3,
        classes: int = 1000,
        input_size: int = 224,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for depth, width in zip(depths, WIDTHS):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * (input_size // 32) ** 2, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(x_NCHW).flatten(1))  # type: ignore[no-any-return]
