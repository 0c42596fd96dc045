"""Accuracy with its uncertainty: an interval for one network, a paired test for two."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from gossamer.core.record import Record
from gossamer.core.task import count, scores
from gossamer.errors import BadInput

RESAMPLES = 2000
FEW = 10  # samples that a budget is worth: of fewer, a part of one matters


def wilson(correct: Tensor | float, n: int | None = None, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion in percent (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    correct: 1 for every hit and 0 for every miss, or the number of hits, then with `n`. Unlike mean +- z standard
    errors it never leaves [0, 100] and has a width at 100 %, too.
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
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return 100 * max(0.0, center - half), 100 * min(1.0, center + half)


def hits_and_misses(*scores: Tensor) -> bool:
    """Whether all scores are 0 or 1."""
    return all(bool(((one == 0) | (one == 1)).all()) for one in scores)


def bootstrap(scores: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean score in percent, by the percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552): the
    mean of as many scores, drawn with replacement, 2,000 times. The same scores always give the same interval."""
    values = scores.detach().double().cpu().flatten()
    if not len(values):
        raise BadInput("the bootstrap interval needs at least one score")
    generator = torch.Generator().manual_seed(0)
    means = [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(RESAMPLES)]
    tails = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.float64)
    low, high = torch.stack(means).quantile(tails).tolist()
    return 100 * low, 100 * high


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What a network lost against another on the same samples, in points; low and high are the 95 % interval.

    p_value: of the hypothesis that both are equally good, two-sided.
    """

    points: float
    low: float
    high: float
    p_value: float
    n: int

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
            conditions={"interval": "95 % paired", "p_value": self.p_value, **conditions},
        )


def whole_samples(budget_points: float, scores: Tensor) -> float:
    """A budget in points as far as these samples can tell: of few hits and misses it is rounded up to a whole sample.

    0.5 points of 300 samples are one and a half; the loss of two is not told apart from that. Budgets of `FEW` samples
    and more, and of graded scores, stay as they are.
    """
    samples = budget_points / 100 * scores.numel()
    if not hits_and_misses(scores) or samples >= FEW or not scores.numel():
        return budget_points
    return 100 * math.ceil(samples - 1e-9) / scores.numel()


def paired_drop(before: Tensor, after: Tensor) -> Drop:
    """Mean drop of the scores in points, from two networks' scores of the same samples, shape (n,) in [0, 1].

    p_value: exact McNemar (1947, doi:10.1007/BF02295996) where all scores are 0 or 1, else a paired t test. The
    interval is normal, from the standard deviation of the per-sample differences: samples on which both networks agree
    add nothing to it, which is why it is so much narrower than the difference of two separate intervals.
    """
    before, after = before.detach().flatten().double().cpu(), after.detach().flatten().double().cpu()
    n = before.numel()
    if n == 0 or n != after.numel():
        raise BadInput(f"paired scores must be of the same samples, got {n} and {after.numel()}")
    lost = before - after
    mean = float(lost.mean())
    half = 1.959964 * float(lost.std(correction=1)) / n**0.5 if n > 1 else 1.0
    if hits_and_misses(before, after):
        p_value = mcnemar(int((lost > 0).sum()), int((lost < 0).sum()))
    elif bool((lost == lost[0]).all()):
        p_value = 1.0 if float(lost[0]) == 0 else 0.0
    else:
        p_value = float(stats.ttest_1samp(lost.numpy(), 0.0).pvalue)
    return Drop(points=100 * mean, low=100 * (mean - half), high=100 * (mean + half), p_value=p_value, n=n)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p value: of the samples on which two networks disagree, the chance of a split this uneven."""
    return float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def top1_record(subject: str, scores: Tensor, *, split: str, **conditions: Any) -> Record:
    """Mean score in percent with its 95 % interval, from the scores of every sample: Wilson's of hits and misses, else
    by the bootstrap."""
    counted = hits_and_misses(scores)
    low, high = wilson(scores) if counted else bootstrap(scores)
    return Record(
        subject=subject,
        what="top1",
        value=100 * float(scores.double().mean()),
        unit="%",
        low=low,
        high=high,
        n=scores.numel(),
        conditions={"split": split, "interval": "95 % Wilson" if counted else "95 % bootstrap", **conditions},
    )


def accuracy(runner: Any, task: Any, split: str = "validation") -> Tensor:
    """The task's score of every sample of a split, shape (n,)."""
    if split not in ("validation", "test"):
        raise BadInput(f"split = {split!r}: must be 'validation' or 'test'")
    loader = getattr(task, split)
    count(loader, f"the {split} data of {task.name}")
    with torch.no_grad():
        return scores(task, runner, loader)
