"""Scores with their uncertainty: an interval for one network, a paired comparison of two."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from scipy import special
from torch import Tensor

from gossamer.core.batches import batch_count
from gossamer.core.metric import Evaluation, Metric
from gossamer.core.record import Record
from gossamer.core.task import Task, evaluation
from gossamer.errors import BadInput

RESAMPLES = 2000
CHUNK = 20_000_000  # counts of a bootstrap that are held at once
_KEPT = WeakKeyDictionary[Evaluation, Tensor]()  # values on resamples: those of average precision take seconds
FEW = 10  # samples that a budget is worth: of fewer, a part of one matters


def wilson(correct: Tensor | float, n: int | None = None, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion in percent.

    Unlike mean +- z standard errors it never leaves [0, 100] and has a width at 100 %, too.

    Args:
        correct: 1 for every hit and 0 for every miss, shape (samples,); or the number of hits, then with `n`.
        n: number of samples.
        confidence: in (0, 1).

    Returns:
        Lower and upper end, in percent.

    Example:
        >>> low, high = wilson(9, 10)
        >>> round(low, 1), round(high, 1)
        (59.6, 98.2)

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if isinstance(correct, Tensor):
        if n is not None and n != correct.numel():
            raise BadInput(f"n = {n}, but there are {correct.numel()} scores; leave n out")
        if not hits_and_misses(correct):
            raise BadInput(
                "the Wilson interval is of hits and misses, scores of 0 and 1; others have bootstrap intervals"
            )
        n, correct = correct.numel(), float(correct.double().sum())
    if n is None or n <= 0 or not 0 <= correct <= n:
        raise BadInput(f"{correct} correct of n = {n}: needs n > 0 and 0 <= correct <= n")
    z = float(special.ndtri(0.5 + confidence / 2))
    p = correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return 100 * max(0.0, center - half), 100 * min(1.0, center + half)


def hits_and_misses(*scores: Tensor) -> bool:
    """Whether all scores are 0 or 1."""
    return all(bool(((one == 0) | (one == 1)).all()) for one in scores)


def resamples(n: int, seed: int = 0) -> Iterator[Tensor]:
    """Sets of n samples drawn with replacement, `RESAMPLES` of them: how often each sample is in each set.

    Yields:
        Shape (sets, n), int64; as many sets at once as `CHUNK` allows. The same n always gives the same sets.
    """
    generator = torch.Generator().manual_seed(seed)
    left = RESAMPLES
    while left:
        sets = max(1, min(left, CHUNK // n))
        drawn = torch.randint(n, (sets, n), generator=generator) + n * torch.arange(sets)[:, None]
        yield torch.bincount(drawn.flatten(), minlength=sets * n).view(sets, n)
        left -= sets


def resampled(evaluation: Evaluation) -> Tensor:
    """The values of a network on resamples of its samples, shape (RESAMPLES,). Of the same number of samples they are
    always the same resamples, so that networks can be compared. They are kept as long as the evaluation."""
    if (known := _KEPT.get(evaluation)) is not None:
        return known
    n = len(evaluation)
    if not n:
        raise BadInput("the bootstrap needs at least one sample")
    found = torch.cat([evaluation.metric.resampled(evaluation.evidence, counts) for counts in resamples(n)])
    _KEPT[evaluation] = found
    return found


def quantiles(values: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """The two ends between which the middle values lie. NaN, of draws without a single sample that counts, are left
    out."""
    tails = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.float64)
    low, high = values.double().nanquantile(tails).tolist()
    return low, high


def reflected(value: float, draws: Tensor) -> Tensor:
    """Draws of a bootstrap on the other side of the value that they were drawn around.

    A resample stands to the samples as the samples stand to all that there could be. A metric that is too high on
    few samples, as average precision is, is too high once more on a resample: what the draws lie above the value, the
    value lies above the true one.

    Args:
        value: of the samples themselves.
        draws: values of resamples, shape (draws,).

    Returns:
        Shape (draws,): the value minus how far each draw is above it. Their quantiles are the basic bootstrap interval.

    Example:
        >>> reflected(0.5, torch.tensor([0.5, 0.75]))
        tensor([0.5000, 0.2500])

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 5.2.
    """
    return 2 * value - draws


def bootstrap(evaluation: Evaluation, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a score in its unit, by the basic bootstrap (Efron 1979, doi:10.1214/aos/1176344552).

    The value of as many samples, drawn with replacement, 2,000 times, `reflected`. It holds the value, and no better
    one than there can be. The same evidence always gives the same interval.
    """
    metric, value = evaluation.metric, evaluation.value
    low, high = quantiles(reflected(value, resampled(evaluation)), confidence)
    least, most = metric.limits
    low, high = min(max(low, least), value), max(min(high, most), value)
    return metric.shown(low), metric.shown(high)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What a network lost against another on the same samples.

    Attributes:
        points: lost, in points of the metric; negative where it gained.
        low: lower end of the 95 % interval.
        high: upper end.
        p_value: of the hypothesis that both are equally good, two-sided.
        n: samples.
        interval: how it was computed.

    Example:
        >>> import torch
        >>> from gossamer.measure import Evaluation, Top1
        >>> before = Evaluation(Top1(), {"score": torch.ones(400)})
        >>> after = Evaluation(Top1(), {"score": torch.cat([torch.zeros(2), torch.ones(398)])})
        >>> drop = paired_drop(before, after)
        >>> drop.points, drop.n, drop.within(0.5), drop.within(0.4)
        (0.5, 400, True, False)
    """

    points: float
    low: float
    high: float
    p_value: float
    n: int
    interval: str = "95 % paired"

    def within(self, budget_points: float) -> bool:
        """The decision rule: the measured drop is at most the budget.

        The point estimate decides: it is what the user asked for and does not depend on how much data there is. The
        interval says how far to trust it: its half width is about 0.2 points for 5000 samples and 1 % disagreement.
        """
        return self.points <= budget_points + 1e-9

    def to_record(self, subject: str, **conditions: Any) -> Record:
        """As a measured row."""
        return Record(
            subject=subject,
            what="drop",
            value=self.points,
            unit="points",
            low=self.low,
            high=self.high,
            n=self.n,
            conditions={"interval": self.interval, "p_value": self.p_value, **conditions},
        )


def whole_samples(budget_points: float, reference: Evaluation) -> float:
    """A budget in points as far as these samples can tell: of few hits and misses it is rounded up to a whole sample.

    0.5 points of 300 samples are one and a half; the loss of two is not told apart from that. Budgets of `FEW` samples
    and more, and of graded scores, stay as they are.

    Args:
        budget_points: that may be lost.
        reference: what the network before gives of the samples.

    Returns:
        The budget, in points.

    Example:
        >>> from gossamer.core.metrics import Top1
        >>> right = Evaluation(Top1(), {"score": torch.ones(300)})
        >>> round(whole_samples(0.5, right), 4)
        0.6667
    """
    scores, points = reference.per_sample, reference.metric.points
    if scores is None or not len(scores) or not hits_and_misses(scores):
        return budget_points
    lost = budget_points * points * len(scores)
    return budget_points if lost >= FEW else math.ceil(lost - 1e-9) / len(scores) / points


def paired_drop(before: Evaluation, after: Evaluation) -> Drop:
    """What the second network lost, in points of the metric, on the same samples.

    Where there is one score a sample, the interval is normal, from the standard deviation of the differences: samples
    on which both networks agree add nothing to it, which is why it is so much narrower than the difference of two
    separate intervals; the p value is McNemar's (exact) of hits and misses, else that of a paired t test. Other
    metrics: both networks on the same 2,000 resamples of the samples, the interval as that of `bootstrap`.

    Args:
        before: what the first network gives of every sample.
        after: what the second one gives of them, in the same order.

    Returns:
        The difference with its interval and p value.

    Raises:
        BadInput: the samples are not the same number.

    Example:
        >>> from gossamer.core.metrics import Top1
        >>> before = Evaluation(Top1(), {"score": torch.tensor([1.0, 1.0, 1.0, 0.0])})
        >>> after = Evaluation(Top1(), {"score": torch.tensor([1.0, 1.0, 0.0, 0.0])})
        >>> paired_drop(before, after).points
        25.0

    Source: McNemar 1947, doi:10.1007/BF02295996; Efron 1979, doi:10.1214/aos/1176344552.
    """
    if len(before) != len(after) or not len(before):
        raise BadInput(f"paired scores must be of the same samples, got {len(before)} and {len(after)}")
    old, new = before.per_sample, after.per_sample
    if old is None or new is None:
        return _paired_bootstrap(before, after)
    return _paired_means(before.metric, old, new)


def _paired_means(metric: Metric, before: Tensor, after: Tensor) -> Drop:
    n = len(before)
    lost = (before - after) / metric.points if metric.higher_is_better else (after - before) / metric.points
    mean = float(lost.mean())
    half = 1.959964 * float(lost.std(correction=1)) / n**0.5 if n > 1 else 1 / metric.points
    if hits_and_misses(before, after):
        p_value = mcnemar(int((lost > 0).sum()), int((lost < 0).sum()))
    elif bool((lost == lost[0]).all()):
        p_value = 1.0 if float(lost[0]) == 0 else 0.0
    else:
        p_value = t_test(lost)
    return Drop(points=mean, low=mean - half, high=mean + half, p_value=p_value, n=n)


def _paired_bootstrap(before: Evaluation, after: Evaluation) -> Drop:
    metric = before.metric
    old, new = resampled(before), resampled(after)
    points = metric.lost(before.value, after.value)
    lost = reflected(points, (old - new if metric.higher_is_better else new - old) / metric.points)
    low, high = quantiles(lost)
    rarer = min(int((lost <= 0).sum()), int((lost >= 0).sum()))
    return Drop(
        points=points,
        low=min(low, points),
        high=max(high, points),
        p_value=min(1.0, 2 * (rarer + 1) / (RESAMPLES + 1)),
        n=len(before),
        interval=f"95 % paired bootstrap, {RESAMPLES:,} resamples",
    )


def t_test(differences: Tensor) -> float:
    """The two-sided p value of the hypothesis that the mean of these differences, shape (n,), is 0: Student's t test.
    They are not all the same."""
    values = differences.double()
    t = float(values.mean() / values.std(correction=1)) * len(values) ** 0.5
    return 2 * float(special.stdtr(len(values) - 1, -abs(t)))


def mcnemar(lost: int, won: int) -> float:
    """Exact McNemar test: of the samples on which two networks disagree, the chance of a split this uneven.

    Args:
        lost: samples that only the first network gets right.
        won: samples that only the second network gets right.

    Returns:
        The two-sided p value.

    Example:
        >>> mcnemar(5, 5), round(mcnemar(9, 1), 4)
        (1.0, 0.0215)

    Source: McNemar 1947, doi:10.1007/BF02295996.
    """
    return min(1.0, 2 * float(special.bdtr(min(lost, won), lost + won, 0.5)))


def score_record(subject: str, evaluation: Evaluation, *, split: str, **conditions: Any) -> Record:
    """The score in its unit with its 95 % interval: Wilson's of hits and misses, else by the bootstrap.

    Args:
        subject: what was measured, "original" say.
        evaluation: its evidence.
        split: "validation" or "test".
        conditions: whatever else the number holds for.

    Returns:
        The row of a document.

    Example:
        >>> from gossamer.core.metrics import Top1
        >>> row = score_record("original", Evaluation(Top1(), {"score": torch.ones(100)}), split="test")
        >>> row.value, round(row.low, 1), row.high
        (100.0, 96.3, 100.0)
    """
    metric, scores = evaluation.metric, evaluation.per_sample
    if scores is not None and hits_and_misses(scores):
        low, high = (metric.shown(end / 100) for end in wilson(scores))
        interval = "95 % Wilson"
    else:
        low, high = bootstrap(evaluation)
        interval = f"95 % bootstrap, {RESAMPLES:,} resamples"
    return Record(
        subject=subject,
        what="score",
        value=evaluation.shown,
        unit=metric.unit,
        low=low,
        high=high,
        n=len(evaluation),
        conditions={"metric": metric.name, "split": split, "interval": interval, **conditions},
    )


def evaluate(runner: Any, task: Task, split: str = "validation") -> Evaluation:
    """A network's evidence of every sample of a split, and its score.

    Args:
        runner: a module in eval mode, or a deployed network.
        task: data and metric.
        split: "validation" or "test".

    Returns:
        The evidence; its `value` is the score.

    Raises:
        BadInput: the task has no such data, or the metric does not fit them.

    Example:
        >>> from gossamer.data import tiny_network, tiny_task
        >>> len(evaluate(tiny_network(), tiny_task()))
        16
    """
    if split not in ("validation", "test"):
        raise BadInput(f"split = {split!r}: must be 'validation' or 'test'")
    loader = getattr(task, split)
    if loader is None:
        raise BadInput(f"{task.name} has no {split} data; give the task some, or take split='validation'")
    batch_count(loader, f"the {split} data of {task.name}")
    with torch.no_grad():
        return evaluation(task, runner, loader)
