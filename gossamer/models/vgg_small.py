"""The networks that papers on binary weights report on (Courbariaux et al. 2015, arXiv:1511.00363, section 3)."""

from itertools import pairwise

from torch import Tensor, nn


class BatchNormMLP(nn.Module):
    """Hidden linear layers of equal width, each with BatchNorm and ReLU, then a linear layer with BatchNorm.

    Outputs have a norm, too, since sums of binary weights are large. Biases are those of the norms.
    """

    def __init__(
        self, *, in_channels: int = 1, classes: int = 10, input_size: int = 28, units: int = 2048, hidden: int = 3
    ) -> None:
        super().__init__()
        sizes = [in_channels * input_size**2, *[units] * hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(units, classes, bias=False)
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.norm(self.head(self.hidden(x_NCHW)))  # type: ignore[no-any-return]


class VGGSmall(nn.Module):
    """VGG-small: 2 x 128C3 - MP2 - 2 x 256C3 - MP2 - 2 x 512C3 - MP2 - 2 x 1024FC - classes.

    Each layer is followed by its pool, if it has one, then BatchNorm, then ReLU: a sign behind the norm sees what the
    pool keeps. `width` is that of the first layer; the hidden linear layers have eight times as many units.
    """

    def __init__(self, *, in_channels: int = 3, classes: int = 10, input_size: int = 32, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = in_channels, input_size
        for outputs in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            channels, side = outputs, side // 2
        layers.append(nn.Flatten())
        for inputs in (channels * side**2, 8 * width):
            layers += [nn.Linear(inputs, 8 * width, bias=False), nn.BatchNorm1d(8 * width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8 * width, classes, bias=False)
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.norm(self.head(self.features(x_NCHW)))  # type: ignore[no-any-return]
