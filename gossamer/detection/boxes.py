"""Boxes as tensors (..., 4) of left, top, right, bottom: areas, overlaps, other ways to write them."""

import torch
from torch import Tensor


def box_areas(boxes: Tensor) -> Tensor:
    """Areas of boxes, 0 where right is left of left.

    Args:
        boxes: shape (..., 4).

    Returns:
        Shape (...), in squared pixels.

    Example:
        >>> box_areas(torch.tensor([[0.0, 0.0, 2.0, 3.0]]))
        tensor([6.])
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def intersections(one: Tensor, other: Tensor) -> Tensor:
    """Areas that each box of one list shares with each of another.

    Args:
        one: shape (..., D, 4).
        other: shape (..., G, 4).

    Returns:
        Shape (..., D, G), in squared pixels.

    Example:
        >>> intersections(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]]))
        tensor([[1.]])
    """
    low = torch.maximum(one[..., :, None, :2], other[..., None, :, :2])
    high = torch.minimum(one[..., :, None, 2:], other[..., None, :, 2:])
    sides = (high - low).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of each box of one list with each of another.

    Args:
        one: shape (..., D, 4).
        other: shape (..., G, 4).

    Returns:
        Shape (..., D, G), in [0, 1]; 0 where both boxes are empty.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor([[0.5000]])
    """
    shared = intersections(one, other)
    union = box_areas(one)[..., :, None] + box_areas(other)[..., None, :] - shared
    return shared / union.clamp_min(torch.finfo(shared.dtype).tiny)


def centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centers and sizes of boxes.

    Args:
        boxes: shape (..., 4).

    Returns:
        Two tensors of shape (..., 2): (x, y) and (width, height), in pixels.

    Example:
        >>> centers_and_sizes(torch.tensor([0.0, 2.0, 4.0, 4.0]))
        (tensor([2., 3.]), tensor([4., 2.]))
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def from_centers(centers: Tensor, sizes: Tensor) -> Tensor:
    """Boxes from centers and sizes.

    Args:
        centers: (x, y), shape (..., 2), in pixels.
        sizes: (width, height), shape (..., 2), in pixels.

    Returns:
        Boxes, shape (..., 4).

    Example:
        >>> from_centers(torch.tensor([2.0, 3.0]), torch.tensor([4.0, 2.0]))
        tensor([0., 2., 4., 4.])
    """
    return torch.cat([centers - sizes / 2, centers + sizes / 2], -1)
