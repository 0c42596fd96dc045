"""The metrics that come with gossamer: classes, several labels, segmentation, regression."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import Loss, Model, class_labels, inputs_and_labels, refuse_labels
from gossamer.core.metric import BatchMetric, Evidence, MeanMetric, SumMetric
from gossamer.core.outputs import first_tensor
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput

IGNORED = 255  # the label of pixels that do not count, as in Pascal VOC


@dataclass(frozen=True, kw_only=True)
class TopK(KnownArguments, MeanMetric):
    """Top-k accuracy: the share of samples whose label is among the k largest logits, outputs (N, classes).

    Args:
        k: how many of the largest count.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
        >>> TopK(k=2).score(torch.nn.Identity(), [(logits, torch.tensor([1, 2]))])
        0.5
    """

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BadInput(f"TopK: k = {self.k} must be at least 1")

    @property
    def name(self) -> str:  # type: ignore[override]
        """`top-5`."""
        return f"top-{self.k}"

    def batch(self, output: Any, target: Any) -> Evidence:
        logits = first_tensor(output)
        target = class_labels(logits, target)
        target = target.argmax(1) if target.is_floating_point() else target
        refuse_labels(logits, target)
        if self.k == 1:  # of equal ones the first
            return {"score": (logits.argmax(1).cpu() == target.cpu()).float()}
        if self.k > logits.shape[1]:
            raise BadInput(f"top-{self.k}: the network has {logits.shape[1]} outputs; take a smaller k")
        best = logits.topk(self.k, 1).indices.cpu()
        return {"score": (best == target.cpu()[:, None]).any(1).float()}


@dataclass(frozen=True, kw_only=True)
class Top1(TopK):
    """Top-1 accuracy: the share of samples whose largest logit is at their label, outputs (N, classes).

    Args:
        k: 1.

    Example:
        >>> import torch
        >>> Top1().score(torch.nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
        0.75
    """

    k: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class MultiLabelF1(KnownArguments, SumMetric):
    """F1 score of several labels a sample: logits (N, labels) for targets of 0 and 1.

    Args:
        threshold: of the probability (sigmoid of the logit) from which a label is said to be there.
        average: "macro", the mean over labels that occur or were said, or "micro", of all decisions together.

    Example:
        >>> import torch
        >>> logits, there = torch.tensor([[9.0, 9.0], [-9.0, -9.0]]), torch.tensor([[1, 1], [0, 1]])
        >>> round(MultiLabelF1().score(torch.nn.Identity(), [(logits, there)]), 4)
        0.8333
    """

    threshold: float = 0.5
    average: Literal["macro", "micro"] = "macro"
    name: str = "F1"

    def __post_init__(self) -> None:
        if self.average not in ("macro", "micro") or not 0 < self.threshold < 1:
            raise BadInput(f"{self}: threshold is in (0, 1), average is 'macro' or 'micro'")

    def batch(self, output: Any, target: Any) -> Evidence:
        logits, there = _labels(output, target)
        said = logits.sigmoid() >= self.threshold
        return {"hits": said & there, "false": said & ~there, "missed": ~said & there}

    def from_sums(self, sums: Evidence) -> Tensor:
        hits, wrong = sums["hits"], sums["false"] + sums["missed"]
        if self.average == "micro":
            hits, wrong = hits.sum(-1, keepdim=True), wrong.sum(-1, keepdim=True)
        return _mean_ratio(2 * hits, 2 * hits + wrong)

    def usual_loss(self) -> Loss:
        return binary_cross_entropy


@dataclass(frozen=True, kw_only=True)
class MultiLabelMAP(KnownArguments, BatchMetric):
    """Mean average precision of several labels a sample: logits (N, labels) for targets of 0 and 1.

    Average precision is the sum over thresholds of the precision times the gain in recall, equal scores together, as
    scikit-learn's `average_precision_score`. Labels that no sample has are left out.

    Args:
        name: in tables and reports.

    Example:
        >>> import torch
        >>> logits, there = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]])
        >>> round(MultiLabelMAP().score(torch.nn.Identity(), [(logits, there)]), 4)
        0.8333
    """

    name: str = "mAP"

    def batch(self, output: Any, target: Any) -> Evidence:
        logits, there = _labels(output, target)
        return {"logits": logits.float(), "there": there}

    def value(self, evidence: Evidence) -> float:
        return float(self.resampled(evidence, torch.ones(1, len(evidence["logits"]))))

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        logits, there, weights = evidence["logits"], evidence["there"].double(), counts.double()
        columns = [average_precision(z, y, weights) for z, y in zip(logits.T, there.T)]
        return torch.stack(columns, 1).nanmean(1)

    def usual_loss(self) -> Loss:
        return binary_cross_entropy


def average_precision(scores: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    """Of one label, under several weights of the samples.

    Args:
        scores: shape (n,).
        there: 1.0 or 0.0, shape (n,).
        weights: shape (sets, n).

    Returns:
        Shape (sets,); NaN where the weights leave no sample that has the label.
    """
    order = scores.argsort(descending=True)
    last = torch.ones(len(order), dtype=torch.bool)  # of equal scores
    last[:-1] = scores[order].diff() != 0
    weights = weights[:, order]
    said, hits = weights.cumsum(1)[:, last], (weights * there[order]).cumsum(1)[:, last]
    gained = hits.diff(dim=1, prepend=torch.zeros(len(weights), 1, dtype=hits.dtype))
    return (gained * hits / said.clamp_min(1e-12)).sum(1) / hits[:, -1]


@dataclass(frozen=True, kw_only=True)
class MeanIoU(KnownArguments, SumMetric):
    """Mean intersection over union of a segmentation: logits (N, classes, H, W) for labels (N, H, W).

    Pixels of all samples count together; classes that neither occur nor were said are left out.

    Args:
        ignore: the label of pixels that do not count.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[[9.0, 9.0]], [[0.0, 0.0]]]])  # both pixels are said to be of class 0
        >>> MeanIoU().score(torch.nn.Identity(), [(logits, torch.tensor([[[0, 1]]]))])
        0.25
    """

    ignore: int = IGNORED
    name: str = "mean IoU"

    def batch(self, output: Any, target: Any) -> Evidence:
        logits = first_tensor(output)
        expected = (logits.shape[0], *logits.shape[2:])
        if logits.ndim < 3 or tuple(target.shape) != expected:
            raise BadInput(
                f"mean IoU needs outputs (N, classes, H, W) and labels (N, H, W); they are {tuple(logits.shape)} and "
                f"{tuple(target.shape)}: scale the outputs to the size of the labels"
            )
        said, true = logits.argmax(1).flatten(1).cpu(), target.flatten(1).long().cpu()
        counted = true != self.ignore
        if counted.any():
            refuse_labels(logits, true[counted])
        classes = logits.shape[1]
        shared = _histogram(true, counted & (said == true), classes)
        either = _histogram(true, counted, classes) + _histogram(said, counted, classes)
        return {"intersection": shared, "union": either - shared}

    def from_sums(self, sums: Evidence) -> Tensor:
        return _mean_ratio(sums["intersection"], sums["union"])

    def usual_loss(self) -> Loss:
        return partial(pixel_cross_entropy, ignore=self.ignore)


@dataclass(frozen=True, kw_only=True)
class MAE(KnownArguments, MeanMetric):
    """Mean absolute error of a regression, targets of the outputs' shape; lower is better.

    Args:
        unit: of the targets.
        points: what one point is, in that unit: a goal's `max_drop=2` with `points=0.1` allows 0.2 more.

    Example:
        >>> import torch
        >>> MAE(unit="m").score(torch.nn.Identity(), [(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]))])
        1.5
    """

    unit: str = ""
    points: float = 1.0
    name: str = "MAE"
    higher_is_better = False

    def batch(self, output: Any, target: Any) -> Evidence:
        return {"score": _differences(output, target).abs().mean(1)}

    def usual_loss(self) -> Loss:
        return absolute_error


@dataclass(frozen=True, kw_only=True)
class RMSE(KnownArguments, SumMetric):
    """Root mean squared error of a regression, targets of the outputs' shape; lower is better.

    Args:
        unit: of the targets.
        points: what one point is, in that unit: a goal's `max_drop=2` with `points=0.1` allows 0.2 more.

    Example:
        >>> import torch
        >>> RMSE().score(torch.nn.Identity(), [(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 7.0]))])
        5.0
    """

    unit: str = ""
    points: float = 1.0
    name: str = "RMSE"
    higher_is_better = False

    def batch(self, output: Any, target: Any) -> Evidence:
        squares = _differences(output, target).double().square().mean(1)
        return {"squares": squares, "samples": torch.ones_like(squares)}

    def from_sums(self, sums: Evidence) -> Tensor:
        return (sums["squares"] / sums["samples"]).sqrt()

    def usual_loss(self) -> Loss:
        return squared_error


def binary_cross_entropy(model: Model, batch: Any) -> Tensor:
    """Mean binary cross entropy of logits, in nats."""
    inputs, target = inputs_and_labels(batch)
    return F.binary_cross_entropy_with_logits(first_tensor(model(*inputs)), target.float())


def pixel_cross_entropy(model: Model, batch: Any, *, ignore: int = IGNORED) -> Tensor:
    """Mean cross entropy of the pixels that count, in nats."""
    inputs, target = inputs_and_labels(batch)
    return F.cross_entropy(first_tensor(model(*inputs)), target.long(), ignore_index=ignore)


def squared_error(model: Model, batch: Any) -> Tensor:
    """Mean squared error."""
    inputs, target = inputs_and_labels(batch)
    return _differences(model(*inputs), target).square().mean()


def absolute_error(model: Model, batch: Any) -> Tensor:
    """Mean absolute error."""
    inputs, target = inputs_and_labels(batch)
    return _differences(model(*inputs), target).abs().mean()


def _labels(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    logits, there = first_tensor(output).cpu(), target.cpu()
    if logits.shape != there.shape or logits.ndim != 2:
        shapes = f"{tuple(logits.shape)} and {tuple(there.shape)}"
        raise BadInput(f"several labels a sample need outputs and targets (N, labels); they are {shapes}")
    if not bool(((there == 0) | (there == 1)).all()):
        raise BadInput("targets of several labels a sample are 0 and 1")
    return logits, there.bool()


def _differences(output: Any, target: Tensor) -> Tensor:
    """Of all numbers of a sample, shape (N, numbers). (N,) and (N, 1) are the same; all else would broadcast."""
    given = first_tensor(output)
    if given.shape != target.shape and not (given.numel() == target.numel() == len(given) == len(target)):
        shapes = f"{tuple(given.shape)} and {tuple(target.shape)}"
        raise BadInput(f"a regression needs targets of the outputs' shape; outputs and targets are {shapes}")
    return given.reshape(len(given), -1) - target.to(given.device).reshape(len(given), -1)


def _mean_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Mean over the last dimension of the ratios whose denominator is not 0; 0 where there is none."""
    there = whole > 0
    return (part / whole.clamp_min(1) * there).sum(-1) / there.sum(-1).clamp_min(1)


def _histogram(labels_NP: Tensor, counted_NP: Tensor, classes: int) -> Tensor:
    """How many counted pixels of each sample have each label, shape (N, classes)."""
    n = len(labels_NP)
    rows = torch.arange(n)[:, None].expand_as(labels_NP)
    index = (rows * classes + labels_NP)[counted_NP]
    return torch.bincount(index, minlength=n * classes).view(n, classes)
