"""What a network is judged by: evidence of every sample, and the score of a set of samples."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.core.batches import Loss, Model, cross_entropy, inputs_and_labels, kind_and_shape
from gossamer.core.units import PERCENT, shown_text
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, GossamerError, out_of_memory, own_error

Evidence = Mapping[str, Tensor]
ROUNDING = 1e-6  # scores may be beyond 0 and 1 by so much


class Metric:
    """What a task measures: what is seen of every sample, and the score of a set of samples.

    A class of your own gives `evidence` and `value`, and the attributes below. Two networks are compared on the same
    samples: by McNemar's test and a paired interval where there is one score a sample (`per_sample`), else by a paired
    bootstrap, which draws samples with replacement and asks for the `value` of each draw.

    Attributes:
        name: as it stands in reports: "top-1", "mean IoU", "RMSE".
        unit: of the value. "%": values are fractions in [0, 1] and are shown times 100.
        higher_is_better: False for errors.
        points: what one point is, in the value's own scale; a `Goal`'s `max_drop` is in points. 0.01: a hundredth of
            a fraction.
        perfect: the best value that there can be, infinite where there is none; None: 1 where higher is better, else 0.

    Example:
        >>> import torch, gossamer
        >>> class Perplexity(gossamer.Metric):
        ...     name, unit, higher_is_better, points, perfect = "perplexity", "", False, 1.0, 1.0
        ...
        ...     def evidence(self, model, loader):
        ...         rows = [(model(x), y) for x, y in loader]
        ...         nll = [torch.nn.functional.cross_entropy(z, y, reduction="none") for z, y in rows]
        ...         return {"nll": torch.cat(nll)}
        ...
        ...     def value(self, evidence):
        ...         return float(evidence["nll"].mean().exp())
        >>> loader = [(torch.zeros(3, 10), torch.tensor([1, 2, 3]))]
        >>> Perplexity().text(Perplexity().score(torch.nn.Identity(), loader))
        '10.00'
    """

    name: str = ""
    unit: str = PERCENT
    higher_is_better: bool = True
    points: float = 0.01
    perfect: float | None = None

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        """What is measured of every sample.

        Args:
            model: a plain callable: a module in eval mode, or an exported network.
            loader: batches.

        Returns:
            Tensors by name, their first dimension the sample, in the order of the loader.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `evidence(model, loader)`")

    def value(self, evidence: Evidence) -> float:
        """The score of a set of samples."""
        raise NotImplementedError(f"{type(self).__name__} has no `value(evidence)`")

    def per_sample(self, evidence: Evidence) -> Tensor | None:
        """The score of each sample, shape (n,), where the value of a set is their mean; else None."""
        return None

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        """The value of several sets of the same samples.

        Args:
            evidence: of n samples.
            counts: how often each sample is in each set, shape (sets, n).

        Returns:
            Shape (sets,), float64. Asks for `value` set by set; override it where all can be computed at once.
        """
        rows = [self.value(repeat_samples(evidence, row)) for row in counts]
        return torch.tensor(rows, dtype=torch.float64)

    def usual_loss(self) -> Loss:
        """What a network is trained by, where the task does not say."""
        return cross_entropy

    def score(self, model: Model, loader: Iterable[Any]) -> float:
        """The value of a network on all samples of a loader."""
        with torch.no_grad():
            return self.value(self.evidence(model, loader))

    def lost(self, before: float, after: float) -> float:
        """How many points worse the second value is; negative where it is better."""
        change = (before - after) / self.points
        return change if self.higher_is_better else -change

    def better(self, one: float, other: float) -> bool:
        """Whether the first value is the better one."""
        return one > other if self.higher_is_better else one < other

    def merit(self, value: float) -> float:
        """A value turned so that more is better, and such a number turned back.

        Example:
            >>> from gossamer.core.metrics import MAE
            >>> MAE().merit(0.25), MAE().merit(MAE().merit(0.25))
            (-0.25, 0.25)
        """
        return value if self.higher_is_better else -value

    def error(self, value: float) -> float:
        """How far a value is from a perfect one; infinite where there is none."""
        return abs(value - self._best)

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest value that there can be."""
        if self.unit == PERCENT:
            return 0.0, 1.0
        return (-math.inf, self._best) if self.higher_is_better else (self._best, math.inf)

    @property
    def _best(self) -> float:
        return self.perfect if self.perfect is not None else float(self.higher_is_better)

    def shown(self, value: float) -> float:
        """A value in its unit: fractions in percent."""
        return 100 * value if self.unit == PERCENT else value

    def from_shown(self, shown: float) -> float:
        """The value that is shown so."""
        return shown / 100 if self.unit == PERCENT else shown

    def text(self, value: float) -> str:
        """`93.20 %`, `0.1234 m`."""
        return shown_text(self.shown(value), self.unit)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def repeat_samples(evidence: Evidence, counts: Tensor) -> Evidence:
    """The evidence of a set in which each sample is so often. counts: shape (n,)."""
    index = torch.from_numpy(np.repeat(np.arange(len(counts)), counts.long().numpy()))  # torch's is slow on few
    return {name: one[index] for name, one in evidence.items()}


class BatchMetric(Metric):
    """A metric whose evidence comes of the outputs and targets of one batch at a time."""

    def batch(self, output: Any, target: Any) -> Evidence:
        """The evidence of the samples of a batch."""
        raise NotImplementedError

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        found: dict[str, list[Tensor]] = {}
        for batch in loader:
            inputs, target = inputs_and_labels(batch)
            for name, one in self.batch(model(*inputs), target).items():
                found.setdefault(name, []).append(one.detach().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


class MeanMetric(BatchMetric):
    """A metric that is the mean of one score a sample."""

    def value(self, evidence: Evidence) -> float:
        return float(evidence["score"].double().mean())

    def per_sample(self, evidence: Evidence) -> Tensor:
        return evidence["score"]

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        return counts.double() @ evidence["score"].double() / counts.double().sum(1)


class SumMetric(BatchMetric):
    """A metric that is computed from sums over samples: intersections and unions, hits and misses, squares."""

    def from_sums(self, sums: Evidence) -> Tensor:
        """The value, from tensors as the evidence has them without the dimension of samples; in front of theirs there
        may be others, which the result has."""
        raise NotImplementedError

    def value(self, evidence: Evidence) -> float:
        return float(self.from_sums({name: one.double().sum(0) for name, one in evidence.items()}))

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        weights, sets = counts.double(), len(counts)
        sums = {n: (weights @ x.double().reshape(len(x), -1)).view(sets, *x.shape[1:]) for n, x in evidence.items()}
        return self.from_sums(sums)


@dataclass(frozen=True, kw_only=True)
class PerSample(KnownArguments, MeanMetric):
    """A function that gives one score for every sample, as a metric: their mean.

    Args:
        function: `function(model, loader)` gives a tensor, an array or a list, in the order of the loader. With unit
            "%" the scores are in [0, 1].
        name, unit, higher_is_better, points, perfect: as of `Metric`.

    Example:
        >>> import torch
        >>> close = PerSample(function=lambda model, loader: torch.cat([model(x) for x, _ in loader]), name="closeness")
        >>> close.score(torch.nn.Identity(), [(torch.tensor([0.5, 1.0]), None)])
        0.75
    """

    function: Callable[[Model, Iterable[Any]], Any]
    name: str = "score"
    unit: str = PERCENT
    higher_is_better: bool = True
    points: float = 0.01
    perfect: float | None = None

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        """Raises BadInput where the function does not give one number for every sample, in [0, 1] of fractions."""
        found = self.function(model, loader)
        rule = f"metric {self.name!r} must give one score a sample"
        try:
            values = torch.as_tensor(found).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{rule}, it gives {kind_and_shape(found)}") from error
        values = values if values.is_floating_point() else values.float()
        if values.ndim != 1:
            fix = "" if values.ndim else "; for a number of the whole set write a gossamer.Metric"
            raise BadInput(f"{rule}, it gives {kind_and_shape(found)}{fix}")
        if self.unit != PERCENT:
            return {"score": values}
        wrong = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))  # NaN is wrong, too
        if wrong.any():
            first = int(wrong.nonzero()[0])
            others = f" ({int(wrong.sum())} of {len(values)} are outside)" if wrong.sum() > 1 else ""
            shown = f"{float(values[first]):g}{others}"
            fix = "scale them, 1 the best, or wrap the function in PerSample(function=..., unit=...)"
            raise BadInput(f"{rule} in [0, 1], that of sample {first} is {shown}; {fix}")
        return {"score": values.clamp(0, 1)}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What a network gave on a set of samples.

    Attributes:
        metric: that was measured.
        evidence: of every sample.

    Example:
        >>> import torch, gossamer
        >>> batches = [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]
        >>> task = gossamer.Task.from_loaders(batches, batches)
        >>> gossamer.measure.evaluate(torch.nn.Identity(), task)
        Evaluation(top-1 75.00 %, 4 samples)
    """

    metric: Metric
    evidence: Evidence

    def __len__(self) -> int:
        return len(next(iter(self.evidence.values())))

    @cached_property
    def value(self) -> float:
        """The score. Raises BadInput where the metric of the user fails, or gives no number."""
        found = _of_user(self.metric, type(self.metric), lambda: self.metric.value(self.evidence))
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, Real):
            given = kind_and_shape(found)
            raise BadInput(f"metric {self.metric.name!r}: value(evidence) must give one number, it gives {given}")
        return float(found)

    @property
    def shown(self) -> float:
        """The score in its unit."""
        return self.metric.shown(self.value)

    @property
    def per_sample(self) -> Tensor | None:
        """The score of each sample, float64, shape (n,), where there is one."""
        found = self.metric.per_sample(self.evidence)
        return None if found is None else found.detach().double().cpu().flatten()

    def __str__(self) -> str:
        return self.metric.text(self.value)

    def __repr__(self) -> str:
        return f"Evaluation({self.metric.name} {self}, {len(self)} samples)"


def evaluated(metric: Metric, model: Model, loader: Iterable[Any], expected: int | None) -> Evaluation:
    """The evidence of a network, checked. expected: how many samples the loader has, where that is known.

    Raises BadInput where the evidence is not of every sample.
    """
    found, rule = _evidence(metric, model, loader), f"metric {metric.name!r} must give evidence of every sample"
    if not isinstance(found, Mapping) or not found or not all(isinstance(x, Tensor) for x in found.values()):
        raise BadInput(
            f"{rule}: a dict of tensors whose first dimension is the sample, it gives {kind_and_shape(found)}"
        )
    sizes = {len(x) if x.ndim else 0 for x in found.values()}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in found.items())
        raise BadInput(f"{rule}, its tensors are of different numbers of samples: {shapes}")
    if expected is not None and sizes != {expected}:
        raise BadInput(f"{rule}, it gives {sizes.pop()} rows for {expected} samples")
    return Evaluation(metric, {name: x.detach().cpu() for name, x in found.items()})


def _evidence(metric: Metric, model: Model, loader: Iterable[Any]) -> Any:
    function = metric.function if isinstance(metric, PerSample) else type(metric)
    return _of_user(metric, function, lambda: metric.evidence(model, loader))


def _of_user(metric: Metric, code: Any, act: Callable[[], Any]) -> Any:
    """What it gives; an error of the user's own code is told as such."""
    if str(getattr(code, "__module__", "")).startswith("gossamer."):
        return act()
    try:
        return act()
    except Exception as error:
        if isinstance(error, GossamerError) or out_of_memory(error):
            raise
        raise BadInput(f"the metric {metric.name} failed with its own error: {own_error(error)}") from error


def metric_of(given: Any) -> Metric:
    """A metric as it is, a function of one score a sample as a `PerSample` of its name.

    Raises BadInput for anything else, and for a metric that cannot be reported or counted in points.
    """
    if isinstance(given, type) and issubclass(given, Metric):
        raise BadInput(f"metric={given.__name__} is a class; give a value of it: metric={given.__name__}()")
    if not isinstance(given, Metric):
        if not callable(given):
            raise BadInput(f"metric: a gossamer.Metric, or a function(model, loader), is expected, not {given!r}")
        name = getattr(given, "__name__", type(given).__name__).strip("_").replace("_", " ")
        return PerSample(function=given, name=name if name != "<lambda>" else "score")
    if not given.name:
        raise BadInput(f'{type(given).__name__} has no name; reports need one: name = "..."')
    if not 0 < given.points < math.inf:
        raise BadInput(f"metric {given.name!r}: points = {given.points} must be greater than 0: what one point is")
    return given
