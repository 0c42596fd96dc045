"""Flattened networks (Jin et al. 2015, arXiv:1412.5474): rank-one filters as three one-dimensional convolutions."""

from torch import Tensor, nn

from gossamer.models.layers import he_normal


def flattened(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Lateral 1x1, vertical k x 1 and horizontal 1 x k, the last two on each channel alone; nothing in between.

    The same as a dense convolution with filters lateral(c) vertical(y) horizontal(x): C + 2k weights each, not C k**2.
    """
    pad = kernel // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.Conv2d(out_channels, out_channels, (kernel, 1), padding=(pad, 0), groups=out_channels, bias=False),
        nn.Conv2d(out_channels, out_channels, (1, kernel), padding=(0, pad), groups=out_channels),
    )


class FlattenedNet(nn.Module):
    """5x5 convolutions to 96, 128, 256 channels, each followed by ReLU and a 2x2 max-pool; mean; one linear layer.

    The first convolution is an ordinary one, the others are flattened, twice in a row where `twice`, as the paper does
    to keep accuracy. `flat=False` is the ordinary network. The widths are the paper's; the head is the simplest one.
    """

    def __init__(self, *, flat: bool = True, twice: bool = True, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        channels = 96
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 5, padding=2), nn.ReLU(), _pool()]
        for width in (128, 256):
            if flat:
                layers += flattened(channels, width, 5)
                layers += flattened(width, width, 5) if twice else ()
            else:
                layers.append(nn.Conv2d(channels, width, 5, padding=2))
            layers += [nn.ReLU(), _pool()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.features(x_NCHW).mean((2, 3)))  # type: ignore[no-any-return]


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(2, ceil_mode=True)
