"""A space like MobileNet's: inverted bottlenecks whose depth, width, kernel, expansion and attention are free.

Source: Sandler et al. 2018, arXiv:1801.04381 (the block); Tan et al. 2019, arXiv:1807.11626 (the space by stages).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.models.layers import GlobalAveragePool, conv_bn, he_normal
from gossamer.nas.space import Genes, Space

WIDTHS = (0.5, 0.75, 1.0, 1.25)  # times the base width of the stage
DEPTHS = (1, 2, 3, 4)
KERNELS = (3, 5, 7)
EXPANSIONS = (1, 3, 4, 6)
ATTENTION = (False, True)
SCALES = (1.0, 0.86, 0.71)  # of the side of the images
SMALL = 64  # side up to which the stem and the first stage keep the resolution
BASE_SMALL, BASE_LARGE = (16, 32, 64, 128), (16, 24, 40, 80, 160)
GENES_OF_STAGE = 5
SMALLEST = 8  # side: three reductions leave one pixel
REDUCTION = 4  # of the channels inside squeeze-and-excitation


class SqueezeExcite(nn.Module):
    """Channels are weighted by a small network of their means (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // REDUCTION, 4)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW * self.weigh(x_NCHW)  # type: ignore[no-any-return]


class InvertedBottleneck(nn.Module):
    """1x1 to more channels, depthwise, 1x1 back without an activation; added to the input where shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, expansion: int, attention: bool
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = [conv_bn(in_channels, inner, 1, 1)] if expansion > 1 else []
        layers.append(conv_bn(inner, inner, kernel, stride, groups=inner))
        if attention:
            layers.append(SqueezeExcite(inner))
        layers += [nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.branch = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branch(x_NCHW)
        return x_NCHW + y_NCHW if self.adds else y_NCHW


class Resized(nn.Module):
    """Images at another resolution, by bilinear interpolation."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.interpolate(x_NCHW, size=(self.side, self.side), mode="bilinear", antialias=False)


@dataclass(frozen=True, kw_only=True)
class MobileSpace(Space):
    """Inverted bottlenecks in stages: the depth, width, kernel, expansion and attention of each, and the resolution.

    Args:
        channels: of the images.
        classes: outputs.
        side: of the images, in pixels; up to 64, four stages of which three reduce, else a strided stem and five.

    Example:
        >>> import torch
        >>> space = MobileSpace(channels=1, classes=10, side=28)
        >>> space.size == (4 * 4 * 3 * 4 * 2) ** 4 * 3
        True
        >>> space.build(tuple(0 for _ in space.choices))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    channels: int
    classes: int
    side: int

    def __post_init__(self) -> None:
        if self.side < SMALLEST:
            raise BadInput(f"images of {self.side} pixels are too small for this space; it takes {SMALLEST} and more")

    @property
    def base(self) -> tuple[int, ...]:
        """Widths of the stages at factor 1."""
        return BASE_SMALL if self.side <= SMALL else BASE_LARGE

    @property
    def choices(self) -> tuple[int, ...]:
        stage = (len(DEPTHS), len(WIDTHS), len(KERNELS), len(EXPANSIONS), len(ATTENTION))
        return (*stage * len(self.base), len(SCALES))

    @property
    def cheapest(self) -> Genes:
        """The first of every choice, and the fewest pixels."""
        return (*(0,) * (len(self.choices) - 1), len(SCALES) - 1)

    def stages(self, genes: Genes) -> list[tuple[int, int, int, int, bool]]:
        """Depth, channels, kernel, expansion and attention of every stage."""
        found = []
        for number, base in enumerate(self.base):
            depth, width, kernel, expansion, attention = genes[number * GENES_OF_STAGE :][:GENES_OF_STAGE]
            channels = max(8, round(base * WIDTHS[width] / 8) * 8)  # multiples of eight fill the vectors of kernels
            found.append((DEPTHS[depth], channels, KERNELS[kernel], EXPANSIONS[expansion], ATTENTION[attention]))
        return found

    def build(self, genes: Genes) -> nn.Module:
        small, side = self.side <= SMALL, round(self.side * SCALES[genes[-1]])
        layers: list[nn.Module] = [] if side == self.side else [Resized(side)]
        width = self.base[0]
        layers.append(conv_bn(self.channels, width, 3, 1 if small else 2))
        for number, (depth, channels, kernel, expansion, attention) in enumerate(self.stages(genes)):
            for block in range(depth):
                reduces = block == 0 and not (small and number == 0)
                layers.append(
                    InvertedBottleneck(
                        width,
                        channels,
                        kernel=kernel,
                        stride=2 if reduces else 1,
                        expansion=expansion,
                        attention=attention,
                    )
                )
                width = channels
        head = 4 * width
        model = nn.Sequential(*layers, conv_bn(width, head, 1, 1), GlobalAveragePool(), nn.Linear(head, self.classes))
        he_normal(model)
        return model

    def words(self, genes: Genes) -> str:
        parts = [
            f"{depth} x {channels} (k{kernel}, e{expansion}{', se' if attention else ''})"
            for depth, channels, kernel, expansion, attention in self.stages(genes)
        ]
        return f"{', '.join(parts)}, {round(self.side * SCALES[genes[-1]])} px"
