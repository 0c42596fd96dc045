"""Coding of boxes, matching and losses, against values by hand and slow doubles."""

import math

import pytest
import torch
from torch import Tensor

from gossamer.detection.assignment import adaptive_matching, match_priors, task_aligned
from gossamer.detection.boxes import pairwise_iou
from gossamer.detection.coding import (
    bin_loss,
    boxes_from_distances,
    decode_offsets,
    distances_from_boxes,
    encode_offsets,
    expected_distances,
    grid_points,
    prior_boxes,
    soft_bins,
)
from gossamer.detection.losses import (
    adaptive_loss,
    complete_iou_loss,
    detection_loss,
    focal_loss,
    point_loss,
    prior_loss,
    teacher_loss,
)
from gossamer.errors import BadInput

DTYPES = [torch.float32, torch.float64]


def some_boxes(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=random, dtype=dtype) * 20
    return torch.cat([low, low + 1 + torch.rand(n, 2, generator=random, dtype=dtype) * 20], 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_undone(dtype: torch.dtype) -> None:
    boxes, priors = some_boxes(9, dtype), some_boxes(9, dtype, 1)
    torch.testing.assert_close(decode_offsets(encode_offsets(boxes, priors), priors), boxes)
    points = priors[:, :2]
    torch.testing.assert_close(boxes_from_distances(distances_from_boxes(boxes, points), points), boxes)
    bins, weight = soft_bins(boxes[:, :1].expand(-1, 4), 64)
    logits = torch.full((9, 4, 64), -math.inf, dtype=dtype)
    logits.scatter_(2, bins[..., None], weight.log()[..., None])
    logits.scatter_(2, bins[..., None] + 1, (1 - weight).log()[..., None])
    torch.testing.assert_close(expected_distances(logits.flatten(1)), boxes[:, :1].expand(-1, 4))


def test_points_and_priors_lie_in_the_centers_of_their_cells() -> None:
    points, strides = grid_points([(2, 4), (1, 2)], 16, 32, torch.zeros(1))
    assert points[[0, 1, 4, 8, 9]].tolist() == [[4, 4], [12, 4], [4, 12], [8, 8], [24, 8]]
    assert strides.flatten().tolist() == [8] * 8 + [16] * 2
    shapes = [torch.tensor([[0.25, 0.5], [0.5, 0.25]]), torch.tensor([[1.0, 1.0]])]
    priors = prior_boxes([(2, 4), (1, 2)], 16, 32, shapes, torch.zeros(1))
    assert priors.shape == (18, 4)
    assert priors[:2].tolist() == [[0, 0, 8, 8], [-4, 2, 12, 6]] and priors[16].tolist() == [-8, 0, 24, 16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_of_boxes_by_hand(dtype: torch.dtype) -> None:
    true = torch.tensor([[0.0, 0, 4, 4]], dtype=dtype)
    moved = torch.tensor([[2.0, 0, 6, 4]], dtype=dtype)
    # overlap 1/3, centers 2 apart, diagonal of the hull of 6 x 4
    torch.testing.assert_close(complete_iou_loss(moved, true), torch.tensor([1 - 1 / 3 + 4 / 52], dtype=dtype))
    wide = torch.tensor([[0.0, 1, 4, 3]], dtype=dtype)
    ratio = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = 0.5 + ratio * ratio / (0.5 + ratio)
    torch.testing.assert_close(complete_iou_loss(wide, true), torch.tensor([expected], dtype=dtype))
    torch.testing.assert_close(complete_iou_loss(true, true), torch.zeros(1, dtype=dtype))


def test_the_loss_of_distances_is_least_where_its_two_bins_have_their_weights() -> None:
    distances = torch.full((1, 4), 1.25)
    logits = torch.log(torch.tensor([1e-9, 0.75, 0.25, 1e-9])).repeat(4)[None].requires_grad_()
    loss = bin_loss(logits, distances)
    torch.testing.assert_close(loss, torch.tensor([-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]))
    torch.autograd.backward(loss)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def slow_match(priors: Tensor, boxes: Tensor, valid: list[bool], threshold: float) -> list[int]:
    """SSD's matching, prior by prior."""
    overlaps = pairwise_iou(boxes, priors)
    found = []
    for prior in range(len(priors)):
        rivals = [(float(overlaps[g, prior]), -g) for g in range(len(boxes)) if valid[g]]
        best, g = max(rivals, default=(-1.0, 0))
        found.append(-g if best >= threshold else -1)
    for g in range(len(boxes)):
        if valid[g]:
            found[int(overlaps[g].argmax())] = g
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_priors_are_matched_as_by_the_loop(dtype: torch.dtype) -> None:
    priors = some_boxes(30, dtype)
    boxes = torch.stack([some_boxes(4, dtype, seed) for seed in (5, 6)])
    valid = torch.tensor([[True, True, True, False], [False, True, False, False]])
    found = match_priors(priors, boxes, valid, 0.4)
    for image in range(2):
        assert found.objects[image].tolist() == slow_match(priors, boxes[image], valid[image].tolist(), 0.4)
    assert torch.equal(found.weights, (found.objects >= 0).to(dtype))
    assert (match_priors(priors, boxes[:, :0], valid[:, :0]).objects == -1).all()


def test_task_aligned_points_are_those_whose_score_and_box_are_best_together() -> None:
    points, _ = grid_points([(8, 8)], 64, 64, torch.zeros(1))
    boxes = torch.tensor([[[0.0, 0, 64, 64], [40.0, 40, 43, 43], [0, 0, 64, 64]]])
    labels = torch.tensor([[1, 0, -1]])
    random = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 64, 2, generator=random)
    predicted = boxes_from_distances(torch.rand(1, 64, 4, generator=random) * 32 + 8, points)
    found = task_aligned(scores, predicted, points, boxes, labels)
    overlaps = pairwise_iou(boxes[0], predicted[0])
    aligned = scores[0, :, 1].sqrt() * overlaps[0] ** 6
    nearest = int((points - torch.tensor([41.5, 41.5])).square().sum(1).argmin())
    expected = set(aligned.topk(10).indices.tolist()) - {nearest}
    learned = set((found.objects[0] == 0).nonzero().flatten().tolist())
    assert learned - {nearest} == expected
    assert (found.objects[0] == 1).nonzero().tolist() in ([[nearest]], [])  # the small one has no point inside
    best = max(learned, key=lambda place: float(aligned[place]))
    torch.testing.assert_close(found.weights[0, best], overlaps[0, list(learned)].max())
    assert found.weights[found.objects < 0].sum() == 0


def dense(n: int = 2, classes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    points, strides = grid_points([(4, 4), (2, 2)], 32, 32, torch.zeros(1))
    random = torch.Generator().manual_seed(seed)
    return {
        "distances": torch.randn(n, 20, 32, generator=random).requires_grad_(),
        "logits": torch.randn(n, 20, classes, generator=random).requires_grad_(),
        "points": points.expand(n, -1, -1),
        "strides": strides.expand(n, -1, -1),
    }


def with_priors(n: int = 2, classes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "offsets": torch.randn(n, 12, 4, generator=random).requires_grad_(),
        "logits": torch.randn(n, 12, 1 + classes, generator=random).requires_grad_(),
        "priors": some_boxes(12).expand(n, -1, -1),
    }


def test_padding_crowds_and_difficult_objects_are_not_learned() -> None:
    boxes = some_boxes(3).expand(2, -1, -1)
    labels = torch.tensor([[2, -1, -1], [0, 1, -1]])
    more = {"boxes": torch.cat([boxes, boxes + 3], 1), "labels": torch.cat([labels, labels.clamp_min(0)], 1)}
    crowd = torch.tensor([[False] * 3 + [True] * 3] * 2)
    for output in (dense(), with_priors()):
        alone = detection_loss(lambda x: output, (torch.zeros(2), {"boxes": boxes, "labels": labels}))  # noqa: B023
        for name in ("crowd", "difficult"):
            given = detection_loss(lambda x: output, (torch.zeros(2), {**more, name: crowd}))  # noqa: B023
            torch.testing.assert_close(given, alone)


def test_every_part_of_the_output_learns_and_images_without_objects_teach_the_background() -> None:
    boxes, labels = some_boxes(2).expand(2, -1, -1), torch.tensor([[2, 0], [-1, -1]])
    for output, loss in ((dense(), point_loss), (with_priors(), prior_loss)):
        first = "distances" if "distances" in output else "offsets"
        grads = torch.autograd.grad(loss(output, boxes, labels), [output[first], output["logits"]])
        assert grads[0][0].any() and not grads[0][1].any() and grads[1][0].any() and grads[1][1].any()
        empty = loss(output, boxes[:, :0], labels[:, :0])
        assert torch.isfinite(empty) and empty > 0


def test_three_background_priors_count_for_each_that_learns() -> None:
    output = with_priors(1, 1)
    boxes = output["priors"][:, :1].detach()
    grads = torch.autograd.grad(prior_loss(output, boxes, torch.zeros(1, 1).long()), output["logits"])[0]
    learns = match_priors(output["priors"][0], boxes, torch.ones(1, 1).bool()).objects[0] >= 0
    assert int(grads[0].any(1).sum()) == 4 * int(learns.sum())


@pytest.mark.parametrize("made", [dense, with_priors])
def test_a_student_that_gives_what_its_teacher_gives_has_nothing_to_learn(made: object) -> None:
    student, teacher = made(seed=0), made(seed=1)  # type: ignore[operator]
    assert abs(teacher_loss(teacher, teacher, 2.0).item()) < 1e-5
    loss = teacher_loss(student, teacher, 2.0)
    first = "distances" if "distances" in student else "offsets"
    grads = torch.autograd.grad(loss, [student[first], student["logits"]])
    assert loss > 0 and all(bool(g.any()) for g in grads)
    moved = {**student, first: student[first] - 0.1 * grads[0], "logits": student["logits"] - 0.1 * grads[1]}
    assert teacher_loss(moved, teacher, 2.0) < loss
    with pytest.raises(BadInput, match="same kind"):
        teacher_loss(student, made(classes=5), 2.0)  # type: ignore[operator]


@pytest.mark.parametrize("output", [torch.zeros(2, 3), {"boxes": torch.zeros(2, 3, 4)}])
def test_networks_that_are_no_detectors_are_refused_with_what_is_missing(output: object) -> None:
    target = {"boxes": torch.zeros(2, 0, 4), "labels": torch.zeros(2, 0)}
    with pytest.raises(BadInput, match="a dict of distances, logits, points, strides or of offsets, logits, priors"):
        detection_loss(lambda x: output, (torch.zeros(2), target))
    with pytest.raises(BadInput, match="targets of a detector are dicts"):
        detection_loss(lambda x: output, (torch.zeros(2), torch.zeros(2)))


def slow_adaptive(points: Tensor, strides: Tensor, boxes: Tensor) -> list[int]:
    """ATSS, object by object."""
    best: list[tuple[float, int]] = [(-1.0, -1)] * len(points)
    for number, box in enumerate(boxes):
        center, near = (box[:2] + box[2:]) / 2, []
        for stride in sorted(set(strides.flatten().tolist())):
            there = [i for i in range(len(points)) if strides[i] == stride]
            near += sorted(there, key=lambda i: float((points[i] - center).square().sum()))[:9]
        half = strides * 4
        squares = torch.cat([points - half, points + half], 1)
        overlaps = pairwise_iou(box[None], squares)[0]
        limit = float(overlaps[near].mean() + overlaps[near].std())
        for i in near:
            x, y = points[i].tolist()
            inside = float(box[0]) < x < float(box[2]) and float(box[1]) < y < float(box[3])
            if inside and float(overlaps[i]) >= limit and float(overlaps[i]) > best[i][0]:
                best[i] = (float(overlaps[i]), number)
    return [number for _, number in best]


@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_matching_is_that_of_the_slow_loop(dtype: torch.dtype) -> None:
    points, strides = grid_points([(16, 16), (8, 8), (4, 4)], 64, 64, torch.zeros(1, dtype=dtype))
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        low = torch.rand(1, 4, 2, generator=random, dtype=dtype) * 40
        boxes = torch.cat([low, low + 6 + torch.rand(1, 4, 2, generator=random, dtype=dtype) * 30], 2)
        found = adaptive_matching(points, strides, boxes, torch.tensor([[True, True, True, False]]))
        assert found.objects[0].tolist() == slow_adaptive(points, strides, boxes[0, :3]), seed
        assert torch.equal(found.weights > 0, found.objects >= 0) and bool((found.objects >= 0).any())
    assert (adaptive_matching(points, strides, boxes[:, :0], torch.zeros(1, 0).bool()).objects == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_focal_loss_by_hand(dtype: torch.dtype) -> None:
    logits, wanted = torch.tensor([math.log(3), math.log(3)], dtype=dtype), torch.tensor([1.0, 0.0], dtype=dtype)
    expected = [0.25 * 0.25**2 * -math.log(0.75), 0.75 * 0.75**2 * -math.log(0.25)]
    torch.testing.assert_close(focal_loss(logits, wanted), torch.tensor(expected, dtype=dtype))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    torch.testing.assert_close(focal_loss(logits, wanted, 0.5, 0.0), plain / 2)


def test_the_adaptive_loss_falls_where_the_right_box_and_class_are_given() -> None:
    points, strides = grid_points([(4, 4)], 32, 32, torch.zeros(1))
    boxes, labels = torch.tensor([[[2.0, 2.0, 26.0, 26.0]]]), torch.tensor([[1]])
    learns = adaptive_matching(points, strides, boxes, labels >= 0).objects[0] >= 0
    output = {"distances": torch.zeros(1, 16, 4 * 8), "logits": torch.full((1, 16, 3), -5.0)}
    output |= {"points": points[None], "strides": strides[None]}
    target = {"boxes": boxes, "labels": labels}

    def loss(**changes: Tensor) -> float:
        return float(adaptive_loss(lambda x: output | changes, (torch.zeros(1, 3, 32, 32), target)))

    scored = output["logits"].clone()
    scored[0, learns, 1] = 5.0
    bins, weight = soft_bins(distances_from_boxes(boxes[0].expand(16, 4), points).clamp_min(0) / 8, 8)
    near = torch.full((16, 4, 8), -9.0).scatter(2, bins[..., None], weight[..., None].log().clamp_min(-9))
    near = near.scatter(2, bins[..., None] + 1, (1 - weight)[..., None].log().clamp_min(-9))
    assert bool(learns.any()) and loss(logits=scored) < loss() - 1 and loss(distances=near.view(1, 16, 32)) < loss() - 1
    with pytest.raises(BadInput, match="a dict of distances, logits, points, strides while it trains"):
        adaptive_loss(lambda x: x, (torch.zeros(1, 3, 32, 32), target))
