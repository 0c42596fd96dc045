"""What detectors are judged by: average precision and recall of COCO, average precision of PASCAL VOC."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import Loss, Model, inputs_and_labels, kind_and_shape
from gossamer.core.metric import Evidence, Metric
from gossamer.core.validation import KnownArguments, Range, check_fields
from gossamer.detection.boxes import box_areas
from gossamer.detection.evaluation import Truth, coco_outcomes, voc_outcomes
from gossamer.detection.losses import detection_loss
from gossamer.detection.precision import (
    Choice,
    area_under_curve,
    each_score,
    final_recall,
    interpolated,
    scores_by_class,
)
from gossamer.detection.suppression import Detections, detections_of
from gossamer.errors import BadInput

THRESHOLDS = torch.linspace(0.5, 0.95, 10, dtype=torch.float64)
SMALL, MEDIUM, HUGE = 32.0**2, 96.0**2, 1e10  # squared pixels
AREAS = torch.tensor([[0.0, HUGE], [0.0, SMALL], [SMALL, MEDIUM], [MEDIUM, HUGE]], dtype=torch.float64)
ALL = tuple(range(len(THRESHOLDS)))
AT_101_RECALLS = interpolated(101)


def _precision(area: int = 0, thresholds: tuple[int, ...] = ALL) -> Choice:
    return Choice(area=area, thresholds=thresholds, most=100, score=AT_101_RECALLS)


def _recall(area: int = 0, most: int = 100) -> Choice:
    return Choice(area=area, thresholds=ALL, most=most, score=final_recall)


# COCO's twelve numbers, in its order.
CHOICES: Mapping[str, Choice] = {
    "AP": _precision(),
    "AP50": _precision(thresholds=(0,)),
    "AP75": _precision(thresholds=(5,)),
    "AP small": _precision(1),
    "AP medium": _precision(2),
    "AP large": _precision(3),
    "AR 1": _recall(most=1),
    "AR 10": _recall(most=10),
    "AR 100": _recall(),
    "AR small": _recall(1),
    "AR medium": _recall(2),
    "AR large": _recall(3),
}
Number = Literal[
    "AP",
    "AP50",
    "AP75",
    "AP small",
    "AP medium",
    "AP large",
    "AR 1",
    "AR 10",
    "AR 100",
    "AR small",
    "AR medium",
    "AR large",
]
Outcomes = Callable[[Tensor, Tensor, Truth], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class BoxMetric(KnownArguments, Metric):
    """What the metrics of boxes have in common: detections are selected, and matched image by image.

    Targets are dicts of boxes (N, G, 4) in pixels of the network's input and labels (N, G), -1 for padding; and where
    there are some, `crowd` and `difficult` (N, G), bool, `area` (N, G) of the objects in the original image, and
    `letterbox` (N, 3): the scale and the offset to the right and down by which the original image was put into the
    input. Boxes are then judged in pixels of the original image.

    Args:
        min_score: detections have more.
        max_overlap: of two boxes of one class that overlap by more, the worse is dropped.
        candidates: boxes of an image that are looked at, the best.
        max_detections: of an image.
    """

    min_score: Annotated[float, Range(0, 1)] = 0.01
    max_overlap: Annotated[float, Range(0, 1)] = 0.6
    candidates: Annotated[int, Range(1, 100_000)] = 300
    max_detections: Annotated[int, Range(1, 10_000)] = 100

    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__)

    def outcomes(self, boxes: Tensor, labels: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        """Which detections of a batch are right, and which objects count."""
        raise NotImplementedError

    def choice(self) -> Choice:
        """What the value is made of."""
        raise NotImplementedError

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        rows = []
        for batch in loader:
            inputs, target = inputs_and_labels(batch)
            found = detections_of(
                model(*inputs),
                min_score=self.min_score,
                max_overlap=self.max_overlap,
                candidates=self.candidates,
                max_detections=self.max_detections,
            )
            rows.append(box_evidence(found, target, self.outcomes))
        return _joined(rows)

    def value(self, evidence: Evidence) -> float:
        return float(self.resampled(evidence, torch.ones(1, len(evidence["labels"]))))

    def usual_loss(self) -> Loss:
        return detection_loss

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        return scores_by_class(evidence, counts, self.choice()).nanmean(1)

    def summary(self, evidence: Evidence) -> dict[str, float]:
        """The numbers that are usual for this metric, by name; NaN where there is no object to find."""
        return {self.name: self.value(evidence)}

    def overlaps(self) -> tuple[float, ...]:
        """From which on a detection is right, in the order of the outcomes."""
        raise NotImplementedError

    def by_class(self, evidence: Evidence) -> Tensor:
        """The score of each class, shape (classes,); NaN where there is no object of it."""
        return scores_by_class(evidence, torch.ones(1, len(evidence["labels"])), self.choice())[0]


@dataclass(frozen=True, kw_only=True)
class CocoAP(BoxMetric):
    """Average precision of COCO, or another of its twelve numbers.

    AP is the mean over classes and over overlaps of 0.5, 0.55, ... 0.95. AR 10 is the recall with 10 detections of a
    class in an image. Small objects have up to 32 x 32 pixels, medium ones up to 96 x 96.

    Args:
        which: of the twelve.
        min_score: as `BoxMetric`.
        max_overlap: as `BoxMetric`.
        candidates: as `BoxMetric`.
        max_detections: as `BoxMetric`.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
        >>> network = lambda x: {"boxes": boxes, "scores": torch.tensor([[[0.9, 0.0]]])}
        >>> target = {"boxes": boxes, "labels": torch.tensor([[0]])}
        >>> CocoAP().score(network, [(torch.zeros(1, 3, 16, 16), target)])
        1.0

    Source: Lin et al. 2014, arXiv:1405.0312; pycocotools.
    """

    which: Number = "AP"

    @property
    def name(self) -> str:  # type: ignore[override]
        """`AP`."""
        return self.which

    def outcomes(self, boxes: Tensor, labels: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        return coco_outcomes(boxes, labels, truth, THRESHOLDS, AREAS)

    def choice(self) -> Choice:
        return CHOICES[self.which]

    def overlaps(self) -> tuple[float, ...]:
        return tuple(THRESHOLDS.tolist())

    def summary(self, evidence: Evidence) -> dict[str, float]:
        """All twelve numbers by name, in COCO's order; NaN where there is no object to find."""
        return {name: float(scores.nanmean()) for name, scores in each_score(evidence, CHOICES).items()}


@dataclass(frozen=True, kw_only=True)
class VocAP(BoxMetric):
    """Mean average precision of PASCAL VOC at an overlap of 0.5, difficult objects left out.

    Args:
        recalls: 11: the mean of the precisions at recalls of 0, 0.1, ... 1, as VOC 2007; None: the area under the
            curve, as VOC from 2010 on.
        threshold: overlap from which on a detection is right.
        min_score: as `BoxMetric`.
        max_overlap: as `BoxMetric`.
        candidates: as `BoxMetric`.
        max_detections: as `BoxMetric`.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
        >>> network = lambda x: {"boxes": boxes, "scores": torch.tensor([[[0.9, 0.0]]])}
        >>> target = {"boxes": boxes, "labels": torch.tensor([[0]])}
        >>> VocAP(recalls=11).score(network, [(torch.zeros(1, 3, 16, 16), target)])
        1.0

    Source: Everingham et al. 2010, International Journal of Computer Vision 88; the development kit's VOCevaldet.
    """

    recalls: Literal[11] | None = None
    threshold: Annotated[float, Range(0, 1, open_=("low",))] = 0.5

    @property
    def name(self) -> str:  # type: ignore[override]
        """`VOC mAP`, with the year's rule."""
        return "VOC mAP" if self.recalls is None else "VOC mAP, 11 points"

    def outcomes(self, boxes: Tensor, labels: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        return voc_outcomes(boxes, labels, truth, self.threshold)

    def overlaps(self) -> tuple[float, ...]:
        return (self.threshold,)

    def choice(self) -> Choice:
        score = area_under_curve if self.recalls is None else interpolated(self.recalls)
        return Choice(area=0, thresholds=(0,), most=self.max_detections, score=score)


def box_evidence(found: Detections, target: Any, outcomes: Outcomes) -> Evidence:
    """What `BoxMetric` keeps of a batch.

    Args:
        found: what a network gave.
        target: as `BoxMetric` has it.
        outcomes: matches detections and objects.

    Returns:
        For each image the outcomes of its detections (N, D, A, T), their scores, labels and ranks among those of their
        class (N, D), and how many objects of each class count (N, classes, A).

    Raises:
        BadInput: the target is no such dict, or has classes that the network does not know.
    """
    boxes, labels = found.boxes.double().cpu(), found.labels.cpu()
    truth, letterbox = truth_of(target)
    if len(truth.labels) != len(labels):
        raise BadInput(f"a batch has boxes of {len(truth.labels)} images, the network gives {len(labels)}")
    largest = int(truth.labels.amax()) if truth.labels.numel() else -1
    if found.classes is not None and largest >= found.classes:
        raise BadInput(
            f"there are boxes of class {largest} where the network has {found.classes} classes; they count from 0"
        )
    boxes = unletterboxed(boxes, letterbox)
    results, counts = outcomes(boxes, labels, truth)
    same = (labels[:, :, None] == labels[:, None, :]).tril(-1)
    classes = found.classes or max(largest, int(labels.amax()) if labels.numel() else -1, 0) + 1
    one_hot = F.one_hot(truth.labels.clamp_min(0), classes)
    objects = (one_hot[..., None] * counts[:, :, None]).sum(1)
    scores = found.scores.cpu()
    return {"outcomes": results, "scores": scores, "labels": labels, "ranks": same.sum(2), "objects": objects}


def truth_of(target: Any) -> tuple[Truth, Tensor | None]:
    """The objects of a target dict in pixels of the original images, and how these were put into the input.

    Raises BadInput where it is no such dict.
    """
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
        given = f"a dict of {', '.join(map(str, target))}" if isinstance(target, Mapping) else kind_and_shape(target)
        raise BadInput(f"targets of a detector are dicts of boxes (N, G, 4) and labels (N, G), not {given}")
    boxes, labels = target["boxes"].double().cpu(), target["labels"].long().cpu()
    if boxes.ndim != 3 or boxes.shape != (*labels.shape, 4):
        raise BadInput(
            f"targets of a detector are boxes (N, G, 4) and labels (N, G); the shapes are {tuple(boxes.shape)} and "
            f"{tuple(labels.shape)}"
        )
    letterbox = target.get("letterbox")
    boxes = unletterboxed(boxes, letterbox)
    crowd = torch.zeros_like(labels, dtype=torch.bool)
    for name in ("crowd", "difficult"):
        crowd = crowd | target[name].bool().cpu() if name in target else crowd
    areas = target["area"].double().cpu() if "area" in target else box_areas(boxes)
    return Truth(boxes=boxes, labels=labels, crowd=crowd, areas=areas), letterbox


def unletterboxed(boxes: Tensor, letterbox: Tensor | None) -> Tensor:
    """Boxes in the input as boxes in the original images.

    Args:
        boxes: shape (N, D, 4), in pixels of the input.
        letterbox: scale, offset to the right, offset down, shape (N, 3); None: the input is the image.

    Returns:
        Shape (N, D, 4), in pixels of the original image.

    Example:
        >>> unletterboxed(torch.tensor([[[4.0, 8.0, 6.0, 12.0]]]), torch.tensor([[2.0, 4.0, 0.0]]))
        tensor([[[0., 4., 1., 6.]]])
    """
    if letterbox is None:
        return boxes
    known = letterbox.to(boxes)
    return (boxes - known[:, None, [1, 2, 1, 2]]) / known[:, None, :1]


def _joined(rows: list[Evidence]) -> Evidence:
    """Evidence of batches as that of all images; as many detections and classes as the fullest has."""
    most = max(row["labels"].shape[1] for row in rows)
    classes = max(row["objects"].shape[1] for row in rows)
    joined = {}
    for name, fill in (("outcomes", 0), ("scores", 0), ("labels", -1), ("ranks", 0), ("objects", 0)):
        size = classes if name == "objects" else most
        joined[name] = torch.cat([_filled(row[name], size, fill) for row in rows])
    return joined


def _filled(x: Tensor, size: int, value: int) -> Tensor:
    """With a second dimension of a size."""
    after = (0, 0) * (x.ndim - 2)
    return F.pad(x, (*after, 0, size - x.shape[1]), value=value)
