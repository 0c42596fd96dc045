"""Average precision against slow doubles and against pycocotools, where that is installed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.detection._cases import evidence_of, pycocotools_numbers, random_case
from gossamer.core.metric import Evaluation, Evidence
from gossamer.detection.boxes import box_areas, pairwise_iou
from gossamer.detection.evaluation import Truth, coco_outcomes
from gossamer.detection.metrics import CHOICES, CocoAP, VocAP, unletterboxed
from gossamer.detection.suppression import kept_by_nms, select_detections
from gossamer.errors import BadInput
from gossamer.measure import paired_drop
from gossamer.measure.accuracy import bootstrap


@pytest.mark.parametrize("first", range(2))
def test_the_twelve_numbers_are_those_of_pycocotools(first: int) -> None:
    pytest.importorskip("pycocotools.coco")
    for seed in range(3 * first, 3 * first + 3):
        annotations, results = random_case(seed)
        found = CocoAP().summary(evidence_of(annotations, results))
        expected = pycocotools_numbers(annotations, results)
        got = np.nan_to_num(list(found.values()), nan=-1.0)  # -1 there: no object to find
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")


def test_average_precision_of_a_case_that_is_counted_by_hand() -> None:
    """Three objects: found at 0.9, a miss at 0.8, found at 0.7. Precisions 1 and 2/3 at recalls 1/3 and 2/3."""
    truth = torch.tensor([[[0.0, 0, 40, 40], [50, 0, 90, 40], [0, 50, 40, 90]]])
    found = torch.tensor([[[0.0, 0, 40, 40], [50, 50, 90, 90], [50, 0, 90, 40]]])
    target = {"boxes": truth, "labels": torch.zeros(1, 3).long()}
    output = {"boxes": found, "scores": torch.tensor([[[0.9], [0.8], [0.7]]])}
    loader = [(torch.zeros(1, 1, 96, 96), target)]

    def model(x: Tensor) -> Any:
        return output

    assert CocoAP().score(model, loader) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert VocAP().score(model, loader) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert VocAP(recalls=11).score(model, loader) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert CocoAP().score(lambda x: tuple(output.values()), loader) == CocoAP().score(model, loader)  # of a file
    assert CocoAP(which="AR 1").score(model, loader) == pytest.approx(1 / 3)
    assert CocoAP(which="AR 100").score(model, loader) == pytest.approx(2 / 3)


def test_a_difficult_object_of_voc_counts_neither_when_found_nor_when_missed() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]])
    target = {
        "boxes": boxes,
        "labels": torch.zeros(1, 3).long(),
        "difficult": torch.tensor([[False, True, True]]),
    }
    output = {"boxes": boxes[:, [1, 0]], "scores": torch.tensor([[[0.9], [0.8]]])}
    assert VocAP().score(lambda x: output, [(torch.zeros(1, 1, 64, 64), target)]) == 1.0


def test_a_second_detection_of_one_object_is_wrong_also_where_voc_meets_a_worse_object_too() -> None:
    truth = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 14]]])
    output = {
        "boxes": torch.tensor([[[0.0, 0, 10, 10.5], [0, 0, 10, 10.25]]]),
        "scores": torch.tensor([[[0.9], [0.8]]]),
    }
    target = {"boxes": truth, "labels": torch.zeros(1, 2).long()}
    loader = [(torch.zeros(1, 1, 64, 64), target)]
    assert VocAP(max_overlap=1.0).score(lambda x: output, loader) == 0.5
    assert CocoAP(which="AP50", max_overlap=1.0).score(lambda x: output, loader) == 1.0  # COCO gives it the free one


def test_resamples_are_values_of_repeated_images() -> None:
    evidence = evidence_of(*random_case(3))
    counts = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 2, 1, 0, 3, 0], [2, 2, 2, 2, 2, 2]])
    for metric in (CocoAP(), CocoAP(which="AP50")):
        rows = [
            metric.value({k: v[np.repeat(np.arange(6), row.numpy())] for k, v in evidence.items()}) for row in counts
        ]
        torch.testing.assert_close(metric.resampled(evidence, counts), torch.tensor(rows).double(), atol=0.02, rtol=0)
        assert metric.resampled(evidence, counts)[0] == metric.resampled(evidence, counts)[2]


def simulated(seed: int, images: int, classes: int = 8) -> Evidence:
    """A weak detector: one object in an image, found more often than not, among two wrong detections of its class."""
    random = torch.Generator().manual_seed(seed)
    found = (torch.rand(images, 1, generator=random) < 0.6).to(torch.int8)
    outcomes = torch.cat([found, torch.zeros(images, 2, dtype=torch.int8)], 1)
    scores = (torch.randn(images, 3, generator=random) + 1.5 * outcomes).sigmoid()
    kinds = torch.randint(classes, (images, 1), generator=random)
    objects = torch.nn.functional.one_hot(kinds[:, 0], classes)[..., None]
    seen = {"scores": scores, "labels": kinds.expand(-1, 3), "ranks": torch.arange(3).expand(images, 3)}
    return {"outcomes": outcomes[..., None, None], "objects": objects, **seen}


def test_the_interval_of_ap_holds_the_true_value_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """AP is too high on few images, and on resamples of them once more."""
    monkeypatch.setattr("gossamer.measure.accuracy.RESAMPLES", 100)
    metric = CocoAP(which="AP50")
    true = 100 * metric.value(simulated(0, 50_000))
    ends = [bootstrap(Evaluation(metric, simulated(seed, 150))) for seed in range(1, 61)]
    assert sum(low <= true <= high for low, high in ends) >= 50  # percentiles: 41 of 60


def test_two_detectors_are_compared_in_points_of_ap() -> None:
    one = Evaluation(CocoAP(), evidence_of(*random_case(3)))
    drop = paired_drop(one, one)
    assert drop.points == 0 and CocoAP().lost(0.5, 0.495) == pytest.approx(0.5)


def slow_nms(boxes: Tensor, limit: float) -> list[bool]:
    """One after the other."""
    kept: list[bool] = []
    for i in range(len(boxes)):
        rivals = [j for j in range(i) if kept[j]]
        kept.append(not any(float(pairwise_iou(boxes[i : i + 1], boxes[j : j + 1])) > limit for j in rivals))
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppression_keeps_what_the_loop_keeps(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    low = torch.rand(20, 2, generator=random, dtype=dtype) * 10
    boxes = torch.cat([low, low + torch.rand(20, 2, generator=random, dtype=dtype) * 10], 1)
    for limit in (0.0, 0.4):
        assert kept_by_nms(pairwise_iou(boxes, boxes), limit).tolist() == slow_nms(boxes, limit)


def test_only_boxes_of_one_class_suppress_one_another_and_the_best_come_first() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]]])
    scores = torch.tensor([[[0.3, 0.9], [0.8, 0.2], [0.0, 0.95]]])
    found = select_detections(boxes, scores)
    torch.testing.assert_close(found.scores, torch.tensor([[0.95, 0.9, 0.8]]))
    assert found.labels.tolist() == [[1, 1, 0]]
    assert select_detections(boxes, scores, max_detections=2).scores.shape == (1, 2)
    assert select_detections(boxes, scores * torch.nan).labels.shape == (1, 0)


def test_images_with_fewer_detections_are_padded() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [8, 8, 9, 9]]]).repeat(2, 1, 1)
    found = select_detections(boxes, torch.tensor([[[0.9], [0.8]], [[0.0], [0.7]]]))
    assert found.labels.tolist() == [[0, 0], [0, -1]] and found.boxes[1, 0].tolist() == [8, 8, 9, 9]


def test_boxes_are_judged_in_the_original_image() -> None:
    original = torch.tensor([[[2.0, 4.0, 40.0, 44.0]]])
    letterbox = torch.tensor([[0.25, 3.0, 5.0]])
    inside = original * 0.25 + torch.tensor([3.0, 5.0, 3.0, 5.0])
    torch.testing.assert_close(unletterboxed(inside, letterbox), original)
    target = {"boxes": inside, "labels": torch.tensor([[0]]), "letterbox": letterbox}
    output = {"boxes": inside, "scores": torch.tensor([[[0.9]]])}
    evidence = CocoAP().evidence(lambda x: output, [(torch.zeros(1, 1, 16, 16), target)])
    summary = CocoAP().summary(evidence)  # 38 x 40 pixels in the original, 9.5 x 10 in the input
    assert summary["AP medium"] == 1 and np.isnan(summary["AP small"])


def bad_targets() -> Iterator[tuple[Any, str]]:
    boxes = torch.zeros(1, 1, 4)
    yield torch.tensor([1]), "dicts of boxes"
    yield {"boxes": boxes}, "dicts of boxes"
    yield {"boxes": boxes, "labels": torch.zeros(1, 2)}, r"shapes are \(1, 1, 4\) and \(1, 2\)"
    yield {"boxes": boxes, "labels": torch.tensor([[7]])}, "class 7 where the network has 1 classes"
    yield {"boxes": boxes.repeat(2, 1, 1), "labels": torch.zeros(2, 1)}, "boxes of 2 images, the network gives 1"


@pytest.mark.parametrize(("target", "message"), list(bad_targets()))
def test_targets_that_are_none_are_refused(target: Any, message: str) -> None:
    output = {"boxes": torch.zeros(1, 1, 4), "scores": torch.ones(1, 1, 1)}
    with pytest.raises(BadInput, match=message):
        CocoAP().score(lambda x: output, [(torch.zeros(1, 1, 8, 8), target)])


@pytest.mark.parametrize("output", [torch.zeros(1, 5), {"logits": torch.zeros(1, 5)}, [torch.zeros(3, 4)]])
def test_outputs_of_networks_that_are_no_detectors_are_refused(output: Any) -> None:
    target = {"boxes": torch.zeros(1, 1, 4), "labels": torch.zeros(1, 1)}
    with pytest.raises(BadInput, match="a detector gives"):
        CocoAP().score(lambda x: output, [(torch.zeros(1, 1, 8, 8), target)])


def test_crowds_take_any_number_of_detections_by_the_share_inside() -> None:
    truth = Truth(
        boxes=torch.tensor([[[0.0, 0, 100, 100]]]).double(),
        labels=torch.zeros(1, 1),
        crowd=torch.ones(1, 1).bool(),
        areas=torch.full((1, 1), 1e4),
    )
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [95, 95, 110, 110]]]).double()
    assert box_areas(boxes).tolist() == [[100, 100, 225]]
    ranges = torch.tensor([[0.0, 1e10]])
    outcomes, counts = coco_outcomes(boxes, torch.zeros(1, 3), truth, torch.tensor([0.5]), ranges)
    assert outcomes.flatten().tolist() == [2, 2, 0] and not counts.any()


def test_every_number_can_be_the_metric() -> None:
    evidence = evidence_of(*random_case(1))
    summary = CocoAP().summary(evidence)
    for name in CHOICES:
        assert CocoAP(which=name).value(evidence) == pytest.approx(summary[name], nan_ok=True)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="unknown CocoAP which 'AP5'"):
        CocoAP(which="AP5")  # type: ignore[arg-type]
