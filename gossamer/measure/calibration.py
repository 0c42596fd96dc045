"""Whether a classifier is as sure as it is right: calibration error, log likelihood, temperature scaling.

All take logits (N, classes) and integer labels (N,); `logits_and_labels` gathers them from a network.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from gossamer.core.batches import Model, as_logits, inputs_and_target
from gossamer.errors import BadInput

# Temperatures are looked for between these.
COLDEST, HOTTEST = 0.01, 100.0


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Samples whose confidence is in (low, high]: how many, their mean confidence and the share that is right."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


def are_classes(output: object, target: object) -> bool:
    """Whether they are logits (N, classes) and integer labels (N,)."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.dim() != 2:
        return False
    return target.shape == output.shape[:1] and not target.is_floating_point()


@torch.no_grad()
def confidence(model: Model, loader: Iterable[object]) -> dict[str, float]:
    """Calibration error ("ece") and negative log likelihood ("nll", nats); nothing where the outputs are no classes."""
    inputs, target = inputs_and_target(next(iter(loader)))
    if not are_classes(model(*inputs), target):
        return {}
    logits, labels = logits_and_labels(model, loader)
    return {"ece": calibration_error(logits, labels), "nll": negative_log_likelihood(logits, labels)}


@torch.no_grad()
def logits_and_labels(model: Model, loader: Iterable[object]) -> tuple[Tensor, Tensor]:
    """Logits and labels of all samples of a loader, in float64 on CPU; of probabilities their logarithm."""
    rows = [(model(*inputs).double().cpu(), target.cpu()) for inputs, target in map(inputs_and_target, loader)]
    if not rows:
        raise BadInput("calibration: the loader has no batches")
    return as_logits(torch.cat([z for z, _ in rows])), torch.cat([y for _, y in rows])


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats."""
    _check(logits, labels)
    return float(F.cross_entropy(logits.detach().double(), labels))


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[Bin, ...]:
    """The reliability diagram: bins of equal width over the largest probability; an empty bin has confidence and
    accuracy 0."""
    _check(logits, labels)
    if bins < 1:
        raise BadInput(f"calibration: bins = {bins} must be at least 1")
    confidence, predicted = logits.detach().double().softmax(1).max(1)
    right = (predicted == labels).double()
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)

    def row(i: int) -> Bin:
        inside = index == i
        n = int(inside.sum())
        means = [float(x[inside].mean()) if n else 0.0 for x in (confidence, right)]
        return Bin(low=i / bins, high=(i + 1) / bins, samples=n, confidence=means[0], accuracy=means[1])

    return tuple(row(i) for i in range(bins))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the mean over samples of |confidence - accuracy| of their bin, in [0, 1] (Guo et al.
    2017, arXiv:1706.04599, equation 3)."""
    rows = reliability(logits, labels, bins)
    return sum(row.samples * abs(row.confidence - row.accuracy) for row in rows) / len(labels)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) has the least negative log likelihood: use validation data (Guo et al. 2017,
    section 4.2). It changes no prediction. Limited to [0.01, 100]."""
    _check(logits, labels)
    wide = logits.detach().double()

    def cost(log_temperature: float) -> float:
        return float(F.cross_entropy(wide / torch.tensor(log_temperature).double().exp(), labels))

    # Convex in 1/T, so that it has one valley in log T.
    bounds = [float(torch.tensor(t, dtype=torch.float64).log()) for t in (COLDEST, HOTTEST)]
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(torch.tensor(found.x).exp())


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point() or not len(labels):
        raise BadInput(
            f"calibration: needs logits (N, classes) and integer labels (N,), N > 0; got {tuple(logits.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
