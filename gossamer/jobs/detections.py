"""What a report says of detectors: precision and recall, average precision of each class, detections in examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import inputs_and_labels
from gossamer.core.detector_rows import DetectedImage, DetectorRows, DrawnBox, PrecisionCurve
from gossamer.core.metric import Evaluation, Evidence
from gossamer.core.record import ClassRow
from gossamer.core.task import Task
from gossamer.detection.boxes import pairwise_iou
from gossamer.detection.evaluation import RIGHT, WRONG
from gossamer.detection.metrics import BoxMetric, truth_of, unletterboxed
from gossamer.detection.precision import Choice, final_recall, mean_precisions
from gossamer.detection.suppression import detections_of
from gossamer.jobs.diagnostics import picture
from gossamer.measure import Runner

RECALLS = 101  # of a curve
DRAWN = (0.5, 0.75)  # overlaps whose curves are drawn
FIRST, DIFFERENT = 3, 3  # examples: the first images with objects, and those on which two networks differ most
MOST_SIDE = 256  # pixels of an example
OUTCOMES = {RIGHT: "right", WRONG: "wrong"}


def gather_detections(
    scores: Mapping[str, Evaluation], runners: Mapping[str, Runner], task: Task
) -> DetectorRows | None:
    """Curves, numbers and examples of detectors; None where the task is another one.

    Args:
        scores: of each network on the data that results are reported on.
        runners: the networks themselves.
        task: data and metric.
    """
    metric = task.metric
    if not isinstance(metric, BoxMetric):
        return None
    numbers: dict[str, dict[str, float | None]] = {}
    for subject, one in scores.items():
        for name, value in metric.summary(one.evidence).items():
            numbers.setdefault(name, {})[subject] = 100 * value if math.isfinite(value) else None
    rows = DetectorRows(numbers=numbers, curves=_curves(scores, metric))
    places = examples([one.evidence for one in scores.values()], rows.shown_from)
    images = _images(places, runners, task, metric, rows.shown_from)
    return DetectorRows(numbers=numbers, curves=rows.curves, images=images)


def precision_rows(scores: Mapping[str, Evaluation], task: Task) -> list[ClassRow]:
    """Average precision of each class of which there are objects, percent."""
    metric = task.metric
    assert isinstance(metric, BoxMetric)
    found = {subject: metric.by_class(one.evidence) for subject, one in scores.items()}
    evidence = next(iter(scores.values())).evidence
    rows = []
    for number, objects in enumerate(evidence["objects"][..., 0].sum(0).tolist()):
        if objects:
            known = {subject: 100 * float(values[number]) for subject, values in found.items()}
            rows.append(ClassRow(name=_name(task, number), samples=objects, top1=known))
    return rows


def _curves(scores: Mapping[str, Evaluation], metric: BoxMetric) -> list[PrecisionCurve]:
    curves = []
    overlaps = metric.overlaps()
    places = [at for at, overlap in enumerate(overlaps) if round(overlap, 6) in DRAWN] or [0]
    choice = Choice(area=0, thresholds=tuple(places), most=metric.max_detections, score=final_recall)
    for subject, one in scores.items():
        for at, row in zip(places, mean_precisions(one.evidence, choice, RECALLS)):
            if bool(row.isfinite().all()):
                precision = [round(100 * x, 3) for x in row.tolist()]
                curves.append(PrecisionCurve(subject=subject, overlap=round(overlaps[at], 6), precision=precision))
    return curves


def examples(evidence: Sequence[Evidence], least_score: float) -> list[int]:
    """Images to draw: the first ones with objects, then those on which the numbers of right and of wrong detections
    differ most between the first network and the last.

    Args:
        evidence: of the networks on the same images.
        least_score: detections with a lower score do not count.

    Returns:
        Places of images, in the order of the data.

    Example:
        >>> none = torch.zeros(2, 0)
        >>> outcomes = torch.zeros(2, 0, 1, 1)
        >>> examples([{"objects": torch.ones(2, 1, 1), "outcomes": outcomes, "scores": none, "labels": none}], 0.3)
        [0, 1]
    """
    there = evidence[0]["objects"][..., 0].sum(1) > 0
    first = there.nonzero().flatten().tolist()[:FIRST]
    counts = [_counted(one, least_score) for one in (evidence[0], evidence[-1])]
    apart = (counts[0] - counts[1]).abs().sum(1)
    apart[first] = 0
    ranked = apart.argsort(descending=True, stable=True)[:DIFFERENT]
    return sorted([*first, *(place for place in ranked.tolist() if apart[place] > 0)])


def _counted(evidence: Evidence, least_score: float) -> Tensor:
    """Right and wrong detections of each image at the first overlap, shape (N, 2)."""
    outcomes = evidence["outcomes"][:, :, 0, 0]
    seen = (evidence["labels"] >= 0) & (evidence["scores"] >= least_score)
    return torch.stack([((outcomes == kind) & seen).sum(1) for kind in (RIGHT, WRONG)], 1)


def _images(
    places: Sequence[int], runners: Mapping[str, Runner], task: Task, metric: BoxMetric, least_score: float
) -> list[DetectedImage]:
    """The examples, out of the data once more."""
    found: list[DetectedImage] = []
    begin = 0
    for batch in task.final if places else ():
        inputs, target = inputs_and_labels(batch)
        x, end = inputs[0], begin + len(inputs[0])
        rows = [place - begin for place in places if begin <= place < end]
        if rows and len(inputs) == 1 and x.ndim == 4:
            few = {name: one[rows] for name, one in target.items()}
            drawn = {name: drawn_boxes(run(x[rows]), few, task, metric, least_score) for name, run in runners.items()}
            for i, row in enumerate(rows):
                boxes = {name: one[i] for name, one in drawn.items()}
                found.append(DetectedImage(place=begin + row, image=picture(_small(x[row])), drawn=boxes))
        begin = end
        if begin > places[-1]:
            break
    return found


def drawn_boxes(
    output: Any, target: Mapping[str, Tensor], task: Task, metric: BoxMetric, least_score: float
) -> list[list[DrawnBox]]:
    """Detections of a batch, and the objects that they miss, as they are drawn.

    Args:
        output: of a network.
        target: the objects of the same images.
        task: has the names of the classes, and inputs of the same size.
        metric: says which detections are right; of its overlaps the first counts.
        least_score: of a detection that is drawn.

    Returns:
        Boxes of each image.
    """
    found = detections_of(
        output,
        min_score=metric.min_score,
        max_overlap=metric.max_overlap,
        candidates=metric.candidates,
        max_detections=metric.max_detections,
    )
    truth, letterbox = truth_of(target)
    boxes = unletterboxed(found.boxes.double().cpu(), letterbox)
    outcomes, counts = metric.outcomes(boxes, found.labels.cpu(), truth)
    seen = (found.labels >= 0) & (found.scores >= least_score)
    right = seen & (outcomes[:, :, 0, 0] == RIGHT)
    meets = pairwise_iou(truth.boxes, boxes) >= metric.overlaps()[0]
    meets &= (truth.labels[:, :, None] == found.labels[:, None]) & right[:, None]
    missed = counts[:, :, 0] & ~meets.any(2)
    height, width = task.example_inputs[0].shape[2:]
    sides = torch.tensor([width, height, width, height])
    rows: list[list[DrawnBox]] = []
    for i in range(len(seen)):
        drawn = [
            DrawnBox(
                corners=_corners(found.boxes[i, j] / sides),
                label=_name(task, int(found.labels[i, j])),
                outcome=OUTCOMES.get(int(outcomes[i, j, 0, 0]), "ignored"),
                score=round(float(found.scores[i, j]), 3),
            )
            for j in seen[i].nonzero().flatten().tolist()
        ]
        for j in missed[i].nonzero().flatten().tolist():
            name = _name(task, int(truth.labels[i, j]))
            drawn.append(DrawnBox(corners=_corners(target["boxes"][i, j] / sides), label=name, outcome="missed"))
        rows.append(drawn)
    return rows


def _corners(box: Tensor) -> list[float]:
    return [round(float(x), 4) for x in box.clamp(0, 1)]


def _small(x_CHW: Tensor) -> Tensor:
    """An image with at most so many pixels on its longer side."""
    longest = max(x_CHW.shape[1:])
    if longest <= MOST_SIDE:
        return x_CHW
    sides = [max(1, round(side * MOST_SIDE / longest)) for side in x_CHW.shape[1:]]
    return F.interpolate(x_CHW[None].float(), sides, mode="area")[0]


def _name(task: Task, number: int) -> str:
    return task.classes[number] if number < len(task.classes) else str(number)
