import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadInput
from gossamer.measure import mcnemar, paired_drop, top1_record, whole_samples, wilson
from gossamer.measure.accuracy import bootstrap


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


def test_a_budget_of_a_part_of_a_sample_is_rounded_up_to_a_whole_one():
    hits = torch.ones(300)
    assert whole_samples(0.5, hits) == pytest.approx(100 * 2 / 300)  # of one and a half
    assert whole_samples(0.01, hits) == pytest.approx(100 * 1 / 300)
    assert whole_samples(1.0, hits) == pytest.approx(1.0) and whole_samples(0.0, hits) == 0.0
    assert whole_samples(3.5, hits) == 3.5  # ten and a half: a part of one does not matter
    assert whole_samples(0.5, 0.7 * hits) == 0.5 and whole_samples(0.5, torch.ones(5000)) == 0.5
    lost = torch.ones(300)
    lost[:2] = 0
    assert paired_drop(hits, lost).within(whole_samples(0.5, hits))


def test_paired_drop_counts_points_lost_on_the_same_samples():
    before, after = torch.ones(200), torch.ones(200)
    after[:5] = 0
    before[10:12] = 0
    drop = paired_drop(before, after)
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
    there, back = paired_drop(a, b), paired_drop(b, a)
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)
    same = paired_drop(a, a)
    assert (same.points, same.p_value) == (0, 1)


def test_paired_drop_of_graded_scores_sees_a_small_but_constant_loss():
    before = torch.linspace(0.2, 0.9, 50)
    after = before - 0.01 + 0.001 * torch.linspace(-1, 1, 50)
    drop = paired_drop(before, after)
    assert drop.points == pytest.approx(1.0, abs=0.01) and drop.p_value < 1e-6 and drop.low > 0.9


def test_the_point_estimate_decides_the_budget():
    before, after = torch.ones(1000), torch.ones(1000)
    after[:5] = 0
    drop = paired_drop(before, after)
    assert drop.within(0.5) and not drop.within(0.49)
    assert drop.to_record("small", split="validation").conditions["split"] == "validation"


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 4)])
def test_paired_drop_refuses_scores_of_other_samples(a, b):
    with pytest.raises(BadInput, match="same samples"):
        paired_drop(torch.ones(a), torch.ones(b))


def test_top1_record_has_value_interval_and_size():
    row = top1_record("original", torch.tensor([1.0, 1.0, 0.0, 1.0]), split="test")
    assert (row.value, row.n, row.what, row.conditions["split"]) == (75, 4, "top1", "test")
    assert (row.low, row.high) == wilson(3, 4)


def test_graded_scores_have_a_bootstrap_interval_and_none_of_wilson():
    """For many scores it is the normal interval, which is far narrower than one of hits and misses."""
    scores = 0.6 + 0.1 * torch.rand(2000, generator=torch.Generator().manual_seed(1))
    row = top1_record("original", scores, split="test")
    half = 100 * 1.96 * float(scores.std()) / 2000**0.5
    assert row.conditions["interval"] == "95 % bootstrap"
    assert (row.value - row.low, row.high - row.value) == pytest.approx((half, half), rel=0.1)
    assert (row.low, row.high) == bootstrap(scores) == bootstrap(scores.double())
    with pytest.raises(BadInput, match="hits and misses"):
        wilson(scores)


def test_scores_of_0_and_1_are_hits_and_misses():
    row = top1_record("original", torch.tensor([1.0, 0.0]), split="test")
    assert row.conditions["interval"] == "95 % Wilson"


def test_the_bootstrap_holds_the_mean_within_the_scores_and_narrows_with_confidence():
    scores = torch.tensor([0.1, 0.5, 0.7, 0.9])
    low, high = bootstrap(scores)
    assert 10 <= low < 55 < high <= 90
    assert low < bootstrap(scores, confidence=0.5)[0]
    with pytest.raises(BadInput, match="at least one score"):
        bootstrap(torch.zeros(0))
