"""AlexNet (Krizhevsky et al. 2012) in two groups, and its one-tower variant (Krizhevsky 2014, arXiv:1404.5997)."""

from torch import Tensor, nn

from gossamer.models.layers import pooled_side


def _response_norm() -> nn.LocalResponseNorm:
    # torch divides alpha by the number of channels in the window, the paper does not.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _head(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(features, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, classes),
    )


class AlexNet(nn.Module):
    """Five convolutions, the second, fourth and fifth in two groups; response norm; three linear layers.

    The arithmetic of the paper needs images of 227x227 pixels, although its text says 224.
    """

    def __init__(self, *, in_channels: int = 3, classes: int = 1000, input_size: int = 227) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 96, 11, 4),
            nn.ReLU(),
            _response_norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(),
            _response_norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        side = pooled_side(pooled_side(pooled_side(pooled_side(input_size, 11, 4), 3, 2), 3, 2), 3, 2)
        self.classifier = _head(256 * side**2, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(x_NCHW).flatten(1))  # type: ignore[no-any-return]


class AlexNetOneTower(nn.Module):
    """Without groups and without response norm, 64-192-384-256-256 filters; what torchvision calls AlexNet."""

    def __init__(self, *, in_channels: int = 3, classes: int = 1000, input_size: int = 224) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        side = pooled_side(pooled_side(pooled_side(pooled_side(input_size + 4, 11, 4), 3, 2), 3, 2), 3, 2)
        self.classifier = _head(256 * side**2, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(x_NCHW).flatten(1))  # type: ignore[no-any-return]
