"""A one-stage detector without anchors: body, neck, and a head with separate branches for classes and boxes."""

import torch
from torch import Tensor, nn

from gossamer.detection.coding import boxes_from_distances, expected_distances, grid_points
from gossamer.models.csp import CSPBody, PANNeck, rare
from gossamer.models.layers import conv_bn

BINS = 16  # whole distances of a side, in cells


class PointHead(nn.Module):
    """For each cell of a map the distributions of the distances to four sides, and a score of each class.

    Args:
        channels: of the map.
        width: channels of both branches.
        classes: how many there are.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.boxes = nn.Sequential(*conv_bn(channels, width, 3, 1), *conv_bn(width, width, 3, 1))
        self.distances = nn.Conv2d(width, 4 * BINS, 1)
        self.scores = nn.Sequential(*conv_bn(channels, width, 3, 1), *conv_bn(width, width, 3, 1))
        self.logits = nn.Conv2d(width, classes, 1)
        nn.init.constant_(self.logits.bias, rare(classes))  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        distances, logits = self.distances(self.boxes(x_NCHW)), self.logits(self.scores(x_NCHW))
        return distances.flatten(2).transpose(1, 2), logits.flatten(2).transpose(1, 2)


class AnchorFreeDetector(nn.Module):
    """CSP body, PAN neck, and a decoupled head on maps of 1/8, 1/16 and 1/32 of the image's side.

    In eval mode it gives `boxes` (N, A, 4), in pixels, and `scores` (N, A, classes), before suppression. While it
    trains, it gives what `gossamer.detection.detection_loss` learns from.

    Args:
        width: multiplies the channels; 0.25 for size n, 0.5 for size s.
        depth: multiplies the blocks' depths; 0.33 for both.
        in_channels: of the images.
        classes: of the objects.

    Source: YOLOX, arXiv:2107.08430 (decoupled head); Generalized Focal Loss, arXiv:2006.04388 (distributions).
    """

    def __init__(self, width: float = 0.25, depth: float = 0.33, *, in_channels: int = 3, classes: int = 80) -> None:
        super().__init__()
        self.body = CSPBody(width, depth, in_channels=in_channels)
        self.neck = PANNeck(self.body.channels, max(1, round(3 * depth)))
        inner = max(32, self.body.channels[0])
        self.heads = nn.ModuleList(PointHead(c, inner, classes) for c in self.body.channels)

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        maps = self.neck(self.body(x_NCHW))
        found = [head(m) for head, m in zip(self.heads, maps)]
        distances, logits = (torch.cat(parts, 1) for parts in zip(*found))
        sides = [(m.shape[2], m.shape[3]) for m in maps]
        points, strides = grid_points(sides, x_NCHW.shape[2], x_NCHW.shape[3], distances)
        if self.training:
            many = (len(x_NCHW), -1, -1)
            return {
                "distances": distances,
                "logits": logits,
                "points": points.expand(many),
                "strides": strides.expand(many),
            }
        boxes = boxes_from_distances(expected_distances(distances) * strides, points)
        return {"boxes": boxes, "scores": logits.sigmoid()}
