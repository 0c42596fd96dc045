"""How detectors write boxes: distances from points, and offsets from prior boxes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.detection.boxes import centers_and_sizes, from_centers

VARIANCES = (0.1, 0.2)  # of centers and of sizes, as SSD has them
LARGEST_LOG = math.log(1000.0 / 16)  # of a size over its prior's, so that no exponential is infinite


def grid_points(sides: Sequence[tuple[int, int]], height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The centers of the cells of several maps, one map after the other, row by row.

    Args:
        sides: height and width of each map.
        height: of the image, in pixels.
        width: of the image, in pixels.
        like: a tensor whose type and device the points get.

    Returns:
        (x, y) in pixels of the image, shape (A, 2), and the side of each cell in pixels, shape (A, 1).

    Example:
        >>> points, strides = grid_points([(1, 2)], 8, 16, torch.zeros(1))
        >>> points, strides
        (tensor([[ 4.,  4.],
                [12.,  4.]]), tensor([[8.],
                [8.]]))
    """
    points, strides = [], []
    for rows, columns in sides:
        y = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) * (height / rows)
        x = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) * (width / columns)
        points.append(torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1).flatten(0, 1))
        strides.append(torch.full((rows * columns, 1), height / rows, dtype=like.dtype, device=like.device))
    return torch.cat(points), torch.cat(strides)


def boxes_from_distances(distances: Tensor, points: Tensor) -> Tensor:
    """Boxes from the distances of a point to the four sides.

    Args:
        distances: to the left, top, right and bottom, shape (..., A, 4), in pixels.
        points: (x, y), shape (A, 2) or (..., A, 2), in pixels.

    Returns:
        Boxes, shape (..., A, 4).

    Example:
        >>> boxes_from_distances(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[5.0, 5.0]]))
        tensor([[4., 3., 8., 9.]])
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def distances_from_boxes(boxes: Tensor, points: Tensor) -> Tensor:
    """The distances of a point to the four sides of a box; negative where the point is outside.

    Args:
        boxes: shape (..., A, 4), in pixels.
        points: (x, y), shape (A, 2) or (..., A, 2), in pixels.

    Returns:
        Shape (..., A, 4): left, top, right, bottom, in pixels.

    Example:
        >>> distances_from_boxes(torch.tensor([[4.0, 3.0, 8.0, 9.0]]), torch.tensor([[5.0, 5.0]]))
        tensor([[1., 2., 3., 4.]])
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def expected_distances(logits: Tensor) -> Tensor:
    """The mean of four distributions over whole distances.

    Args:
        logits: shape (..., 4 * bins), the bins of a side next to one another.

    Returns:
        Shape (..., 4), from 0 to bins - 1.

    Example:
        >>> expected_distances(torch.zeros(1, 8))  # two bins a side: 0 and 1
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])

    Source: Li et al. 2020, Generalized Focal Loss, arXiv:2006.04388.
    """
    bins = logits.shape[-1] // 4
    whole = torch.arange(bins, dtype=logits.dtype, device=logits.device)
    sides = logits.reshape(*logits.shape[:-1], 4, bins)
    return (sides.softmax(-1) * whole).sum(-1)


def encode_offsets(boxes: Tensor, priors: Tensor) -> Tensor:
    """Boxes as offsets from prior boxes.

    Args:
        boxes: shape (..., A, 4), in pixels.
        priors: shape (A, 4) or (..., A, 4), in pixels.

    Returns:
        Shape (..., A, 4): offsets of the center over the prior's size, over 0.1; logarithms of sizes over the prior's,
        over 0.2.

    Example:
        >>> prior = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> encode_offsets(prior + torch.tensor([1.0, 0.0, 1.0, 0.0]), prior)
        tensor([[1., 0., 0., 0.]])

    Source: Liu et al. 2016, SSD, arXiv:1512.02325, section 2.2.
    """
    (centers, sizes), (prior_centers, prior_sizes) = centers_and_sizes(boxes), centers_and_sizes(priors)
    shifts = (centers - prior_centers) / prior_sizes / VARIANCES[0]
    return torch.cat([shifts, (sizes.clamp_min(1e-3) / prior_sizes).log() / VARIANCES[1]], -1)


def decode_offsets(offsets: Tensor, priors: Tensor) -> Tensor:
    """Offsets from prior boxes as boxes.

    Args:
        offsets: as `encode_offsets` gives them, shape (..., A, 4).
        priors: shape (A, 4) or (..., A, 4), in pixels.

    Returns:
        Boxes, shape (..., A, 4), in pixels.

    Example:
        >>> decode_offsets(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
        tensor([[ 1.,  0., 11., 10.]])
    """
    centers, sizes = centers_and_sizes(priors)
    grown = (offsets[..., 2:] * VARIANCES[1]).clamp_max(LARGEST_LOG).exp() * sizes
    return from_centers(centers + offsets[..., :2] * VARIANCES[0] * sizes, grown)


def prior_boxes(
    sides: Sequence[tuple[int, int]], height: int, width: int, shapes: Sequence[Tensor], like: Tensor
) -> Tensor:
    """Prior boxes of several maps: at the center of each cell one of each shape of its map.

    Args:
        sides: height and width of each map.
        height: of the image, in pixels.
        width: of the image, in pixels.
        shapes: widths and heights of each map's priors, (P, 2), as parts of the image's sides.
        like: a tensor whose type and device the boxes get.

    Returns:
        Shape (A, 4), in pixels: all priors of a cell next to one another, row by row, one map after the other.

    Example:
        >>> prior_boxes([(1, 1)], 8, 8, [torch.tensor([[0.25, 0.5]])], torch.zeros(1))
        tensor([[3., 2., 5., 6.]])
    """
    made = []
    for side, parts in zip(sides, shapes, strict=True):
        points, _ = grid_points([side], height, width, like)
        priors = torch.stack([parts[:, 0].to(like) * width, parts[:, 1].to(like) * height], 1)
        centers = points[:, None].expand(-1, len(priors), -1)
        made.append(from_centers(centers, priors.expand_as(centers)).flatten(0, 1))
    return torch.cat(made)


def soft_bins(distances: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Distances as two neighbouring bins and the weight of the lower one.

    Args:
        distances: shape (...), in cells; what is outside of the bins is moved to their ends.
        bins: how many whole distances there are, from 0 on.

    Returns:
        The lower bin, int64, and its weight in [0, 1], both of shape (...).

    Example:
        >>> soft_bins(torch.tensor([1.25, 9.0]), 4)
        (tensor([1, 2]), tensor([0.7500, 0.0000]))
    """
    clipped = distances.clamp(0, bins - 1)
    lower = clipped.floor().clamp_max(bins - 2)
    return lower.long(), 1 - (clipped - lower)


def bin_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss: cross entropy of the two bins next to each distance.

    Args:
        logits: shape (..., 4 * bins).
        distances: shape (..., 4), in cells.

    Returns:
        Shape (...), the mean over the four sides, in nats.

    Example:
        >>> bin_loss(torch.zeros(1, 8), torch.full((1, 4), 0.5))
        tensor([0.6931])

    Source: Li et al. 2020, Generalized Focal Loss, arXiv:2006.04388, equation 6.
    """
    bins = logits.shape[-1] // 4
    logs = F.log_softmax(logits.reshape(*logits.shape[:-1], 4, bins), -1)
    lower, weight = soft_bins(distances, bins)
    low, high = (logs.gather(-1, index[..., None])[..., 0] for index in (lower, lower + 1))
    return -(weight * low + (1 - weight) * high).mean(-1)
