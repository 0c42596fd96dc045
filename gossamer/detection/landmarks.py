"""Landmarks: key points of a face or another object, and how far they are off."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from gossamer.core.batches import Loss, Model, inputs_and_labels
from gossamer.core.metric import Evidence, MeanMetric
from gossamer.core.outputs import first_tensor
from gossamer.core.validation import KnownArguments, Range, check_fields
from gossamer.errors import BadInput

_SIDES = (0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089)  # eyes, ears, shoulders, ..., knees, ankles
PEOPLE = (0.026, *(deviation for deviation in _SIDES for _ in range(2)))  # the nose, and what there are two of


def landmark_errors(output: Any, target: Any, between: tuple[int, int] | None) -> Tensor:
    """Normalized error of each sample: the mean distance of its landmarks over a length.

    Args:
        output: of the network, shape (N, L, 2) or (N, 2 L) of x and y by turns, in pixels.
        target: shape (N, L, 2), in pixels; or a dict of `points` (N, L, 2) and `lengths` (N,), in pixels. A landmark
            of NaN is not annotated, and counts nothing.
        between: two landmarks whose true distance is the length, such as the outer corners of the eyes; None: that of
            the dict, or the root of the area of the box around the true landmarks.

    Returns:
        Shape (N,).

    Raises:
        BadInput: shapes differ, or a length is not greater than 0.

    Example:
        >>> import torch
        >>> true = torch.tensor([[[0.0, 0.0], [10.0, 0.0]]])
        >>> landmark_errors(true + 1, true, (0, 1))
        tensor([0.1414])

    Source: Sagonas et al. 2013, 300 Faces in-the-Wild Challenge, ICCV workshops.
    """
    lengths = target.get("lengths") if isinstance(target, dict) else None
    true = target["points"] if isinstance(target, dict) else target
    given = first_tensor(output)
    true = true.to(given)
    if true.ndim != 3 or true.shape[2] != 2 or given.numel() != true.numel() or len(given) != len(true):
        shapes = f"{tuple(given.shape)} and {tuple(true.shape)}"
        raise BadInput(f"landmarks need outputs (N, L, 2) or (N, 2 L) and targets (N, L, 2); they are {shapes}")
    known = ~true.isnan().any(2)
    if not bool(known.any(1).all()):
        raise BadInput(f"landmarks: sample {int((~known.any(1)).nonzero()[0])} has none that is annotated")
    if between is not None:
        if not all(0 <= place < true.shape[1] for place in between):
            raise BadInput(f"between = {between}: there are landmarks 0 to {true.shape[1] - 1}")
        lengths = (true[:, between[0]] - true[:, between[1]]).norm(dim=1)
    elif lengths is None:
        high, low = (true.nan_to_num(nan=-torch.inf).amax(1), true.nan_to_num(nan=torch.inf).amin(1))
        lengths = (high - low).prod(1).sqrt()
    lengths = lengths.to(given)
    if not bool((lengths > 0).all()):
        wrong = int((~(lengths > 0)).nonzero()[0])
        raise BadInput(f"landmarks: the length of sample {wrong} is {float(lengths[wrong])}; it must be greater than 0")
    apart = (given.reshape(true.shape) - torch.where(known[..., None], true, 0)).norm(dim=2)
    errors: Tensor = torch.where(known, apart, 0).sum(1) / known.sum(1) / lengths
    return errors


@dataclass(frozen=True, kw_only=True)
class LandmarkError(KnownArguments, MeanMetric):
    """Normalized mean error of landmarks, in percent of a length; lower is better.

    Args:
        between: as `landmark_errors`.
        name: in tables and reports.
        points: what one point is: 0.001 is a tenth of a percent of the length.

    Example:
        >>> import torch
        >>> true = torch.tensor([[[0.0, 0.0], [10.0, 0.0]]])
        >>> metric = LandmarkError(between=(0, 1))
        >>> metric.text(metric.score(lambda x: true + 1, [(torch.zeros(1, 1, 8, 8), true)]))
        '14.14 %'
    """

    between: tuple[int, int] | None = None
    name: str = "landmark error"
    points: float = 0.001
    higher_is_better = False

    def batch(self, output: Any, target: Any) -> Evidence:
        return {"score": landmark_errors(output, target, self.between)}

    def usual_loss(self) -> Loss:
        return landmark_loss


@dataclass(frozen=True, kw_only=True)
class LandmarkFailures(KnownArguments, MeanMetric):
    """The share of samples whose normalized error is above a limit; lower is better.

    Args:
        limit: of the error, 0.1 being a tenth of the length.
        between: as `landmark_errors`.
        name: in tables and reports.

    Example:
        >>> import torch
        >>> true = torch.tensor([[[0.0, 0.0], [10.0, 0.0]]])
        >>> LandmarkFailures(between=(0, 1)).score(lambda x: true + 1, [(torch.zeros(1, 1, 8, 8), true)])
        1.0
    """

    limit: Annotated[float, Range(0, 1)] = 0.1
    between: tuple[int, int] | None = None
    name: str = "failures"
    higher_is_better = False

    def __post_init__(self) -> None:
        check_fields(self, "LandmarkFailures")

    def batch(self, output: Any, target: Any) -> Evidence:
        return {"score": (landmark_errors(output, target, self.between) > self.limit).float()}

    def usual_loss(self) -> Loss:
        return landmark_loss


def similarities(output: Any, target: Any, deviations: Sequence[float] | None = None) -> Tensor:
    """Object keypoint similarity of each sample, from 0 to 1.

    Args:
        output: as of `landmark_errors`.
        target: a dict of `points` (N, L, 2) and `lengths` (N,), the root of the area of each object.
        deviations: of people who annotate the same landmark, over the length; None: those of COCO's 17 landmarks of
            people, or 1 / L.

    Returns:
        Shape (N,): the mean over annotated landmarks of exp(-d^2 / (2 length^2 (2 deviation)^2)).

    Raises:
        BadInput: as of `landmark_errors`, or there are other than L deviations.

    Example:
        >>> import torch
        >>> true = {"points": torch.zeros(1, 17, 2), "lengths": torch.tensor([100.0])}
        >>> similarities(torch.zeros(1, 34), true)
        tensor([1.])

    Source: COCO keypoint evaluation; pycocotools, cocoeval.py, computeOks.
    """
    landmark_errors(output, target, None)  # refuses what does not fit
    points = target["points"]
    spread = deviations or (PEOPLE if points.shape[1] == len(PEOPLE) else [1 / points.shape[1]] * points.shape[1])
    if len(spread) != points.shape[1]:
        raise BadInput(f"{len(spread)} deviations for {points.shape[1]} landmarks")
    given = first_tensor(output)
    known, points = ~points.isnan().any(2), points.to(given).nan_to_num(0)
    squares = (given.reshape(points.shape) - points).square().sum(2)
    scale = 2 * (2 * torch.tensor(spread, dtype=given.dtype)) ** 2 * target["lengths"].to(given)[:, None] ** 2
    found: Tensor = torch.where(known, torch.exp(-squares / scale), 0).sum(1) / known.sum(1)
    return found


@dataclass(frozen=True, kw_only=True)
class KeypointRecall(KnownArguments, MeanMetric):
    """COCO's AR of key points for boxes that are given: the share of samples whose similarity is at least 0.5, 0.55,
    ..., 0.95, on average.

    Its AP depends on scores of the objects as well, which a network of landmarks does not give.

    Args:
        deviations: as of `similarities`.
        name: in tables and reports.

    Example:
        >>> import torch
        >>> true = {"points": torch.zeros(1, 17, 2), "lengths": torch.tensor([100.0])}
        >>> KeypointRecall().score(lambda x: torch.zeros(1, 34), [(torch.zeros(1, 1, 8, 8), true)])
        1.0
    """

    deviations: tuple[float, ...] | None = None
    name: str = "keypoint AR"

    def batch(self, output: Any, target: Any) -> Evidence:
        reached = similarities(output, target, self.deviations)[:, None] >= torch.linspace(0.5, 0.95, 10)
        return {"score": reached.float().mean(1)}

    def usual_loss(self) -> Loss:
        return landmark_loss


def landmark_loss(model: Model, batch: Any) -> Tensor:
    """Mean normalized error of a batch.

    Args:
        model: gives landmarks.
        batch: inputs and landmarks.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> true = torch.tensor([[[0.0, 0.0], [10.0, 10.0]]])
        >>> landmark_loss(lambda x: true + 1, (torch.zeros(1, 1, 8, 8), true))
        tensor(0.1414)
    """
    inputs, target = inputs_and_labels(batch)
    return landmark_errors(model(*inputs), target, None).mean()
