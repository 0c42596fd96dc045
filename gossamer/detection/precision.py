"""Average precision and recall from outcomes of detections, for many resamples of the images at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.metric import Evidence
from gossamer.detection.evaluation import IGNORED, RIGHT

CHUNK = 2**24  # numbers of one table of resamples
TINY = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Precision and recall behind each detection that is right, of several sets of images, or at several overlaps.

    Attributes:
        precisions: not rising, shape (sets, right ones), each the largest at its recall or above.
        recalls: shape (sets, right ones).
        recall: at the end, shape (sets,).
    """

    precisions: Tensor
    recalls: Tensor
    recall: Tensor


Score = Callable[[Curves], Tensor]


def interpolated(points: int) -> Score:
    """Average precision by interpolation: the mean of the precisions at equally spaced recalls from 0 to 1.

    Args:
        points: 101 with COCO, 11 with PASCAL VOC until 2009.

    Returns:
        A function of `Curves` that gives shape (sets,).

    Example:
        >>> half = torch.tensor([[0.5]]).double()
        >>> interpolated(11)(Curves(precisions=half * 2, recalls=half, recall=half[0]))  # recalls 0 to 0.5: 6 of 11
        tensor([0.5455], dtype=torch.float64)
    """

    def score(curves: Curves) -> Tensor:
        return precision_at(curves, points).mean(1)

    return score


def precision_at(curves: Curves, points: int) -> Tensor:
    """The largest precision at each of equally spaced recalls from 0 to 1, or above it.

    Args:
        curves: of several sets.
        points: how many recalls.

    Returns:
        Shape (sets, points), 0 at recalls that are not reached.

    Example:
        >>> half = torch.tensor([[0.5]]).double()
        >>> precision_at(Curves(precisions=half * 2, recalls=half, recall=half[0]), 3)
        tensor([[1., 1., 0.]], dtype=torch.float64)
    """
    wanted = torch.linspace(0, 1, points, dtype=torch.float64).expand(len(curves.recall), -1).contiguous()
    index = torch.searchsorted(curves.recalls.contiguous(), wanted)
    with_end = torch.cat([curves.precisions, torch.zeros(len(curves.recall), 1, dtype=torch.float64)], 1)
    return with_end.gather(1, index)


def area_under_curve(curves: Curves) -> Tensor:
    """Average precision as the area under the curve, as PASCAL VOC from 2010 on.

    Args:
        curves: of several sets.

    Returns:
        Shape (sets,).

    Example:
        >>> half = torch.tensor([[0.5]]).double()
        >>> area_under_curve(Curves(precisions=half * 2, recalls=half, recall=half[0]))
        tensor([0.5000], dtype=torch.float64)
    """
    steps = curves.recalls.diff(dim=1, prepend=torch.zeros(len(curves.recall), 1, dtype=torch.float64))
    return (steps * curves.precisions).sum(1)


def final_recall(curves: Curves) -> Tensor:
    """Average recall: the share of objects that were found.

    Args:
        curves: of several sets.

    Returns:
        Shape (sets,).

    Example:
        >>> half = torch.tensor([[0.5]]).double()
        >>> final_recall(Curves(precisions=half, recalls=half, recall=half[0]))
        tensor([0.5000], dtype=torch.float64)
    """
    return curves.recall


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which part of the evidence counts.

    Attributes:
        area: position of the range of areas.
        thresholds: positions of the thresholds of overlap.
        most: detections of one class in an image.
        score: of the curves of one class at one threshold.
    """

    area: int
    thresholds: tuple[int, ...]
    most: int
    score: Score


def scores_by_class(evidence: Evidence, counts: Tensor, choice: Choice) -> Tensor:
    """The score of each class on several sets of images, the mean over thresholds.

    Args:
        evidence: `outcomes` (n, D, A, T), `scores`, `labels` and `ranks` (n, D), `objects` (n, classes, A).
        counts: how often each image is in each set, shape (sets, n).
        choice: what counts.

    Returns:
        float64, shape (sets, classes); NaN where a set has no object of a class.

    Example:
        >>> one = torch.ones(1, 1, 1, 1).to(torch.int8)
        >>> seen = {"outcomes": one, "scores": one[0, 0], "labels": one[0, 0] * 0, "ranks": one[0, 0] * 0}
        >>> choice = Choice(area=0, thresholds=(0,), most=100, score=area_under_curve)
        >>> scores_by_class({**seen, "objects": one[0]}, torch.tensor([[1], [2]]), choice)
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    classes = evidence["objects"].shape[1]
    size = max(1, CHUNK // max(1, evidence["labels"].numel() * len(choice.thresholds)))
    rows = []
    for part in torch.split(counts.double(), size):
        columns = [_class_score(evidence, part, choice, label) for label in range(classes)]
        rows.append(torch.stack(columns, 1))
    return torch.cat(rows)


def mean_precisions(evidence: Evidence, choice: Choice, points: int) -> Tensor:
    """Precision at equally spaced recalls, the mean over classes of which there are objects.

    Args:
        evidence: as `scores_by_class` has it.
        choice: which part of it counts; its score does not.
        points: how many recalls from 0 to 1.

    Returns:
        float64, shape (thresholds, points); NaN where there is no object.

    Example:
        >>> one = torch.ones(1, 1, 1, 1).to(torch.int8)
        >>> seen = {"outcomes": one, "scores": one[0, 0], "labels": one[0, 0] * 0, "ranks": one[0, 0] * 0}
        >>> choice = Choice(area=0, thresholds=(0,), most=100, score=area_under_curve)
        >>> mean_precisions({**seen, "objects": one[0]}, choice, 3)
        tensor([[1., 1., 1.]], dtype=torch.float64)
    """
    once = torch.ones(1, len(evidence["labels"]), dtype=torch.float64)
    rows = []
    for label in range(evidence["objects"].shape[1]):
        objects, curves = _class_curves(evidence, once, _cells(choice), choice.most, label)
        if float(objects[0, 0]) > 0:
            rows.append(precision_at(curves, points))
    if not rows:
        return torch.full((len(choice.thresholds), points), torch.nan, dtype=torch.float64)
    return torch.stack(rows).mean(0)


def each_score(evidence: Evidence, choices: Mapping[str, Choice]) -> dict[str, Tensor]:
    """Several scores of each class on all images; curves that scores have in common are found once.

    Args:
        evidence: as `scores_by_class` has it.
        choices: which part of it counts for each score, by name.

    Returns:
        float64, shape (classes,) by name; NaN where there is no object of a class.

    Example:
        >>> one = torch.ones(1, 1, 1, 1).to(torch.int8)
        >>> seen = {"outcomes": one, "scores": one[0, 0], "labels": one[0, 0] * 0, "ranks": one[0, 0] * 0}
        >>> choice = Choice(area=0, thresholds=(0,), most=100, score=area_under_curve)
        >>> each_score({**seen, "objects": one[0]}, {"AP": choice})
        {'AP': tensor([1.], dtype=torch.float64)}
    """
    once = torch.ones(1, len(evidence["labels"]), dtype=torch.float64)
    areas, thresholds = evidence["outcomes"].shape[2:]
    found: dict[str, list[Tensor]] = {name: [] for name in choices}
    cells = [(area, threshold) for area in range(areas) for threshold in range(thresholds)]
    for label in range(evidence["objects"].shape[1]):
        curves = {
            most: _class_curves(evidence, once, cells, most, label) for most in {c.most for c in choices.values()}
        }
        kinds = {(choice.most, choice.score) for choice in choices.values()}
        scores = {(most, score): score(curves[most][1]).view(areas, thresholds) for most, score in kinds}
        for name, choice in choices.items():
            objects = curves[choice.most][0].view(areas, thresholds)[choice.area, 0]
            own = scores[choice.most, choice.score][choice.area, list(choice.thresholds)]
            found[name].append(torch.where(objects > 0, own.mean(), torch.nan))
    return {name: torch.stack(scores) for name, scores in found.items()}


def _class_score(evidence: Evidence, weights: Tensor, choice: Choice, label: int) -> Tensor:
    """Of one class, shape (sets,)."""
    objects, curves = _class_curves(evidence, weights, _cells(choice), choice.most, label)
    scores = choice.score(curves).view(len(weights), -1).mean(1)
    return torch.where(objects[:, 0] > 0, scores, torch.nan)


def _cells(choice: Choice) -> list[tuple[int, int]]:
    return [(choice.area, threshold) for threshold in choice.thresholds]


def _class_curves(
    evidence: Evidence, weights: Tensor, cells: Sequence[tuple[int, int]], most: int, label: int
) -> tuple[Tensor, Curves]:
    """Objects of one class in each set for pairs of an area and a threshold, shape (sets, pairs), and the curves of
    each set for each pair, set by set."""
    areas, thresholds = (list(part) for part in zip(*cells))
    objects = (weights @ evidence["objects"][:, label].double())[:, areas]
    found = (evidence["labels"] == label) & (evidence["ranks"] < most)
    image = found.nonzero()[:, 0]
    order = evidence["scores"][found].argsort(descending=True, stable=True)
    outcomes = evidence["outcomes"][found][order][:, areas, thresholds]
    return objects, _curves(outcomes, weights[:, image[order]], objects)


def _curves(outcomes_DC: Tensor, weights_SD: Tensor, objects_SC: Tensor) -> Curves:
    """Of each set and pair. Only detections that are right somewhere can be the best at a recall, so that no others are
    kept."""
    right_CD, counts_CD = (outcomes_DC == RIGHT).T, (outcomes_DC != IGNORED).T
    kept = right_CD.any(0).nonzero()[:, 0]
    right_CK = right_CD[:, kept]
    hits = (weights_SD[:, None, kept] * right_CK).cumsum(2)
    counted = (weights_SD[:, None] * counts_CD).cumsum(2)[..., kept]
    precisions = torch.where(right_CK, hits / counted.clamp_min(TINY), 0.0).flatten(0, 1)
    recalls = (hits / objects_SC.clamp_min(TINY)[..., None]).flatten(0, 1)
    recall = recalls[:, -1] if len(kept) else torch.zeros_like(objects_SC).flatten()
    return Curves(precisions=precisions.flip(1).cummax(1).values.flip(1), recalls=recalls, recall=recall)
