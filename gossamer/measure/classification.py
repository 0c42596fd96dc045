"""Scores of classes that are no mean of hits: F1 and the area under the ROC curve."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.core.batches import Loss, Model, cross_entropy, inputs_and_labels, refuse_labels
from gossamer.core.metric import BatchMetric, Evidence
from gossamer.core.outputs import first_tensor
from gossamer.core.validation import KnownArguments, check_fields
from gossamer.errors import BadInput


class ResampledMetric(BatchMetric):
    """A metric that is computed for several weights of the samples at once."""

    def value(self, evidence: Evidence) -> float:
        n = len(next(iter(evidence.values())))
        return float(self.resampled(evidence, torch.ones(1, n)))


@dataclass(frozen=True, kw_only=True)
class F1(KnownArguments, ResampledMetric):
    """F1 score of one class a sample: logits (N, classes) for labels (N,).

    2 * hits / (samples that are of the class + samples that are said to be); `MultiLabelF1` is that of several labels a
    sample.

    Args:
        average: "macro", the mean over classes that occur or were said; "weighted", that mean weighted by how often a
            class occurs; "micro", of all decisions together, which is top-1 accuracy.
        positive: the only class that counts, as of two; None: all.
        name: in tables and reports.

    Example:
        >>> logits = torch.eye(3)[[0, 0, 1, 2]]  # what is said
        >>> round(F1().score(torch.nn.Identity(), [(logits, torch.tensor([0, 1, 1, 2]))]), 4)
        0.7778

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """

    average: Literal["macro", "weighted", "micro"] = "macro"
    positive: int | None = None
    name: str = "F1"

    def __post_init__(self) -> None:
        check_fields(self, "F1")

    def batch(self, output: Any, target: Any) -> Evidence:
        logits = first_tensor(output)
        refuse_labels(logits, target)
        if self.positive is not None and not 0 <= self.positive < logits.shape[1]:
            raise BadInput(
                f"F1: positive = {self.positive}, but the network has {logits.shape[1]} classes, 0 the first"
            )
        return {"said": logits.argmax(1), "true": target.long()}

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        said, true, weights = evidence["said"], evidence["true"], counts.double()
        classes = 1 + int(torch.cat([said, true]).max())
        right = said == true

        def by_class(labels: Tensor, weights: Tensor) -> Tensor:
            return torch.zeros(len(weights), classes, dtype=weights.dtype).index_add_(1, labels, weights)

        hits = by_class(true[right], weights[:, right])
        there, decided = by_class(true, weights), by_class(said, weights)
        if self.positive is not None:
            one = slice(self.positive, self.positive + 1)
            hits, there, decided = (_padded(x, self.positive)[:, one] for x in (hits, there, decided))
        if self.average == "micro":
            hits, there, decided = (x.sum(1, keepdim=True) for x in (hits, there, decided))
        both = there + decided
        scores = 2 * hits / both.clamp_min(1e-12)
        counted = there if self.average == "weighted" else (both > 0).double()
        return (scores * counted).sum(1) / counted.sum(1).clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class AUC(KnownArguments, ResampledMetric):
    """Area under the ROC curve: how often a sample with the label has a higher score than one without it; ties half.

    Outputs (N,) or (N, 1) for targets of 0 and 1; (N, 2) the same, by the second class; (N, classes) for labels (N,):
    the mean over classes of the probability of each against all others; (N, labels) for targets (N, labels) of 0 and 1:
    the mean over labels. What no sample has, or all have, is left out.

    Args:
        name: in tables and reports.

    Example:
        >>> scores, there = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
        >>> AUC().score(torch.nn.Identity(), [(scores, there)])
        0.75

    Source: Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """

    name: str = "AUC"

    def batch(self, output: Any, target: Any) -> Evidence:
        scores = first_tensor(output).float()
        if target.ndim == 2 and scores.shape == target.shape and target.shape[1] > 1:
            return {"scores": scores, "there": target.bool()}
        if scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1):
            if scores.numel() != target.numel() or not bool(((target == 0) | (target == 1)).all()):
                raise BadInput(f"AUC: one output a sample needs as many targets of 0 and 1; there are {target.shape}")
            return {"scores": scores.reshape(-1, 1), "there": target.reshape(-1, 1).bool()}
        refuse_labels(scores, target)
        shares, labels = scores.softmax(1), target.long().to(scores.device)
        there = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
        return {"scores": shares, "there": there} if scores.shape[1] > 2 else _second(scores, there)

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        weights = counts.double()
        columns = zip(evidence["scores"].T, evidence["there"].T)
        return torch.stack([weighted_auc(x, y, weights) for x, y in columns], 1).nanmean(1)

    def usual_loss(self) -> Loss:
        return _classes_or_labels


def weighted_auc(scores: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    """Area under the ROC curve of one label, under several weights of the samples.

    Args:
        scores: shape (n,).
        there: bool, shape (n,).
        weights: shape (sets, n).

    Returns:
        Shape (sets,); NaN where the weights leave no sample with the label, or none without.
    """
    order = scores.argsort()
    ends = torch.ones(len(order), dtype=torch.bool)  # of equal scores
    ends[:-1] = scores[order].diff() != 0
    weights, there = weights[:, order], there[order]

    def up_to(which: Tensor) -> Tensor:
        return (weights * which).cumsum(1)[:, ends]

    having, lacking = up_to(there), up_to(~there)
    zero = torch.zeros(len(weights), 1, dtype=weights.dtype)
    own, others = having.diff(dim=1, prepend=zero), lacking.diff(dim=1, prepend=zero)
    return (own * (lacking - others / 2)).sum(1) / (having[:, -1] * lacking[:, -1])


def _second(scores: Tensor, there: Tensor) -> Evidence:
    """Of two classes, where one column says all."""
    return {"scores": (scores[:, 1:] - scores[:, :1]), "there": there[:, 1:]}


def _padded(by_class: Tensor, index: int) -> Tensor:
    """With a column for the class of that index, where it neither occurs nor was said."""
    return torch.nn.functional.pad(by_class, (0, max(0, index + 1 - by_class.shape[1])))


def _classes_or_labels(model: Model, batch: Any) -> Tensor:
    """Cross entropy of classes, or binary cross entropy where targets are as many as outputs."""
    inputs, target = inputs_and_labels(batch)
    outputs = first_tensor(model(*inputs))
    if outputs.numel() == target.numel():
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs.reshape(target.shape), target.float())
    return cross_entropy(lambda *_: outputs, batch)
