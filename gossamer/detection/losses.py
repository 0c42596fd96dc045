"""Losses of detectors, and what they learn from a teacher."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import Model, inputs_and_labels
from gossamer.core.outputs import plain
from gossamer.detection.assignment import Assignment, adaptive_matching, match_priors, task_aligned
from gossamer.detection.boxes import box_areas, centers_and_sizes
from gossamer.detection.coding import (
    bin_loss,
    boxes_from_distances,
    distances_from_boxes,
    encode_offsets,
    expected_distances,
)
from gossamer.detection.region_losses import REGIONS, region_loss, region_teacher_loss
from gossamer.errors import BadInput

# What a detector gives while it trains.
POINTS = ("distances", "logits", "points", "strides")
PRIORS = ("offsets", "logits", "priors")
BOX_WEIGHT, CLASS_WEIGHT, BIN_WEIGHT = 7.5, 0.5, 1.5  # of the terms of `point_loss`
NEGATIVES = 3  # background priors for each that learns an object


def gives_boxes(output: Any) -> bool:
    """Whether an output is what a detector learns from.

    Args:
        output: of a network.

    Returns:
        True for a dict as `detection_loss` takes it.

    Example:
        >>> gives_boxes(torch.zeros(1, 10))
        False
    """
    names = set(output) if isinstance(output, Mapping) else set()
    return any(names >= set(kind) for kind in (POINTS, PRIORS, REGIONS))


def complete_iou_loss(given: Tensor, true: Tensor) -> Tensor:
    """1 - CIoU: overlap, distance of the centers and ratio of the sides.

    Args:
        given: boxes, shape (..., 4).
        true: boxes of the same shape.

    Returns:
        Shape (...), 0 for equal boxes.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
        >>> complete_iou_loss(box, box).round(decimals=4)
        tensor([0.])

    Source: Zheng et al. 2020, arXiv:1911.08287.
    """
    sides = (torch.minimum(given[..., 2:], true[..., 2:]) - torch.maximum(given[..., :2], true[..., :2])).clamp_min(0)
    shared = sides.prod(-1)
    overlap = shared / (box_areas(given) + box_areas(true) - shared).clamp_min(1e-7)
    hull = torch.maximum(given[..., 2:], true[..., 2:]) - torch.minimum(given[..., :2], true[..., :2])
    (center, size), (true_center, true_size) = centers_and_sizes(given), centers_and_sizes(true)
    apart = (center - true_center).square().sum(-1) / hull.square().sum(-1).clamp_min(1e-7)
    angles = [torch.atan(s[..., 0] / s[..., 1].clamp_min(1e-7)) for s in (size, true_size)]
    ratio = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    weight = (ratio / (1 - overlap + ratio).clamp_min(1e-7)).detach()
    return 1 - overlap + apart + weight * ratio


def detection_loss(model: Model, batch: Any) -> Tensor:
    """The loss of a detector, by what it gives while it trains.

    Args:
        model: gives `distances` (N, A, 4 * bins), `logits` (N, A, classes), `points` (N, A, 2) and `strides`
            (N, A, 1), and learns by `point_loss`; or `offsets` (N, A, 4), `logits` (N, A, 1 + classes), the background
            first, and `priors` (N, A, 4), and learns by `prior_loss`; or in two stages what `region_loss` takes.
        batch: inputs, and a dict of boxes (N, G, 4) and labels (N, G), as `CocoAP` takes it.

    Returns:
        A scalar.

    Raises:
        BadInput: the network gives none of these.

    Example:
        >>> target = {"boxes": torch.zeros(1, 0, 4), "labels": torch.zeros(1, 0)}
        >>> detection_loss(torch.nn.Identity(), (torch.zeros(1, 10), target))
        Traceback (most recent call last):
        gossamer.errors.BadInput: a detector gives a dict of distances, logits, points, strides or ...
    """
    inputs, target = inputs_and_labels(batch)
    output = plain(model(*inputs))
    boxes, labels = objects_to_learn(target)
    if gives_boxes(output):
        losses = {"distances": point_loss, "priors": prior_loss, "proposals": region_loss}
        return next(loss for name, loss in losses.items() if name in output)(output, boxes, labels)
    named = isinstance(output, Mapping)
    given = f"a dict of {', '.join(map(str, output))}" if named else f"a {type(output).__name__}"
    raise BadInput(
        f"a detector gives a dict of {', '.join(POINTS)} or of {', '.join(PRIORS)} or of {', '.join(REGIONS)} while it "
        f"trains; this network gives {given}"
    )


def objects_to_learn(target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes and labels of a target, the label -1 for what is not learned: padding, crowds, difficult objects.

    Raises BadInput where the target is no dict of boxes.
    """
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
        raise BadInput("targets of a detector are dicts of boxes (N, G, 4) and labels (N, G)")
    labels = target["labels"].long()
    for name in ("crowd", "difficult"):
        labels = labels.masked_fill(target[name].bool(), -1) if name in target else labels
    return target["boxes"].float(), labels


def point_loss(output: Mapping[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """Task-aligned loss of an anchor-free detector: cross entropy of all scores, CIoU and distances of what learns.

    Args:
        output: as `detection_loss` has it.
        boxes: of the objects, shape (N, G, 4), in pixels.
        labels: of the objects, shape (N, G); -1: padding.

    Returns:
        A scalar: 0.5 times the cross entropy, 7.5 times 1 - CIoU and 1.5 times the loss of the distances, each a sum
        over the batch divided by the sum of the weights of the assignment.

    Example:
        >>> shapes = {"distances": (1, 1, 8), "logits": (1, 1, 2), "points": (1, 1, 2), "strides": (1, 1, 1)}
        >>> output = {name: torch.ones(shape) for name, shape in shapes.items()}
        >>> point_loss(output, torch.zeros(1, 0, 4), torch.zeros(1, 0).long())
        tensor(1.3133)
    """
    logits, points, predicted = _predictions(output)
    found = task_aligned(logits.detach().sigmoid(), predicted.detach(), points, boxes, labels)
    wanted = _wanted(found, logits, labels)
    total = found.weights.sum().clamp_min(1.0)
    loss = CLASS_WEIGHT * F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / total
    return loss + _loss_of_boxes(output, predicted, found, boxes) / total


def adaptive_loss(model: Model, batch: Any) -> Tensor:
    """The loss of ATSS for a detector of points: focal loss of all scores, CIoU and distances of what learns.

    Which points learn an object depends on where they lie, and not on what they predict as in `point_loss`. Use it as
    the loss of a task.

    Args:
        model: gives `distances`, `logits`, `points` and `strides`, as `detection_loss` has it.
        batch: inputs, and a dict of boxes (N, G, 4) and labels (N, G).

    Returns:
        A scalar: the sum over the batch divided by the number of points that learn an object.

    Raises:
        BadInput: the network gives no points.

    Example:
        >>> shapes = {"distances": (1, 1, 8), "logits": (1, 1, 2), "points": (1, 1, 2), "strides": (1, 1, 1)}
        >>> output = {name: torch.zeros(shape) for name, shape in shapes.items()}
        >>> target = {"boxes": torch.zeros(1, 0, 4), "labels": torch.zeros(1, 0)}
        >>> adaptive_loss(lambda x: output, (torch.zeros(1, 3, 8, 8), target))
        tensor(0.2599)

    Source: Zhang et al. 2020, arXiv:1912.02424; Lin et al. 2017, arXiv:1708.02002 (focal loss).
    """
    inputs, target = inputs_and_labels(batch)
    output = plain(model(*inputs))
    if not isinstance(output, Mapping) or not set(output) >= set(POINTS):
        raise BadInput(f"adaptive_loss: a detector gives a dict of {', '.join(POINTS)} while it trains")
    boxes, labels = objects_to_learn(target)
    logits, points, predicted = _predictions(output)
    found = adaptive_matching(points, output["strides"][0].float(), boxes, labels >= 0)
    total = found.weights.sum().clamp_min(1.0)
    loss = focal_loss(logits, _wanted(found, logits, labels)).sum() / total
    return loss + _loss_of_boxes(output, predicted, found, boxes) / total


def focal_loss(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Cross entropy of independent classes in which what is right already counts little.

    Args:
        logits: any shape.
        wanted: probabilities of the same shape, 0 or 1.
        alpha: weight of the ones; zeros have the rest.
        gamma: power of how wrong a score is.

    Returns:
        The loss of each score, of the same shape.

    Example:
        >>> focal_loss(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0])).round(decimals=6)
        tensor([4.3322e-02, 1.0000e-06])

    Source: Lin et al. 2017, arXiv:1708.02002, equation 5.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    wrong = (logits.sigmoid() - wanted).abs()
    weight: Tensor = alpha * wanted + (1 - alpha) * (1 - wanted)
    return weight * wrong**gamma * entropy


def _predictions(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, points and predicted boxes of a detector of points."""
    points, strides = output["points"][0].float(), output["strides"][0].float()
    boxes = boxes_from_distances(expected_distances(output["distances"].float()) * strides, points)
    return output["logits"].float(), points, boxes


def _wanted(found: Assignment, logits: Tensor, labels: Tensor) -> Tensor:
    """The score of each class that each point learns."""
    image, place = (found.objects >= 0).nonzero(as_tuple=True)
    wanted = torch.zeros_like(logits)
    wanted[image, place, labels[image, found.objects[image, place]]] = found.weights[image, place].to(wanted)
    return wanted


def _loss_of_boxes(output: Mapping[str, Tensor], predicted: Tensor, found: Assignment, boxes: Tensor) -> Tensor:
    """CIoU and distances of the points that learn an object, a weighted sum."""
    distances = output["distances"].float()
    image, place = (found.objects >= 0).nonzero(as_tuple=True)
    if not len(image):
        return 0 * distances.sum()
    true, weights = boxes[image, found.objects[image, place]], found.weights[image, place]
    box = (complete_iou_loss(predicted[image, place], true) * weights).sum()
    points, strides = output["points"][0].float(), output["strides"][0].float()
    cells = distances_from_boxes(true, points[place]) / strides[place]
    return BOX_WEIGHT * box + BIN_WEIGHT * (bin_loss(distances[image, place], cells) * weights).sum()


def prior_loss(output: Mapping[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """The loss of SSD: cross entropy with the hardest background, and smooth L1 of the offsets of what learns.

    Args:
        output: as `detection_loss` has it.
        boxes: of the objects, shape (N, G, 4), in pixels.
        labels: of the objects, shape (N, G), without the background; -1: padding.

    Returns:
        A scalar: the sum over the batch divided by the number of priors that learn an object.

    Example:
        >>> output = {"offsets": torch.zeros(1, 1, 4), "logits": torch.zeros(1, 1, 2), "priors": torch.ones(1, 1, 4)}
        >>> prior_loss(output, torch.zeros(1, 0, 4), torch.zeros(1, 0).long())
        tensor(0.6931)

    Source: Liu et al. 2016, SSD, arXiv:1512.02325, section 2.2.
    """
    logits, offsets, priors = output["logits"].float(), output["offsets"].float(), output["priors"][0].float()
    found = match_priors(priors, boxes, labels >= 0)
    learns = found.objects >= 0
    which = found.objects.clamp_min(0)
    wanted = torch.zeros_like(which)
    if labels.shape[1]:
        wanted = torch.where(learns, labels.gather(1, which) + 1, 0)
    entropy = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    # An image without objects teaches by its hardest background, too.
    quota = (NEGATIVES * learns.sum(1, keepdim=True)).clamp_min(NEGATIVES)
    hardness = entropy.detach().masked_fill(learns, -1.0)
    ranks = hardness.argsort(1, descending=True).argsort(1)
    hard = (ranks < quota) & ~learns
    total = learns.sum().clamp_min(1)
    loss = (entropy * (learns | hard)).sum() / total
    if not bool(learns.any()):
        return loss + 0 * offsets.sum()
    true = boxes.gather(1, which[..., None].expand(-1, -1, 4))
    apart = F.smooth_l1_loss(offsets, encode_offsets(true, priors), reduction="none").sum(-1)
    return loss + (apart * learns).sum() / total


def teacher_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], temperature: float) -> Tensor:
    """What a detector learns from another one of the same points or priors, in the view of its own loss.

    Classes by cross entropy with the teacher's probabilities, less its entropy; boxes by the divergence of the
    distributions of distances (localization distillation) or, with priors, by smooth L1 of the offsets. Boxes are
    weighted by the teacher's largest probability of a class, and everything is divided by the sum of these. A detector
    in two stages learns by `region_teacher_loss`.

    Args:
        student: what it gives while it trains, as `detection_loss` has it.
        teacher: the same of the teacher.
        temperature: of the distributions of distances.

    Returns:
        A scalar, 0 for equal outputs.

    Raises:
        BadInput: the two differ in their parts or shapes.

    Example:
        >>> output = {"offsets": torch.zeros(1, 1, 4), "logits": torch.zeros(1, 1, 2), "priors": torch.ones(1, 1, 4)}
        >>> teacher_loss(output, output, 4.0)
        tensor(0.)

    Source: Zheng et al. 2022, Localization Distillation for Dense Object Detection, arXiv:2102.12252.
    """
    kind = next((one for one in (POINTS, PRIORS, REGIONS) if set(student) >= set(one)), None)
    if kind is None or not set(teacher) >= set(kind) or any(student[k].shape != teacher[k].shape for k in kind):
        raise BadInput("distillation: student and teacher must be detectors of the same kind, points and classes")
    if kind is REGIONS:
        return region_teacher_loss(student, teacher)
    given, asked = student["logits"].float(), teacher["logits"].float()
    if kind is POINTS:
        sure = asked.sigmoid()
        classes = F.binary_cross_entropy_with_logits(given, sure, reduction="none")
        classes = (classes - F.binary_cross_entropy_with_logits(asked, sure, reduction="none")).sum(-1)
        weights = sure.amax(-1)
        sides = (*asked.shape[:2], 4, student["distances"].shape[-1] // 4)
        logs = [F.log_softmax(x["distances"].float().reshape(sides) / temperature, -1) for x in (student, teacher)]
        boxes = F.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(-1).mean(-1) * temperature**2
    else:
        logs = [F.log_softmax(x, -1) for x in (given, asked)]
        classes = F.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(-1)
        weights = 1 - logs[1].exp()[..., 0]
        boxes = F.smooth_l1_loss(student["offsets"].float(), teacher["offsets"].float(), reduction="none").sum(-1)
    return (classes + weights * boxes).sum() / weights.sum().clamp_min(1.0)
