"""Regions of an image: proposals of them, and the features inside each."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.detection.boxes import pairwise_iou
from gossamer.detection.suppression import kept_by_nms

PASSES = 8  # of non-maximum suppression


def anchor_shapes(scales: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> Tensor:
    """Widths and heights of anchors, as parts of the image's sides.

    Args:
        scales: roots of their areas.
        ratios: height over width.

    Returns:
        Shape (scales times ratios, 2).

    Example:
        >>> anchor_shapes([0.5], [1.0, 4.0])
        tensor([[0.5000, 0.5000],
                [0.2500, 1.0000]])

    Source: Ren et al. 2015, arXiv:1506.01497, section 3.1.1.
    """
    return torch.tensor([(scale / ratio**0.5, scale * ratio**0.5) for scale in scales for ratio in ratios])


def clipped_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes moved into the image, at least one pixel wide and high.

    Args:
        boxes: shape (..., 4), in pixels.
        height: of the image.
        width: of the image.

    Returns:
        Of the same shape.

    Example:
        >>> clipped_boxes(torch.tensor([[-3.0, 2.0, 9.0, 2.0]]), 8, 8)
        tensor([[0., 2., 8., 3.]])
    """
    left, top = boxes[..., 0].clamp(0, width - 1), boxes[..., 1].clamp(0, height - 1)
    right = torch.maximum(boxes[..., 2].clamp(0, width), left + 1)
    return torch.stack([left, top, right, torch.maximum(boxes[..., 3].clamp(0, height), top + 1)], -1)


def select_proposals(boxes: Tensor, scores: Tensor, *, count: int, candidates: int, max_overlap: float) -> Tensor:
    """The best boxes that do not overlap one another too much; always as many, so that shapes do not depend on data.

    Where fewer are left, the best ones that were suppressed fill the places. The proposals have the order of the given
    boxes and not of their scores: then two scores that are equal but for rounding change nothing.

    Args:
        boxes: shape (N, A, 4), in pixels.
        scores: of any range, shape (N, A).
        count: of the proposals.
        candidates: boxes that are looked at, the best.
        max_overlap: of two that overlap by more, the worse is suppressed.

    Returns:
        Shape (N, min(count, A), 4).

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.5], [8.0, 8.0, 9.0, 9.0]]])
        >>> select_proposals(boxes, torch.tensor([[3.0, 2.0, 1.0]]), count=2, candidates=3, max_overlap=0.7)[..., 3]
        tensor([[4., 9.]])
    """
    looked_at = min(candidates, boxes.shape[1])
    places = scores.topk(looked_at, 1).indices
    found = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    kept = kept_by_nms(pairwise_iou(found, found), max_overlap, PASSES)
    ranks = torch.arange(looked_at, device=boxes.device)
    ranks = torch.where(kept, ranks, ranks + looked_at)
    first = ranks.topk(min(count, looked_at), 1, largest=False).indices
    chosen = places.gather(1, first).sort(1).values
    return boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


def pool_regions(x_NCHW: Tensor, boxes: Tensor, height: int, width: int, *, side: int, samples: int = 1) -> Tensor:
    """The features inside of boxes, in a fixed number of cells (ROI align): means of bilinear samples.

    Args:
        x_NCHW: a map.
        boxes: inside of the image, shape (N, R, 4), in its pixels.
        height: of the image.
        width: of the image.
        side: cells of each box in both directions.
        samples: of each cell in both directions, at equal distances.

    Returns:
        Shape (N, C, R * side, side): the boxes of an image below one another.

    Example:
        >>> x = torch.arange(4.0).expand(1, 1, 4, 4)  # columns of 0, 1, 2, 3
        >>> pool_regions(x, torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), 8, 8, side=2)
        tensor([[[[0.5000, 2.5000],
                  [0.5000, 2.5000]]]])

    Source: He et al. 2017, arXiv:1703.06870, section 3.
    """
    points = side * samples
    steps = (torch.arange(points, dtype=x_NCHW.dtype, device=x_NCHW.device) + 0.5) / points
    edges = boxes / torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device) * 2 - 1
    across, down = (
        edges[..., low, None] + steps * (edges[..., low + 2, None] - edges[..., low, None]) for low in (0, 1)
    )
    n, regions = boxes.shape[:2]
    grid = torch.stack(
        [
            across[:, :, None].expand(-1, -1, points, -1),
            down[..., None].expand(-1, -1, -1, points),
        ],
        -1,
    ).reshape(n, regions * points, points, 2)
    found = F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found if samples == 1 else F.avg_pool2d(found, samples)
