"""Which prediction learns which object: the matching of SSD, ATSS, and task-aligned matching."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.detection.boxes import pairwise_iou

CANDIDATES = 10  # predictions that learn an object
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0
NEAREST = 9  # points of each stride that ATSS looks at
ANCHOR = 8  # strides that the side of its squares has


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What each prediction learns.

    Attributes:
        objects: the number of its object in the image, int64, shape (N, A); -1: background.
        weights: in [0, 1], shape (N, A); 0 for the background.

    Example:
        >>> Assignment(objects=torch.full((1, 2), -1), weights=torch.zeros(1, 2)).objects
        tensor([[-1, -1]])
    """

    objects: Tensor
    weights: Tensor


def match_priors(priors: Tensor, boxes: Tensor, valid: Tensor, threshold: float = 0.5) -> Assignment:
    """The matching of SSD: each object and its best prior, and each prior and an object that it overlaps enough.

    Args:
        priors: shape (A, 4), or (N, A, 4) where each image has its own, in pixels.
        boxes: of the objects, shape (N, G, 4), in pixels.
        valid: which of them are objects, bool, shape (N, G).
        threshold: of the overlap.

    Returns:
        The assignment; all weights of objects are 1.

    Example:
        >>> priors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0]])
        >>> match_priors(priors, torch.tensor([[[0.0, 0.0, 4.0, 5.0]]]), torch.tensor([[True]])).objects
        tensor([[ 0, -1]])

    Source: Liu et al. 2016, SSD, arXiv:1512.02325, section 2.2.
    """
    n, objects = valid.shape
    if not objects:
        none = torch.full((n, priors.shape[-2]), -1, device=priors.device)
        return Assignment(objects=none, weights=torch.zeros_like(none, dtype=priors.dtype))
    overlaps = pairwise_iou(boxes, priors).where(valid[..., None], -1.0)
    best, chosen = overlaps.max(1)
    forced = overlaps.argmax(2)
    # Padding would overwrite what belongs to an object: it goes to a column that is dropped.
    forced = torch.where(valid, forced, priors.shape[-2])
    numbers = torch.arange(objects, device=priors.device).expand(n, -1)
    found = torch.where(best >= threshold, chosen, -1)
    found = torch.cat([found, found[:, :1]], 1).scatter(1, forced, numbers)[:, :-1]
    return Assignment(objects=found, weights=(found >= 0).to(priors.dtype))


def task_aligned(scores: Tensor, predicted: Tensor, points: Tensor, boxes: Tensor, labels: Tensor) -> Assignment:
    """Task-aligned matching: an object is learned by the points inside whose score and box are the best together.

    The alignment is score^0.5 * overlap^6. An object without a point inside is learned by the nearest one. A point of
    several objects learns the one that it overlaps most. Weights are alignments, scaled so that the best point of an
    object has its overlap.

    Args:
        scores: probabilities, shape (N, A, classes).
        predicted: boxes, shape (N, A, 4), in pixels.
        points: (x, y) of the predictions, shape (A, 2), in pixels.
        boxes: of the objects, shape (N, G, 4), in pixels.
        labels: of the objects, shape (N, G); -1: padding.

    Returns:
        The assignment.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
        >>> points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
        >>> found = task_aligned(torch.full((1, 2, 1), 0.5), boxes.repeat(1, 2, 1), points, boxes, torch.zeros(1, 1))
        >>> found.objects, found.weights
        (tensor([[ 0, -1]]), tensor([[1., 0.]]))

    Source: Feng et al. 2021, TOOD, arXiv:2108.07755, section 3.2.
    """
    objects = labels.shape[1]
    if not objects:
        none = torch.full(scores.shape[:2], -1, device=scores.device)
        return Assignment(objects=none, weights=torch.zeros_like(none, dtype=scores.dtype))
    valid = labels >= 0
    overlaps = pairwise_iou(boxes, predicted)
    index = labels.clamp_min(0).long()[:, None].expand(-1, scores.shape[1], -1)
    said = scores.gather(2, index).transpose(1, 2)
    aligned = said.pow(SCORE_POWER) * overlaps.pow(OVERLAP_POWER)
    allowed = _inside_or_nearest(points, boxes) & valid[..., None]
    ranked = torch.where(allowed, aligned, -1.0)
    top = ranked.topk(min(CANDIDATES, ranked.shape[2]), 2).indices
    learns = torch.zeros_like(allowed).scatter(2, top, True) & allowed
    rivals = torch.where(learns, overlaps, -1.0)
    found = torch.where(learns.any(1), rivals.argmax(1), -1)
    learns = learns & (found[:, None] == torch.arange(objects, device=labels.device)[:, None])
    kept = torch.where(learns, aligned, 0.0)
    largest = kept.amax(2, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
    reached = torch.where(learns, overlaps, 0.0).amax(2, keepdim=True)
    return Assignment(objects=found, weights=(kept / largest * reached).amax(1))


def adaptive_matching(points: Tensor, strides: Tensor, boxes: Tensor, valid: Tensor) -> Assignment:
    """Adaptive training sample selection (ATSS): an object is learned by the points that stand out for it.

    Of each stride, the nine points nearest to its center are looked at, as squares of eight strides. It is learned by
    those inside whose square overlaps it by at least the mean plus the standard deviation of them all. A point of
    several objects learns the one that its square overlaps most.

    Args:
        points: (x, y) of the predictions, shape (A, 2), in pixels.
        strides: of the predictions, shape (A, 1), in pixels.
        boxes: of the objects, shape (N, G, 4), in pixels.
        valid: which of them are objects, bool, shape (N, G).

    Returns:
        The assignment; all weights of objects are 1.

    Example:
        >>> points = torch.tensor([[4.0, 4.0], [40.0, 4.0], [4.0, 40.0], [40.0, 40.0]])
        >>> box, valid = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[True]])
        >>> adaptive_matching(points, torch.ones(4, 1) * 2, box, valid).objects
        tensor([[ 0, -1, -1, -1]])

    Source: Zhang et al. 2020, arXiv:1912.02424, algorithm 1.
    """
    n, objects = valid.shape
    if not objects:
        none = torch.full((n, len(points)), -1, device=points.device)
        return Assignment(objects=none, weights=torch.zeros_like(none, dtype=points.dtype))
    squares = torch.cat([points - strides * ANCHOR / 2, points + strides * ANCHOR / 2], 1)
    overlaps = pairwise_iou(boxes, squares)
    apart = (points - (boxes[..., None, :2] + boxes[..., None, 2:]) / 2).square().sum(-1)
    near = torch.zeros_like(apart, dtype=torch.bool)
    for stride in sorted(set(strides.flatten().tolist())):
        there = (strides[:, 0] == stride).nonzero()[:, 0]
        nearest = apart[..., there].topk(min(NEAREST, len(there)), dim=2, largest=False).indices
        near.scatter_(2, there[nearest], True)
    looked_at = overlaps.where(near, torch.nan)
    mean = looked_at.nanmean(2, keepdim=True)
    spread = ((looked_at - mean).square().nansum(2, keepdim=True) / (near.sum(2, keepdim=True) - 1).clamp_min(1)).sqrt()
    inside = ((points > boxes[:, :, None, :2]) & (points < boxes[:, :, None, 2:])).all(-1)
    learns = near & inside & (overlaps >= mean + spread) & valid[..., None]
    rivals = torch.where(learns, overlaps, -1.0)
    found = torch.where(learns.any(1), rivals.argmax(1), -1)
    return Assignment(objects=found, weights=(found >= 0).to(points.dtype))


def _inside_or_nearest(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether a point is inside of a box, or the nearest one to its center where none is; shape (N, G, A)."""
    inside = ((points > boxes[:, :, None, :2]) & (points < boxes[:, :, None, 2:])).all(-1)
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    nearest = (points - centers[:, :, None]).square().sum(-1).argmin(2, keepdim=True)
    return inside | (torch.zeros_like(inside).scatter(2, nearest, True) & ~inside.any(2, keepdim=True))
