"""How well outputs order or follow the targets."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.core.batches import Loss
from gossamer.core.metric import Evidence
from gossamer.core.metrics import squared_error
from gossamer.core.outputs import first_tensor
from gossamer.core.validation import KnownArguments, check_fields
from gossamer.errors import BadInput
from gossamer.measure.classification import ResampledMetric


@dataclass(frozen=True, kw_only=True)
class Correlation(KnownArguments, ResampledMetric):
    """Correlation of outputs and targets over the samples, of several numbers a sample the mean of theirs.

    Args:
        kind: "spearman", of ranks (equal values have the mean of theirs), or "pearson", of the values.
        points: what one point is.
        name: in tables and reports.

    Example:
        >>> given, asked = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([10.0, 20.0, 21.0])
        >>> Correlation().score(torch.nn.Identity(), [(given, asked)])
        1.0

    Source: Spearman 1904, doi:10.2307/1412159.
    """

    kind: Literal["spearman", "pearson"] = "spearman"
    points: float = 0.01
    name: str = "correlation"
    unit = ""

    def __post_init__(self) -> None:
        check_fields(self, "Correlation")

    def batch(self, output: Any, target: Any) -> Evidence:
        given = first_tensor(output)
        if given.numel() != target.numel() or len(given) != len(target):
            shapes = f"{tuple(given.shape)} and {tuple(target.shape)}"
            raise BadInput(f"correlation needs targets of the outputs' shape; outputs and targets are {shapes}")
        n = len(given)
        return {"given": given.double().reshape(n, -1), "asked": target.double().reshape(n, -1)}

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        weights = counts.double()
        columns = zip(evidence["given"].T, evidence["asked"].T)
        return torch.stack([self._of(x, y, weights) for x, y in columns], 1).nanmean(1)

    def _of(self, given: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
        if self.kind == "spearman":
            return weighted_correlation(weighted_ranks(given, weights), weighted_ranks(asked, weights), weights)
        return weighted_correlation(given, asked, weights)

    def usual_loss(self) -> Loss:
        return squared_error


def weighted_ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Ranks from 1, equal values at the mean of theirs, where each value is there several times.

    Args:
        values: shape (n,).
        weights: how often each is there, shape (sets, n).

    Returns:
        Shape (sets, n); of what is not there it is between those of its neighbours.

    Example:
        >>> weighted_ranks(torch.tensor([3.0, 1.0, 3.0]), torch.ones(1, 3)).tolist()
        [[2.5, 1.0, 2.5]]
    """
    distinct, place = torch.unique(values, return_inverse=True)
    each = torch.zeros(len(weights), len(distinct), dtype=weights.dtype).index_add_(1, place, weights)
    upto = each.cumsum(1)
    return (upto - each / 2 + 0.5)[:, place]


def weighted_correlation(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """Pearson's correlation under several weights of the samples.

    Args:
        one: shape (n,) or (sets, n).
        other: the same.
        weights: shape (sets, n).

    Returns:
        Shape (sets,); NaN where all values are equal.
    """
    whole = weights.sum(1, keepdim=True)

    def centred(values: Tensor) -> Tensor:
        return values - (weights * values).sum(1, keepdim=True) / whole

    x, y = centred(one), centred(other)
    scale = ((weights * x.square()).sum(1) * (weights * y.square()).sum(1)).sqrt()
    return (weights * x * y).sum(1) / scale
