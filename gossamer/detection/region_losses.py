"""The losses of a detector in two stages: its proposals, and what it makes of them (Faster R-CNN)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.detection.assignment import match_priors
from gossamer.detection.boxes import pairwise_iou
from gossamer.detection.coding import decode_offsets, encode_offsets

REGIONS = ("anchors", "objectness", "anchor_offsets", "proposals", "logits", "offsets")
HIGH, LOW, REGION = 0.7, 0.3, 0.5  # overlaps: an anchor learns an object, or the background; a proposal an object
ANCHORS, ANCHOR_SHARE = 256, 0.5  # of an image that learn, and at most how many of them objects
PROPOSALS, PROPOSAL_SHARE = 128, 0.25
ALIKE = 0.7  # overlap from which on a teacher's proposal is that of the student


def region_loss(output: Mapping[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """The four losses of Faster R-CNN, of anchors and of proposals: whether, or which, object; and the offsets.

    The paper learns from a random sample of the anchors and proposals of an image. Here each counts by the probability
    that it is in the sample: that is the mean over all samples, without their noise. Objects are not added to the
    proposals.

    Args:
        output: a dict of `anchors` (N, A, 4) in pixels, their `objectness` (N, A), logits, and `anchor_offsets`
            (N, A, 4); `proposals` (N, R, 4) in pixels, their `logits` (N, R, 1 + classes), the background first, and
            `offsets` (N, R, 4).
        boxes: of the objects, shape (N, G, 4), in pixels.
        labels: of the objects, shape (N, G), without the background; -1: padding.

    Returns:
        A scalar, the mean over the images.

    Example:
        >>> box = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
        >>> output = {"anchors": box, "objectness": torch.zeros(1, 1), "anchor_offsets": torch.zeros(1, 1, 4),
        ...           "proposals": box, "logits": torch.zeros(1, 1, 2), "offsets": torch.zeros(1, 1, 4)}
        >>> region_loss(output, box, torch.tensor([[0]]))  # twice the logarithm of 2
        tensor(1.3863)

    Source: Ren et al. 2015, arXiv:1506.01497, section 3.1.2; Girshick 2015, arXiv:1504.08083, section 2.3.
    """
    given = {name: output[name].float() for name in REGIONS}
    anchors, valid = given["anchors"][0], labels >= 0
    found = match_priors(anchors, boxes, valid, HIGH).objects
    near = _largest_overlap(boxes, anchors, valid)
    objects = (found >= 0).float()
    entropy = F.binary_cross_entropy_with_logits(given["objectness"], objects, reduction="none")
    shares = sampling_shares(found >= 0, (found < 0) & (near < LOW), ANCHORS, ANCHOR_SHARE)
    loss = _mean(entropy + _apart(given["anchor_offsets"], found, boxes, anchors), shares)
    proposals = given["proposals"]
    overlaps = pairwise_iou(boxes, proposals).where(valid[..., None], -1.0)
    # The matching of SSD without its rule that each object is learned somewhere: a proposal may be far from it.
    found = torch.full(proposals.shape[:2], -1, device=labels.device)
    classes = torch.zeros_like(found)
    if labels.shape[1]:
        best, which = overlaps.max(1)
        found = torch.where(best >= REGION, which, -1)
        classes = torch.where(found >= 0, labels.gather(1, which) + 1, 0)
    entropy = F.cross_entropy(given["logits"].transpose(1, 2), classes, reduction="none")
    shares = sampling_shares(found >= 0, found < 0, PROPOSALS, PROPOSAL_SHARE)
    return loss + _mean(entropy + _apart(given["offsets"], found, boxes, proposals), shares)


def sampling_shares(objects: Tensor, background: Tensor, size: int, share: float) -> Tensor:
    """The probability of each anchor or proposal to be in the sample of its image.

    Args:
        objects: which of them are objects, bool, shape (N, A).
        background: which of them are background, bool, shape (N, A).
        size: of the sample.
        share: of the sample, that objects have at most; the background fills it up.

    Returns:
        Shape (N, A).

    Example:
        >>> objects = torch.tensor([[True, False, False, False, False]])
        >>> sampling_shares(objects, ~objects, 3, 0.5)
        tensor([[1.0000, 0.5000, 0.5000, 0.5000, 0.5000]])
    """
    sure, rest = objects.sum(1, keepdim=True), background.sum(1, keepdim=True)
    taken = sure.clamp_max(int(size * share))
    filled = torch.minimum(size - taken, rest)
    return objects * (taken / sure.clamp_min(1)) + background * (filled / rest.clamp_min(1))


def _mean(losses: Tensor, shares: Tensor) -> Tensor:
    """Of the expected sample of each image, and over the images."""
    return ((losses * shares).sum(1) / shares.sum(1).clamp_min(1)).mean()


def _largest_overlap(boxes: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
    """Of each anchor with an object, shape (N, A)."""
    if not boxes.shape[1]:
        return torch.zeros(len(boxes), len(anchors), device=boxes.device)
    return pairwise_iou(boxes, anchors).where(valid[..., None], 0.0).amax(1)


def _apart(offsets: Tensor, found: Tensor, boxes: Tensor, priors: Tensor) -> Tensor:
    """Smooth L1 of the offsets of what learns an object, 0 elsewhere; shape (N, A)."""
    if not boxes.shape[1]:
        return 0 * offsets.sum(-1)
    true = boxes.gather(1, found.clamp_min(0)[..., None].expand(-1, -1, 4))
    apart = F.smooth_l1_loss(offsets, encode_offsets(true, priors), reduction="none").sum(-1)
    return torch.where(found >= 0, apart, 0.0)


def region_teacher_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """What a detector in two stages learns from another one with the same anchors.

    Objectness by cross entropy with the teacher's probabilities, less its entropy; offsets of anchors by smooth L1,
    weighted by these probabilities. A proposal of the student learns from the teacher's that overlaps it most, if by at
    least 0.7: classes by their divergence, the box by smooth L1, weighted by how little it is background.

    Args:
        student: as `region_loss` has it.
        teacher: the same of the teacher.

    Returns:
        A scalar, 0 for equal outputs.

    Example:
        >>> box = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
        >>> output = {"anchors": box, "objectness": torch.zeros(1, 1), "anchor_offsets": torch.zeros(1, 1, 4),
        ...           "proposals": box, "logits": torch.zeros(1, 1, 2), "offsets": torch.zeros(1, 1, 4)}
        >>> region_teacher_loss(output, output)
        tensor(0.)
    """
    given, asked = student["objectness"].float(), teacher["objectness"].float()
    sure = asked.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(given, sure, reduction="none")
    entropy = entropy - F.binary_cross_entropy_with_logits(asked, sure, reduction="none")
    apart = F.smooth_l1_loss(student["anchor_offsets"].float(), teacher["anchor_offsets"].float(), reduction="none")
    loss = (entropy + sure * apart.sum(-1)).sum() / sure.sum().clamp_min(1.0)
    mine, others = student["proposals"].float(), teacher["proposals"].float()
    overlap, which = pairwise_iou(mine, others).max(2)
    logs = [F.log_softmax(output["logits"].float(), -1) for output in (student, teacher)]
    expected = logs[1].gather(1, which[..., None].expand(-1, -1, logs[1].shape[-1]))
    classes = F.kl_div(logs[0], expected, reduction="none", log_target=True).sum(-1)
    boxes = decode_offsets(teacher["offsets"].float(), others).gather(1, which[..., None].expand(-1, -1, 4))
    far = F.smooth_l1_loss(student["offsets"].float(), encode_offsets(boxes, mine), reduction="none").sum(-1)
    weights = (1 - expected.exp()[..., 0]) * (overlap >= ALIKE)
    return loss + ((overlap >= ALIKE) * classes + weights * far).sum() / weights.sum().clamp_min(1.0)
