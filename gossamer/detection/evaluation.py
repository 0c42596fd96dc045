"""Which detections are right: the matching of COCO and that of PASCAL VOC, for a batch of images at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.detection.boxes import box_areas, intersections

WRONG, RIGHT, IGNORED = 0, 1, 2  # a detection is; ignored ones do not count
NEXT_TO_ONE = 1 - 1e-10  # pycocotools' largest threshold


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The objects of a batch of images.

    Attributes:
        boxes: float64, shape (N, G, 4), in pixels.
        labels: shape (N, G); -1: padding.
        crowd: bool, shape (N, G): COCO's regions of many objects, VOC's difficult objects. They are no miss where they
            are not found, and no error where they are.
        areas: of the objects, shape (N, G), in squared pixels.

    Example:
        >>> box, label = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]]).double(), torch.zeros(1, 1)
        >>> len(Truth(boxes=box, labels=label, crowd=label.bool(), areas=label + 16).labels)
        1
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor


def coco_outcomes(
    boxes: Tensor, labels: Tensor, truth: Truth, thresholds: Tensor, ranges: Tensor
) -> tuple[Tensor, Tensor]:
    """Match detections as pycocotools does: the best first, each to the object that it overlaps most and is still free.

    An object outside of a range of areas is ignored in it, and so is a detection that meets no object and is outside.
    Any number of detections may meet a crowd; of them the overlap is the share of the detection inside.

    Args:
        boxes: of detections sorted by score, float64, shape (N, D, 4).
        labels: of the detections, shape (N, D); -1: padding.
        truth: the objects.
        thresholds: of the overlap, shape (T,).
        ranges: of areas from low to high, both inside, shape (A, 2).

    Returns:
        WRONG, RIGHT or IGNORED, int8, shape (N, D, A, T); which objects count, bool, shape (N, G, A).

    Example:
        >>> box, label = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]]).double(), torch.zeros(1, 1)
        >>> truth = Truth(boxes=box, labels=label, crowd=label.bool(), areas=label + 16)
        >>> coco_outcomes(box, label, truth, torch.tensor([0.5]), torch.tensor([[0.0, 100.0]]))[0].flatten()
        tensor([1], dtype=torch.int8)
    """
    areas, low, high = box_areas(boxes), ranges[:, 0], ranges[:, 1]
    shared = intersections(boxes, truth.boxes)
    union = areas[:, :, None] + (box_areas(truth.boxes)[:, None] - shared) * ~truth.crowd[:, None]
    overlaps = shared / union.clamp_min(torch.finfo(shared.dtype).tiny)
    alike = (labels[:, :, None] == truth.labels[:, None]) & (labels >= 0)[:, :, None]
    overlaps = overlaps.where(alike, -1.0)
    in_range = (truth.areas[..., None] >= low) & (truth.areas[..., None] <= high)
    counts = in_range & ~truth.crowd[..., None] & (truth.labels >= 0)[..., None]
    outside = (areas[..., None] < low) | (areas[..., None] > high)
    outcomes = torch.where(outside, IGNORED, WRONG).to(torch.int8)[..., None].repeat(1, 1, 1, len(thresholds))
    n, objects = truth.labels.shape
    limits = thresholds.double().clamp_max(NEXT_TO_ONE)[:, None]
    # Most detections meet no object. The others are gone through in their order, the same rank in all images at once.
    near = (overlaps >= limits.min()).any(2)
    ranks = int(near.sum(1).amax()) if objects else 0
    order = (~near).to(torch.uint8).argsort(dim=1, stable=True)[:, :ranks]
    overlaps = overlaps.gather(1, order[..., None].expand(-1, -1, objects))
    outside = outside.gather(1, order[..., None].expand(-1, -1, len(ranges)))
    counts_NA1G, crowd_N11G = counts.movedim(2, 1)[:, :, None], truth.crowd[:, None, None]
    free = torch.ones(n, len(ranges), len(thresholds), objects, dtype=torch.bool)
    found = torch.empty(n, ranks, len(ranges), len(thresholds), dtype=torch.int8)
    places = torch.arange(objects)
    for rank in range(ranks):
        overlaps_N11G = overlaps[:, rank, None, None]
        met = (overlaps_N11G >= limits) & (free | crowd_N11G)
        right = met & counts_NA1G
        is_right = right.any(-1, keepdim=True)
        met = torch.where(is_right, right, met)  # what does not count only where nothing else is met
        chosen = objects - 1 - torch.where(met, overlaps_N11G, -1.0).flip(-1).argmax(-1, keepdim=True)
        meets = met.any(-1, keepdim=True)
        free &= ~((places == chosen) & meets)
        missed = torch.where(outside[:, rank, :, None], IGNORED, WRONG)
        found[:, rank] = torch.where(is_right[..., 0], RIGHT, torch.where(meets[..., 0], IGNORED, missed))
    outcomes.scatter_(1, order[..., None, None].expand_as(found), found)
    return outcomes, counts


def voc_outcomes(boxes: Tensor, labels: Tensor, truth: Truth, threshold: float) -> tuple[Tensor, Tensor]:
    """Match detections as the development kit of PASCAL VOC does: each to the object that it overlaps most.

    The best detection of an object is right, all others of it are wrong. Those of difficult objects do not count.

    Args:
        boxes: of detections sorted by score, float64, shape (N, D, 4).
        labels: of the detections, shape (N, D); -1: padding.
        truth: the objects, the difficult ones as `crowd`.
        threshold: of the overlap.

    Returns:
        WRONG, RIGHT or IGNORED, int8, shape (N, D, 1, 1); which objects count, bool, shape (N, G, 1).

    Example:
        >>> box, label = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]]).double(), torch.zeros(1, 1)
        >>> truth = Truth(boxes=box, labels=label, crowd=label.bool(), areas=label + 16)
        >>> voc_outcomes(box.repeat(1, 2, 1), label.repeat(1, 2), truth, 0.5)[0].flatten()
        tensor([1, 0], dtype=torch.int8)
    """
    counts = (~truth.crowd & (truth.labels >= 0))[..., None]
    if not truth.labels.shape[1]:
        return torch.full((*labels.shape, 1, 1), WRONG, dtype=torch.int8), counts
    shared = intersections(boxes, truth.boxes)
    union = box_areas(boxes)[:, :, None] + box_areas(truth.boxes)[:, None] - shared
    alike = (labels[:, :, None] == truth.labels[:, None]) & (labels >= 0)[:, :, None]
    best, chosen = (shared / union.clamp_min(torch.finfo(shared.dtype).tiny)).where(alike, -1.0).max(2)
    meets = best >= threshold
    claims = torch.where(meets, chosen, -1 - torch.arange(labels.shape[1]))  # equal for no two that meet nothing
    again = (claims[:, :, None] == claims[:, None, :]).tril(-1).any(2)
    easy = meets & counts[..., 0].gather(1, chosen)
    outcomes = torch.where(easy & ~again, RIGHT, torch.where(meets & ~easy, IGNORED, WRONG))
    return outcomes[..., None, None].to(torch.int8), counts
