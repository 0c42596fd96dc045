"""Proposals, the features of regions, and the losses of a detector in two stages."""

import math

import pytest
import torch
from torch import Tensor

from gossamer.detection.coding import decode_offsets, encode_offsets
from gossamer.detection.losses import detection_loss, gives_boxes, teacher_loss
from gossamer.detection.region_losses import region_loss, region_teacher_loss, sampling_shares
from gossamer.detection.regions import anchor_shapes, clipped_boxes, pool_regions, select_proposals
from gossamer.detection.suppression import kept_by_nms
from gossamer.errors import BadInput


def bilinear(x_HW: Tensor, y: float, x: float) -> float:
    """The value at a point, pixel centers at halves, the border continued."""
    rows, columns = x_HW.shape
    y, x = min(max(y - 0.5, 0.0), rows - 1.0), min(max(x - 0.5, 0.0), columns - 1.0)
    top, left = min(int(y), rows - 1), min(int(x), columns - 1)
    below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    down, across = y - top, x - left
    upper = float(x_HW[top, left]) * (1 - across) + float(x_HW[top, right]) * across
    lower = float(x_HW[below, left]) * (1 - across) + float(x_HW[below, right]) * across
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize("samples", [1, 2])
def test_regions_are_pooled_as_by_a_slow_loop(samples: int) -> None:
    torch.manual_seed(0)
    x, side, height, width = torch.randn(2, 3, 5, 6, dtype=torch.float64), 3, 40, 24
    low = torch.rand(2, 4, 2, dtype=torch.float64) * torch.tensor([12.0, 20.0])
    boxes = torch.cat([low, low + torch.rand(2, 4, 2, dtype=torch.float64) * torch.tensor([12.0, 20.0])], 2)
    boxes[0, 0] = torch.tensor([0.0, 0.0, 24.0, 40.0])
    found = pool_regions(x, boxes, height, width, side=side, samples=samples).reshape(2, 3, 4, side, side)
    for n, c, r, i, j in (
        (n, c, r, i, j) for n in (0, 1) for c in range(3) for r in range(4) for i in range(3) for j in range(3)
    ):
        left, top, right, bottom = boxes[n, r].tolist()
        values = [
            bilinear(
                x[n, c],
                (top + (bottom - top) * (i + (a + 0.5) / samples) / side) * 5 / height,
                (left + (right - left) * (j + (b + 0.5) / samples) / side) * 6 / width,
            )
            for a in range(samples)
            for b in range(samples)
        ]
        assert float(found[n, c, r, i, j]) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_a_region_by_hand() -> None:
    """A map of 2x2 on an image of 4x4; the lower half of the image, in two cells."""
    x = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    found = pool_regions(x, torch.tensor([[[0.0, 2.0, 4.0, 4.0]]]), 4, 4, side=2)
    # Rows at 2.5 and 3.5 pixels of the image: 0.75 of the way from the first row to the second, and below its center.
    torch.testing.assert_close(found, torch.tensor([[[[6.0, 10.0], [8.0, 12.0]]]]))


def test_gradients_of_pooled_regions() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[1.0, 2.0, 7.0, 6.0], [0.0, 0.0, 8.0, 8.0]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pool_regions(x, boxes, 8, 8, side=2, samples=2), x)


def test_anchors_have_the_areas_of_their_scales() -> None:
    found = anchor_shapes([0.1, 0.3])
    torch.testing.assert_close(found.prod(1).sqrt(), torch.tensor([0.1] * 3 + [0.3] * 3))
    torch.testing.assert_close(found[:3, 1] / found[:3, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_boxes_outside_of_the_image_become_a_pixel_at_its_border() -> None:
    boxes = torch.tensor([[-9.0, 3.0, -2.0, 5.0], [20.0, 20.0, 30.0, 30.0], [1.0, 2.0, 3.0, 4.0]])
    expected = torch.tensor([[0.0, 3.0, 1.0, 5.0], [15.0, 7.0, 16.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(clipped_boxes(boxes, 8, 16), expected)


def random_boxes(n: int) -> Tensor:
    low = torch.rand(2, n, 2) * 60
    return torch.cat([low, low + 4 + torch.rand(2, n, 2) * 30], 2)


def test_an_even_number_of_passes_keeps_all_that_greedy_suppression_keeps() -> None:
    from gossamer.detection.boxes import pairwise_iou

    torch.manual_seed(0)
    boxes = random_boxes(80)
    overlaps = pairwise_iou(boxes, boxes)
    exact = kept_by_nms(overlaps, 0.3)
    assert not (exact & ~kept_by_nms(overlaps, 0.3, 2)).any()
    assert torch.equal(exact, kept_by_nms(overlaps, 0.3, 40))


def test_proposals_are_the_best_that_greedy_suppression_keeps_in_the_order_of_the_boxes() -> None:
    torch.manual_seed(0)
    boxes, scores = random_boxes(60), torch.randn(2, 60)
    found = select_proposals(boxes, scores, count=10, candidates=50, max_overlap=0.4)
    for one, its_scores, its_found in zip(boxes, scores, found):
        kept = list[int]()
        for place in its_scores.argsort(descending=True)[:50].tolist():
            widths = [
                torch.minimum(one[place, 2:], one[k, 2:]) - torch.maximum(one[place, :2], one[k, :2]) for k in kept
            ]
            shared = [float(w.clamp_min(0).prod()) for w in widths]
            area = [float((one[k, 2:] - one[k, :2]).prod()) for k in (*kept, place)]
            if all(s / (a + area[-1] - s) <= 0.4 for s, a in zip(shared, area)):
                kept.append(place)
        assert torch.equal(its_found, one[sorted(kept[:10])])


def test_there_are_always_as_many_proposals() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]).repeat(1, 6, 1)
    scores = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0, 0.0]])
    assert select_proposals(boxes, scores, count=3, candidates=6, max_overlap=0.5).shape == (1, 3, 4)
    assert select_proposals(boxes, scores, count=9, candidates=9, max_overlap=0.5).shape == (1, 6, 4)


def test_shares_are_those_of_random_samples() -> None:
    """The mean over all samples of a loss is the loss with these weights."""
    torch.manual_seed(0)
    objects = torch.tensor([[True] * 4 + [False] * 8])
    counted = torch.tensor([[True] * 4 + [True] * 6 + [False] * 2])
    shares = sampling_shares(objects, ~objects & counted, 6, 0.5)[0]
    drawn = torch.zeros(12)
    for _ in range(2000):
        drawn[torch.randperm(4)[:3]] += 1
        drawn[4 + torch.randperm(6)[:3]] += 1
    torch.testing.assert_close(drawn / 2000, shares, rtol=0, atol=0.05)
    assert shares.sum() == 6
    few = sampling_shares(objects[:, :6], ~objects[:, :6], 100, 0.5)
    assert few.tolist() == [[1.0] * 6]


def output_of(offsets: Tensor) -> dict[str, Tensor]:
    """Two anchors: on the object, and far away; one proposal that overlaps the object by 0.5, one elsewhere."""
    anchors = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [40.0, 40.0, 48.0, 48.0]]])
    proposals = torch.tensor([[[0.0, 0.0, 8.0, 4.0], [20.0, 20.0, 30.0, 30.0]]])
    logits = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]])
    return {
        "anchors": anchors,
        "objectness": torch.tensor([[1.0, -1.0]]),
        "anchor_offsets": torch.zeros(1, 2, 4),
        "proposals": proposals,
        "logits": logits,
        "offsets": offsets,
    }


def test_the_loss_of_two_stages_by_hand() -> None:
    box, label = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[0]])
    right = encode_offsets(box, torch.tensor([0.0, 0.0, 8.0, 4.0]))
    output = output_of(torch.cat([right, torch.ones(1, 1, 4)], 1))
    anchors = math.log(1 + math.exp(-1))  # of both, the mean
    regions = (math.log(2 + math.exp(2)) - 2 + math.log(3)) / 2
    torch.testing.assert_close(region_loss(output, box, label), torch.tensor(anchors + regions))
    off = output | {"offsets": output["offsets"] + torch.tensor([3.0, 0.0, 0.0, 0.0])}
    torch.testing.assert_close(region_loss(off, box, label), torch.tensor(anchors + regions + 2.5 / 2))
    assert gives_boxes(output)
    batch = (torch.zeros(1), {"boxes": box, "labels": label})
    torch.testing.assert_close(detection_loss(lambda x: output, batch), region_loss(output, box, label))


def test_without_objects_all_is_background() -> None:
    output = output_of(torch.ones(1, 2, 4))
    none = region_loss(output, torch.zeros(1, 0, 4), torch.zeros(1, 0).long())
    padded = region_loss(output, torch.zeros(1, 2, 4), torch.full((1, 2), -1))
    torch.testing.assert_close(none, padded)
    assert none > 1


def test_an_anchor_in_between_learns_nothing() -> None:
    box, label = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[0]])
    output = output_of(torch.zeros(1, 2, 4))
    anchors = torch.cat([output["anchors"], torch.tensor([[[0.0, 0.0, 8.0, 4.0]]])], 1)  # an overlap of 0.5
    wide = {"anchors": anchors, "anchor_offsets": torch.zeros(1, 3, 4)}
    losses = [region_loss(output | wide | {"objectness": torch.tensor([[1.0, -1.0, x]])}, box, label) for x in (-9, 9)]
    assert losses[0] == losses[1] == region_loss(output, box, label)


def test_a_student_learns_from_the_teachers_proposal_that_overlaps_its_own() -> None:
    teacher = output_of(torch.full((1, 2, 4), 0.3))
    swapped = {name: teacher[name].flip(1) for name in ("proposals", "logits", "offsets")}
    for output in (teacher, teacher | swapped):
        torch.testing.assert_close(region_teacher_loss(output, teacher), torch.tensor(0.0), rtol=0, atol=1e-5)
    assert region_teacher_loss(teacher | {"logits": teacher["logits"].roll(1, 2)}, teacher) > 0.1
    moved = torch.tensor([0.5, 0.0, 0.5, 0.0])
    boxes = decode_offsets(teacher["offsets"], teacher["proposals"])
    near = teacher["proposals"] + moved
    same_boxes = teacher | {"proposals": near, "offsets": encode_offsets(boxes, near)}
    torch.testing.assert_close(teacher_loss(same_boxes, teacher, 2.0), torch.tensor(0.0), rtol=0, atol=1e-5)
    for student in (teacher | {"proposals": torch.zeros(1, 3, 4)}, {"logits": torch.zeros(1, 2, 3)}):
        with pytest.raises(BadInput, match="detectors of the same kind"):
            teacher_loss(student, teacher, 2.0)
