"""What a document says of detectors: which examples, which boxes right, wrong and missed, and the curves."""

import torch
from test_detector_jobs import scenes_task

from gossamer.core.metric import Evaluation
from gossamer.detection.metrics import CocoAP
from gossamer.detection.precision import Choice, area_under_curve, mean_precisions
from gossamer.jobs.detections import drawn_boxes, examples, gather_detections, precision_rows

TRUE = torch.tensor([[[0.0, 0.0, 24.0, 24.0], [48.0, 48.0, 96.0, 96.0], [0.0, 0.0, 0.0, 0.0]]])
TARGET = {"boxes": TRUE, "labels": torch.tensor([[0, 1, -1]])}


def found(label: int = 0) -> dict[str, torch.Tensor]:
    """The first object, a box elsewhere, and one with too low a score."""
    boxes = torch.tensor([[[0.0, 0.0, 24.0, 24.0], [60.0, 0.0, 96.0, 30.0], [48.0, 48.0, 96.0, 96.0]]])
    scores = torch.zeros(1, 3, 3)
    scores[0, 0, label], scores[0, 1, 1], scores[0, 2, 1] = 0.9, 0.6, 0.2
    return {"boxes": boxes, "scores": scores}


def test_detections_are_drawn_with_what_became_of_them_and_objects_that_are_missed_too() -> None:
    [drawn] = drawn_boxes(found(), TARGET, scenes_task(), CocoAP(), 0.3)
    assert [(box.label, box.outcome) for box in drawn] == [("a", "right"), ("b", "wrong"), ("b", "missed")]
    assert drawn[0].corners == [0.0, 0.0, 0.25, 0.25] and drawn[2].corners == [0.5, 0.5, 1.0, 1.0]
    assert drawn[0].score == 0.9 and drawn[2].score is None
    [drawn] = drawn_boxes(found(2), TARGET, scenes_task(), CocoAP(), 0.3)
    assert [box.outcome for box in drawn] == ["wrong", "wrong", "missed", "missed"]


def test_examples_are_the_first_images_with_objects_and_those_that_differ_most() -> None:
    outcomes = torch.zeros(8, 2, 1, 1)
    before = {
        "objects": torch.ones(8, 1, 1),
        "outcomes": outcomes,
        "scores": torch.full((8, 2), 0.9),
        "labels": torch.zeros(8, 2),
    }
    before["objects"][0] = 0
    after = {**before, "outcomes": outcomes.clone()}
    after["outcomes"][[1, 6], 0], after["outcomes"][4] = 1, 1
    assert examples([before, before], 0.3) == [1, 2, 3]
    assert examples([before, after], 0.3) == [1, 2, 3, 4, 6]
    assert examples([before, {**after, "scores": after["scores"] / 9}], 0.95) == [1, 2, 3]


def test_the_mean_curve_is_that_of_the_classes_and_its_mean_is_average_precision() -> None:
    metric = CocoAP()
    evidence = metric.evidence(lambda x: found(), [(torch.zeros(1, 1, 96, 96), TARGET)])
    choice = Choice(area=0, thresholds=(0,), most=100, score=area_under_curve)
    [row] = mean_precisions(evidence, choice, 101)
    assert row[0] == 0.75 and row[-1] == 0.75  # class a: 1; class b: one wrong before one right
    assert row.mean().item() == CocoAP(which="AP50").value(evidence) == 0.75


def test_a_document_has_curves_numbers_classes_and_examples_of_detectors_and_nothing_of_others() -> None:
    task = scenes_task()
    empty = {"boxes": torch.zeros(8, 1, 4), "scores": torch.zeros(8, 1, 3)}
    runners = {"original": lambda x: {name: one[: len(x)] for name, one in empty.items()}}
    evidence = task.metric.evidence(runners["original"], task.final)
    scores = {"original": Evaluation(task.metric, evidence)}
    rows = gather_detections(scores, runners, task)  # type: ignore[arg-type]
    assert (
        rows is not None and rows.numbers["AP50"] == {"original": 0.0} and rows.numbers["AP large"]["original"] is None
    )
    assert [one.overlap for one in rows.curves] == [0.5, 0.75] and len(rows.images) == 3
    assert {box.outcome for image in rows.images for box in image.drawn["original"]} == {"missed"}
    known = precision_rows(scores, task)
    assert sum(row.samples for row in known) == int(evidence["objects"][..., 0].sum())
    assert all(row.top1 == {"original": 0.0} for row in known)
