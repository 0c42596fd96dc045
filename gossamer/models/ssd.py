"""SSD (Liu et al. 2016, arXiv:1512.02325): prior boxes on several maps, of the VGG-16 body or of others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.detection.coding import decode_offsets, prior_boxes
from gossamer.models.csp import CSPBody
from gossamer.models.layers import conv_bn, conv_relu, vgg_stage

# Parts of the image's side, of the six maps and the next one, in the paper's setting for 300 pixels and PASCAL VOC.
SCALES_300 = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))


def prior_shapes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> list[Tensor]:
    """Widths and heights of each map's priors, as parts of the image's sides.

    Args:
        scales: of each map and of the one that would follow.
        ratios: of the sides, of each map; each is used both ways.

    Returns:
        One tensor (P, 2) for each map: a square of its scale, one of the mean with the next, and the ratios.
    """
    shapes = []
    for scale, after, own in zip(scales, scales[1:], ratios):
        pairs = [(scale, scale), ((scale * after) ** 0.5,) * 2]
        for ratio in own:
            wide, high = scale * ratio**0.5, scale / ratio**0.5
            pairs += [(wide, high), (high, wide)]
        shapes.append(torch.tensor(pairs))
    return shapes


class PriorHeads(nn.Module):
    """3x3 convolutions on each map to the offsets and the class scores of its priors.

    In eval mode it gives `boxes` (N, A, 4), in pixels, and `scores` (N, A, classes), before suppression. While it
    trains, it gives what `gossamer.detection.detection_loss` learns from, the background as class 0.

    Args:
        channels: of the maps.
        shapes: of each map's priors, as `prior_shapes` gives them.
        classes: of the objects, without the background.
    """

    def __init__(self, channels: Sequence[int], shapes: Sequence[Tensor], classes: int) -> None:
        super().__init__()
        self.classes = classes
        for number, one in enumerate(shapes):
            self.register_buffer(f"shapes{number}", one)
        counts = [len(one) for one in shapes]
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * p, 3, padding=1) for c, p in zip(channels, counts))
        self.scores = nn.ModuleList(nn.Conv2d(c, (1 + classes) * p, 3, padding=1) for c, p in zip(channels, counts))

    def forward(self, maps: Sequence[Tensor], height: int, width: int) -> dict[str, Tensor]:
        offsets = torch.cat([_per_prior(layer(m), 4) for layer, m in zip(self.boxes, maps)], 1)
        logits = torch.cat([_per_prior(layer(m), 1 + self.classes) for layer, m in zip(self.scores, maps)], 1)
        sides = [(m.shape[2], m.shape[3]) for m in maps]
        shapes = [self.get_buffer(f"shapes{number}") for number in range(len(maps))]
        priors = prior_boxes(sides, height, width, shapes, offsets)
        if self.training:
            return {"offsets": offsets, "logits": logits, "priors": priors.expand(len(offsets), -1, -1)}
        return {"boxes": decode_offsets(offsets, priors), "scores": logits.softmax(-1)[..., 1:]}


def _per_prior(x_NCHW: Tensor, size: int) -> Tensor:
    """(N, priors times size, H, W) as (N, H times W times priors, size)."""
    return x_NCHW.permute(0, 2, 3, 1).reshape(x_NCHW.shape[0], -1, size)


class L2Scale(nn.Module):
    """Every pixel's channels divided by their norm, times a learned scale of each channel (ParseNet)."""

    def __init__(self, channels: int, start: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), start))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.normalize(x_NCHW, dim=1) * self.weight[:, None, None]


class SSD300(nn.Module):
    """SSD for images of 300x300: the VGG-16 body up to conv5, fc6 and fc7 as convolutions, four more scales.

    Args:
        in_channels: of the images.
        classes: of the objects, without the background.
    """

    def __init__(self, *, in_channels: int = 3, classes: int = 20) -> None:
        super().__init__()
        self.early = nn.Sequential(
            vgg_stage(in_channels, 64, 2),
            nn.MaxPool2d(2),
            vgg_stage(64, 128, 2),
            nn.MaxPool2d(2),
            vgg_stage(128, 256, 3),
            nn.MaxPool2d(2, ceil_mode=True),
            vgg_stage(256, 512, 3),
        )
        self.scale = L2Scale(512)
        self.late = nn.Sequential(
            nn.MaxPool2d(2),
            vgg_stage(512, 512, 3),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(),
            *conv_relu(1024, 1024, 1),
        )
        extras = ((1024, 256, 512, 2, 1), (512, 128, 256, 2, 1), (256, 128, 256, 1, 0), (256, 128, 256, 1, 0))
        self.extras = nn.ModuleList(
            nn.Sequential(*conv_relu(a, b, 1), *conv_relu(b, c, 3, stride, padding))
            for a, b, c, stride, padding in extras
        )
        channels = (512, 1024, 512, 256, 256, 256)
        self.heads = PriorHeads(channels, prior_shapes(SCALES_300, RATIOS_300), classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        early = self.early(x_NCHW)
        maps = [self.scale(early), self.late(early)]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return self.heads(maps, x_NCHW.shape[2], x_NCHW.shape[3])  # type: ignore[no-any-return]


class SSDOnCSP(nn.Module):
    """SSD's heads on the body of `AnchorFreeDetector`, without its neck, and one coarser map.

    Args:
        width: multiplies the channels of the body.
        depth: multiplies the depths of its blocks.
        in_channels: of the images.
        classes: of the objects, without the background.
    """

    def __init__(self, width: float = 0.25, depth: float = 0.33, *, in_channels: int = 3, classes: int = 20) -> None:
        super().__init__()
        self.body = CSPBody(width, depth, in_channels=in_channels)
        last = self.body.channels[-1]
        self.extra = nn.Sequential(*conv_bn(last, last // 2, 1, 1), *conv_bn(last // 2, last, 3, 2))
        shapes = prior_shapes((0.15, 0.3, 0.5, 0.75, 1.05), ((2,), (2, 3), (2, 3), (2,)))
        self.heads = PriorHeads((*self.body.channels, last), shapes, classes)

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        maps = self.body(x_NCHW)
        return self.heads([*maps, self.extra(maps[-1])], x_NCHW.shape[2], x_NCHW.shape[3])  # type: ignore[no-any-return]
