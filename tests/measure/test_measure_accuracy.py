import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gossamer.core.metric import Metric
from gossamer.errors import BadInput
from gossamer.measure import (
    MAE,
    RMSE,
    Evaluation,
    PerSample,
    Top1,
    mcnemar,
    paired_drop,
    score_record,
    whole_samples,
    wilson,
)
from gossamer.measure.accuracy import bootstrap, resamples, t_test


def of(scores):
    """What a network gave that has these scores, sample by sample."""
    return Evaluation(Top1(), {"score": scores})


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998_table_1(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=0.01)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_stays_within_0_and_100_and_mirrors(counts):
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= 100 * correct / n + 1e-9 and 100 * correct / n - 1e-9 <= high <= 100
    assert (100 - high, 100 - low) == pytest.approx(wilson(n - correct, n))


def test_wilson_of_scores_is_that_of_their_sum_and_narrows_with_confidence():
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert wilson(scores) == wilson(3, 4)
    assert wilson(3, 4, confidence=0.5)[0] > wilson(3, 4)[0]


@pytest.mark.parametrize("arguments", [(3, 0), (5, 4), (-1, 4), (1, None), (torch.ones(3), 4)])
def test_wilson_refuses_impossible_counts(arguments):
    with pytest.raises(BadInput):
        wilson(*arguments)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 1), (3, 3), (7, 2), (0, 6)])
def test_mcnemar_is_the_share_of_splits_at_least_as_uneven(lost, won):
    n = lost + won
    splits = list(itertools.product((0, 1), repeat=n))
    uneven = sum(abs(2 * sum(split) - n) >= abs(lost - won) for split in splits)
    assert mcnemar(lost, won) == pytest.approx(uneven / len(splits))


@pytest.mark.parametrize(("lost", "won"), [(0, 3), (40, 61), (700, 701), (12_000, 9_000)])
def test_p_values_are_those_of_scipy(lost, won):
    assert mcnemar(lost, won) == pytest.approx(stats.binomtest(lost, lost + won, 0.5).pvalue)
    differences = torch.rand(lost + won, generator=torch.Generator().manual_seed(lost)) - 0.45
    assert t_test(differences) == pytest.approx(stats.ttest_1samp(differences.double(), 0.0).pvalue)


def test_the_interval_of_wilson_is_that_of_scipy():
    low, high = stats.binomtest(9, 10).proportion_ci(0.9, "wilson")
    assert wilson(9, 10, confidence=0.9) == pytest.approx((100 * low, 100 * high))


def test_a_budget_of_a_part_of_a_sample_is_rounded_up_to_a_whole_one():
    hits = torch.ones(300)
    assert whole_samples(0.5, of(hits)) == pytest.approx(100 * 2 / 300)  # of one and a half
    assert whole_samples(0.01, of(hits)) == pytest.approx(100 * 1 / 300)
    assert whole_samples(1.0, of(hits)) == pytest.approx(1.0) and whole_samples(0.0, of(hits)) == 0.0
    assert whole_samples(3.5, of(hits)) == 3.5  # ten and a half: a part of one does not matter
    assert whole_samples(0.5, of(0.7 * hits)) == 0.5 and whole_samples(0.5, of(torch.ones(5000))) == 0.5
    lost = torch.ones(300)
    lost[:2] = 0
    assert paired_drop(of(hits), of(lost)).within(whole_samples(0.5, of(hits)))


def test_paired_drop_counts_points_lost_on_the_same_samples():
    before, after = torch.ones(200), torch.ones(200)
    after[:5] = 0
    before[10:12] = 0
    drop = paired_drop(of(before), of(after))
    lost = [float(b - a) for b, a in zip(before, after, strict=True)]
    mean = sum(lost) / 200
    deviation = (sum((x - mean) ** 2 for x in lost) / 199) ** 0.5
    assert drop.points == pytest.approx(1.5)
    assert drop.high - drop.low == pytest.approx(2 * 100 * 1.959964 * deviation / 200**0.5)
    assert drop.p_value == pytest.approx(mcnemar(5, 2))
    assert drop.n == 200


def test_paired_drop_is_antisymmetric_and_zero_against_itself():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(300, generator=generator) for _ in range(2))
    there, back = paired_drop(of(a), of(b)), paired_drop(of(b), of(a))
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)
    same = paired_drop(of(a), of(a))
    assert (same.points, same.p_value) == (0, 1)


def test_paired_drop_of_graded_scores_sees_a_small_but_constant_loss():
    before = torch.linspace(0.2, 0.9, 50)
    after = before - 0.01 + 0.001 * torch.linspace(-1, 1, 50)
    drop = paired_drop(of(before), of(after))
    assert drop.points == pytest.approx(1.0, abs=0.01) and drop.p_value < 1e-6 and drop.low > 0.9


def test_the_point_estimate_decides_the_budget():
    before, after = torch.ones(1000), torch.ones(1000)
    after[:5] = 0
    drop = paired_drop(of(before), of(after))
    assert drop.within(0.5) and not drop.within(0.49)
    assert drop.to_record("small", split="validation").conditions["split"] == "validation"


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 4)])
def test_paired_drop_refuses_scores_of_other_samples(a, b):
    with pytest.raises(BadInput, match="same samples"):
        paired_drop(of(torch.ones(a)), of(torch.ones(b)))


def test_score_record_has_value_interval_and_size():
    row = score_record("original", of(torch.tensor([1.0, 1.0, 0.0, 1.0])), split="test")
    assert (row.value, row.n, row.what, row.conditions["split"]) == (75, 4, "score", "test")
    assert (row.low, row.high) == wilson(3, 4)


def test_graded_scores_have_a_bootstrap_interval_and_none_of_wilson():
    """For many scores it is the normal interval, which is far narrower than one of hits and misses."""
    scores = 0.6 + 0.1 * torch.rand(2000, generator=torch.Generator().manual_seed(1))
    row = score_record("original", of(scores), split="test")
    half = 100 * 1.96 * float(scores.std()) / 2000**0.5
    assert row.conditions["interval"] == "95 % bootstrap, 2,000 resamples"
    assert (row.value - row.low, row.high - row.value) == pytest.approx((half, half), rel=0.1)
    assert (row.low, row.high) == bootstrap(of(scores)) == bootstrap(of(scores.double()))
    with pytest.raises(BadInput, match="hits and misses"):
        wilson(scores)


def test_scores_of_0_and_1_are_hits_and_misses():
    row = score_record("original", of(torch.tensor([1.0, 0.0])), split="test")
    assert row.conditions["interval"] == "95 % Wilson"


def test_the_bootstrap_holds_the_mean_within_the_scores_and_narrows_with_confidence():
    scores = torch.tensor([0.1, 0.5, 0.7, 0.9])
    low, high = bootstrap(of(scores))
    assert 10 <= low < 55 < high <= 90
    assert low < bootstrap(of(scores), confidence=0.5)[0]
    with pytest.raises(BadInput, match="at least one sample"):
        bootstrap(of(torch.zeros(0)))


class Largest(Metric):
    """The largest of few numbers lies below the largest of all, and that of a resample below it."""

    name, unit, perfect = "largest", "", 1.0

    def value(self, evidence):
        return float(evidence["x"].max())


def test_the_interval_of_a_biased_value_lies_on_the_side_of_the_true_one_and_holds_the_value():
    one = Evaluation(Largest(), {"x": torch.linspace(0.3, 0.9, 40)})
    low, high = bootstrap(one)
    assert low == one.value and one.value < high <= 1
    wide = Evaluation(Largest(), {"x": torch.linspace(-3, 0.9, 4)})
    assert bootstrap(wide)[1] == 1  # no better value than there can be


def test_a_network_is_resampled_once_however_often_it_is_compared(monkeypatch):
    asked = []
    whole = RMSE.resampled
    monkeypatch.setattr(RMSE, "resampled", lambda self, *given: asked.append(1) or whole(self, *given))
    before, after = regressed(1.0), regressed(1.4)
    first = paired_drop(before, after)
    assert len(asked) == 2 and paired_drop(before, after) == first
    assert bootstrap(before)[0] < before.value and len(asked) == 2


def regressed(error, n=200, seed=0):
    """What a network gave whose squared errors are about this."""
    g = torch.Generator().manual_seed(seed)
    squares = error * torch.rand(n, generator=g)
    return Evaluation(RMSE(points=0.1), {"squares": squares, "samples": torch.ones(n)})


@pytest.mark.slow
def test_the_paired_bootstrap_is_the_slow_loop_over_the_same_draws():
    before, after = regressed(1.0), regressed(1.4)
    drop, lost = paired_drop(before, after), []
    for counts in torch.cat(list(resamples(200))):
        index = [i for i, times in enumerate(counts.tolist()) for _ in range(times)]
        old, new = (float(one.evidence["squares"][index].double().mean()) ** 0.5 for one in (before, after))
        lost.append((new - old) / 0.1)
    lost = sorted(2 * drop.points - one for one in lost)
    assert len(lost) == 2000 and "2,000 resamples" in drop.interval
    assert drop.points == pytest.approx((after.value - before.value) / 0.1) and drop.points > 0
    assert (drop.low, drop.high) == pytest.approx((lost[50], lost[1949]), abs=0.01)
    assert drop.p_value == pytest.approx(2 / 2001)  # all draws agree: the least that so many draws can tell


def test_the_paired_bootstrap_sees_nothing_between_equal_networks_and_is_antisymmetric():
    one, other = regressed(1.0), regressed(1.0, seed=1)
    same = paired_drop(one, one)
    assert (same.points, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    there, back = paired_drop(one, other), paired_drop(other, one)
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))
    assert there.low < 0 < there.high and 0.05 < there.p_value < 1


def test_an_error_that_grows_is_lost_and_counts_in_points():
    before = Evaluation(MAE(points=0.5), {"score": torch.tensor([1.0, 2.0, 3.0])})
    after = Evaluation(MAE(points=0.5), {"score": torch.tensor([1.5, 2.5, 3.6])})
    drop = paired_drop(before, after)
    assert drop.points == pytest.approx(1.6 / 3 / 0.5) and not drop.within(1.0) and drop.low > 0


def test_draws_are_of_as_many_samples_in_chunks_as_at_once(monkeypatch):
    whole = torch.cat(list(resamples(30)))
    assert whole.shape == (2000, 30) and bool((whole.sum(1) == 30).all())
    assert float(whole.double().mean()) == 1 and whole.double().var() == pytest.approx(1 - 1 / 30, rel=0.05)
    assert torch.equal(whole, torch.cat(list(resamples(30))))
    monkeypatch.setattr("gossamer.measure.accuracy.CHUNK", 30 * 700)
    parts = list(resamples(30))
    assert [len(part) for part in parts] == [700, 700, 600] and torch.equal(torch.cat(parts), whole)


def test_a_record_has_the_name_and_the_unit_of_its_metric():
    row = score_record("original", regressed(1.0), split="validation")
    assert (row.unit, row.conditions["metric"]) == ("", "RMSE") and row.low < row.value < row.high
    percent = score_record("original", of(torch.tensor([1.0, 0.0])), split="test")
    assert (percent.unit, percent.value, percent.conditions["metric"]) == ("%", 50, "top-1")
    error = Evaluation(PerSample(function=lambda m, d: None, unit="mm"), {"score": torch.tensor([1.0, 0.0, 1.0])})
    assert score_record("original", error, split="test").high < 1


def test_a_budget_in_other_points_is_rounded_to_whole_samples_too():
    hits = Evaluation(PerSample(function=lambda m, d: None, points=0.1), {"score": torch.ones(30)})
    assert whole_samples(0.5, hits) == pytest.approx(2 / 30 / 0.1)  # of one and a half
