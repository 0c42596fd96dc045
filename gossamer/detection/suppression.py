"""From dense predictions to detections: non-maximum suppression in plain PyTorch, for a whole batch at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.core.outputs import plain
from gossamer.detection.boxes import pairwise_iou
from gossamer.errors import BadInput

NEEDED = "a detector gives a dict of boxes (N, A, 4) and scores (N, A, classes) in eval mode, or a list of dicts"


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in a batch of images, in each the best first.

    Attributes:
        boxes: shape (N, D, 4), in pixels.
        scores: shape (N, D).
        labels: int64, shape (N, D); -1: padding.
        classes: how many classes there are; None: the network does not say.

    Example:
        >>> none = torch.zeros(2, 0)
        >>> Detections(boxes=torch.zeros(2, 0, 4), scores=none, labels=none.long()).labels.shape
        torch.Size([2, 0])
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: int | None = None


def kept_by_nms(overlaps: Tensor, limit: float, passes: int | None = None) -> Tensor:
    """Greedy non-maximum suppression: what no better box that is kept overlaps by more than a limit.

    It is found as a fixed point: a box is kept if none of the boxes before it that are kept overlaps it. Each pass
    decides at least one more box of every chain of overlaps, so there are as many passes as the longest chain has
    boxes, instead of one for each box.

    Args:
        overlaps: intersection over union, shape (..., D, D), the boxes sorted by score, the best first.
        limit: of the overlap, in [0, 1].
        passes: how many there are, an even number; then a graph of the network holds them, and a box at the end of a
            longer chain may be kept that a better one overlaps. None: as many as it takes.

    Returns:
        bool, shape (..., D).

    Example:
        >>> kept_by_nms(torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.6], [0.0, 0.6, 1.0]]), 0.5)
        tensor([ True, False,  True])
    """
    conflicts = (overlaps > limit).triu(1)  # row: the better box
    kept = torch.ones(overlaps.shape[:-1], dtype=torch.bool, device=overlaps.device)
    if passes is not None:
        for _ in range(passes):
            kept = ~(conflicts & kept[..., :, None]).any(-2)
        return kept
    while True:
        found = ~(conflicts & kept[..., :, None]).any(-2)
        if torch.equal(found, kept):
            return kept
        kept = found


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    *,
    min_score: float = 0.01,
    max_overlap: float = 0.6,
    candidates: int = 300,
    max_detections: int = 100,
) -> Detections:
    """The best boxes of dense predictions, those of each class suppressed on their own.

    Args:
        boxes: shape (N, A, 4), in pixels.
        scores: probabilities, shape (N, A, classes); a box may be of several classes.
        min_score: detections have more.
        max_overlap: boxes of one class that overlap a better one by more are dropped.
        candidates: how many (box, class) pairs of an image are looked at.
        max_detections: of an image.

    Returns:
        The detections, shape (N, D) with D at most `max_detections`.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.5], [8.0, 8.0, 9.0, 9.0]]])
        >>> select_detections(boxes, torch.tensor([[[0.9], [0.8], [0.7]]])).scores
        tensor([[0.9000, 0.7000]])
    """
    classes = scores.shape[2]
    # NaN would sort before all numbers.
    flat = torch.where(scores > min_score, scores, -1.0).flatten(1)
    values, index = flat.topk(min(candidates, flat.shape[1]), 1)
    index, values = index[:, : (fullest := int((values >= 0).sum(1).amax()))], values[:, :fullest]
    labels = torch.where(values >= 0, index % classes, -1)
    picked = boxes.gather(1, (index // classes)[..., None].expand(-1, -1, 4))
    same = labels[:, :, None] == labels[:, None, :]
    kept = kept_by_nms(pairwise_iou(picked, picked) * same, max_overlap) & (labels >= 0)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : min(max_detections, int(kept.sum(1).amax()))]
    kept = kept.gather(1, order)
    return Detections(
        boxes=picked.gather(1, order[..., None].expand(-1, -1, 4)),
        scores=torch.where(kept, values.gather(1, order), 0.0),
        labels=torch.where(kept, labels.gather(1, order), -1),
        classes=classes,
    )


def detections_of(
    output: Any, *, min_score: float, max_overlap: float, candidates: int, max_detections: int
) -> Detections:
    """What a network found: dense predictions are selected from, lists of detections are taken as they are.

    Args:
        output: a dict, or a tuple, of boxes (N, A, 4) and scores (N, A, classes); or for each image a dict of boxes
            (D, 4), scores (D,) and labels (D,), as torchvision's detectors give it.
        min_score: as `select_detections`.
        max_overlap: as `select_detections`.
        candidates: as `select_detections`.
        max_detections: as `select_detections`.

    Returns:
        The detections.

    Raises:
        BadInput: the output is neither.

    Example:
        >>> found = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.tensor([3])}
        >>> detections_of([found], min_score=0.01, max_overlap=0.6, candidates=300, max_detections=100).labels
        tensor([[3]])
    """
    output = plain(output)
    if isinstance(output, tuple) and len(output) == 2 and all(isinstance(one, Tensor) for one in output):
        output = {"boxes": output[0], "scores": output[1]}  # of a file, which has no names
    if isinstance(output, Mapping) and {"boxes", "scores"} <= set(output):
        boxes, scores = output["boxes"], output["scores"]
        if boxes.ndim == 3 and scores.ndim == 3 and boxes.shape[2] == 4 and boxes.shape[:2] == scores.shape[:2]:
            return select_detections(
                boxes,
                scores,
                min_score=min_score,
                max_overlap=max_overlap,
                candidates=candidates,
                max_detections=max_detections,
            )
        raise BadInput(f"{NEEDED}; the shapes are {tuple(boxes.shape)} and {tuple(scores.shape)}")
    listed = isinstance(output, Sequence) and all(isinstance(one, Mapping) for one in output)
    if listed and all({"boxes", "scores", "labels"} <= set(one) for one in output):
        return _padded(output, max_detections)
    given = f"a dict of {', '.join(map(str, output))}" if isinstance(output, Mapping) else f"a {type(output).__name__}"
    raise BadInput(f"{NEEDED}; the network gives {given}")


def _padded(found: Sequence[Mapping[str, Tensor]], most: int) -> Detections:
    """Detections of single images as those of a batch."""
    orders = [one["scores"].argsort(descending=True, stable=True)[:most] for one in found]
    rows = max(map(len, orders), default=0)
    boxes, scores = torch.zeros(len(found), rows, 4), torch.zeros(len(found), rows)
    labels = torch.full((len(found), rows), -1)
    for i, (one, order) in enumerate(zip(found, orders)):
        boxes[i, : len(order)] = one["boxes"][order].cpu()
        scores[i, : len(order)] = one["scores"][order].cpu()
        labels[i, : len(order)] = one["labels"][order].cpu()
    return Detections(boxes=boxes, scores=scores, labels=labels)
