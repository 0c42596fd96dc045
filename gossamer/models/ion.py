"""Inside-Outside Net (Bell et al. 2016, arXiv:1512.04143): regions see several layers, and what is around them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.detection.coding import decode_offsets, prior_boxes
from gossamer.detection.regions import anchor_shapes, clipped_boxes, pool_regions, select_proposals
from gossamer.models.csp import CSPBody
from gossamer.models.irnn import context_layers
from gossamer.models.layers import conv_relu, vgg_stage
from gossamer.models.ssd import L2Scale

CANDIDATES = 256  # anchors that non-maximum suppression looks at
MAX_OVERLAP = 0.7  # of two proposals
SIDE = 7  # cells of a region in both directions
PAPER_SCALE = 1000.0  # of normalized features, for the fully connected layers of a trained VGG-16


class ProposalHeads(nn.Module):
    """Region proposals from some maps: 3x3 convolution with ReLU, then objectness and offsets of each anchor.

    Args:
        channels: of the maps.
        shapes: of each map's anchors, (P, 2), as parts of the image's sides.
        hidden: channels of the convolutions.
    """

    def __init__(self, channels: Sequence[int], shapes: Sequence[Tensor], hidden: int) -> None:
        super().__init__()
        for number, one in enumerate(shapes):
            self.register_buffer(f"shapes{number}", one)
        self.inner = nn.ModuleList(nn.Sequential(*conv_relu(c, hidden, 3, 1, 1)) for c in channels)
        self.objectness = nn.ModuleList(nn.Conv2d(hidden, len(one), 1) for one in shapes)
        self.offsets = nn.ModuleList(nn.Conv2d(hidden, 4 * len(one), 1) for one in shapes)
        for layer in (*self.objectness, *self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (A, 4), in pixels, objectness (N, A) and offsets (N, A, 4)."""
        inner = [layer(m) for layer, m in zip(self.inner, maps)]
        objectness = [layer(m).permute(0, 2, 3, 1).flatten(1) for layer, m in zip(self.objectness, inner)]
        offsets = [layer(m).permute(0, 2, 3, 1).reshape(m.shape[0], -1, 4) for layer, m in zip(self.offsets, inner)]
        shapes = [self.get_buffer(f"shapes{number}") for number in range(len(maps))]
        sides = [(m.shape[2], m.shape[3]) for m in maps]
        anchors = prior_boxes(sides, height, width, shapes, inner[0])
        return anchors, torch.cat(objectness, 1), torch.cat(offsets, 1)


class SkipPooling(nn.Module):
    """The features of regions from several maps: every cell's vector divided by its norm and scaled, side by side.

    Args:
        channels: of the maps.
        out_channels: after the 1x1 convolution that joins them.
        start: of the learned scales, the norm that the layers behind expect.
        samples: of each cell in both directions.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, *, start: float, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.scales = nn.ModuleList(L2Scale(c, start) for c in channels)
        self.join = nn.Conv2d(sum(channels), out_channels, 1)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, height: int, width: int) -> Tensor:
        """Shape (N, R, out_channels * 49)."""
        pooled = [
            scale(pool_regions(m, boxes, height, width, side=SIDE, samples=self.samples))
            for scale, m in zip(self.scales, maps)
        ]
        joined: Tensor = self.join(torch.cat(pooled, 1))  # (N, C, R * 7, 7)
        cells = joined.reshape(joined.shape[0], joined.shape[1], boxes.shape[1], SIDE * SIDE)
        return cells.transpose(1, 2).flatten(2)


class VGGBody(nn.Module):
    """The convolutions of VGG-16: conv3, conv4 and conv5, at 1/4, 1/8 and 1/16 of the image's side."""

    channels = (256, 512, 512)

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.conv3 = nn.Sequential(
            vgg_stage(in_channels, 64, 2),
            nn.MaxPool2d(2),
            vgg_stage(64, 128, 2),
            nn.MaxPool2d(2),
            vgg_stage(128, 256, 3),
        )
        self.conv4 = nn.Sequential(nn.MaxPool2d(2), vgg_stage(256, 512, 3))
        self.conv5 = nn.Sequential(nn.MaxPool2d(2), vgg_stage(512, 512, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        conv3 = self.conv3(x_NCHW)
        conv4 = self.conv4(conv3)
        return [conv3, conv4, self.conv5(conv4)]


class InsideOutsideNet(nn.Module):
    """Proposals, skip pooling from the maps of a body and from context features, two fully connected layers.

    In eval mode it gives `boxes` (N, R, 4), in pixels, and `scores` (N, R, classes), before the suppression of each
    class. While it trains, it gives what `gossamer.detection.detection_loss` learns from. Proposals are not
    differentiated (approximate joint training).

    Two things differ from the paper. The proposals come from the same network, as in Faster R-CNN, which the paper uses
    in its larger models only. All classes of a region share one box.

    Args:
        body: gives maps, the finest first, and has their `channels`.
        scales: of the anchors of the last maps, roots of their areas as parts of the image's side.
        joined: channels of a region's cell.
        hidden: of the fully connected layers.
        start: of the scales of normalized features; None: the norm that as many channels have after batch norm and
            ReLU, as in the last map.
        classes: of the objects, without the background.
        proposals: of an image.
        samples: of each cell of a region in both directions.
    """

    def __init__(
        self,
        body: nn.Module,
        scales: Sequence[Sequence[float]],
        *,
        joined: int,
        hidden: int,
        start: float | None,
        classes: int,
        proposals: int,
        samples: int = 1,
    ) -> None:
        super().__init__()
        self.body, self.proposals, self.classes = body, proposals, classes
        channels: tuple[int, ...] = tuple(body.channels)  # type: ignore[arg-type]
        last = channels[-1]
        self.anchored = len(scales)
        self.heads = ProposalHeads(
            channels[-self.anchored :], [anchor_shapes(one) for one in scales], max(32, last // 2)
        )
        self.context = context_layers(last, last)
        start = (last / 2) ** 0.5 if start is None else start
        self.skip = SkipPooling((*channels, last), joined, start=start, samples=samples)
        self.layers = nn.Sequential(
            nn.Linear(joined * SIDE * SIDE, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.logits, self.offsets = nn.Linear(hidden, 1 + classes), nn.Linear(hidden, 4)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        height, width = x_NCHW.shape[2:]
        maps = self.body(x_NCHW)
        anchors, objectness, moves = self.heads(maps[-self.anchored :], height, width)
        boxes = clipped_boxes(decode_offsets(moves.detach(), anchors), height, width)
        proposals = select_proposals(
            boxes, objectness.detach(), count=self.proposals, candidates=CANDIDATES, max_overlap=MAX_OVERLAP
        )
        features = self.layers(self.skip([*maps, self.context(maps[-1])], proposals, height, width))
        logits, offsets = self.logits(features), self.offsets(features)
        if self.training:
            return {
                "anchors": anchors.expand(len(x_NCHW), -1, -1),
                "objectness": objectness,
                "anchor_offsets": moves,
                "proposals": proposals,
                "logits": logits,
                "offsets": offsets,
            }
        found = clipped_boxes(decode_offsets(offsets, proposals), height, width)
        return {"boxes": found, "scores": logits.softmax(-1)[..., 1:]}


def ion_on_vgg16(*, in_channels: int = 3, classes: int = 20) -> InsideOutsideNet:
    """The network of the paper, on VGG-16; anchors of 128, 256 and 512 pixels of 600, as in Faster R-CNN."""
    body, scales = VGGBody(in_channels=in_channels), ((128 / 600, 256 / 600, 512 / 600),)
    return InsideOutsideNet(
        body, scales, joined=512, hidden=4096, start=PAPER_SCALE, classes=classes, proposals=128, samples=2
    )


def ion_on_csp(
    width: float = 0.25, depth: float = 0.33, *, in_channels: int = 3, classes: int = 20
) -> InsideOutsideNet:
    """The same on the body of `AnchorFreeDetector`, with anchors on all of its maps.

    Args:
        width: multiplies the channels of the body.
        depth: multiplies the depths of its blocks.
        in_channels: of the images.
        classes: of the objects, without the background.
    """
    body = CSPBody(width, depth, in_channels=in_channels)
    finest = body.channels[0]
    scales = ((0.1, 0.2), (0.3, 0.45), (0.6, 0.85))
    return InsideOutsideNet(body, scales, joined=finest, hidden=4 * finest, start=None, classes=classes, proposals=32)
