"""Widths from scores: exact counts, floors, multiples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.search.widths import FLOOR, ranked_widths, uniform_widths

SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 70), min_size=1)
SHARES = st.floats(0, 0.99)
STEPS = st.sampled_from([1, 8, 16])


def scores_of(sizes: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, generator=generator) + 0.01 for name, size in sizes.items()}


@given(sizes=SIZES, sparsity=SHARES, round_to=STEPS)
def test_uniform_widths_are_multiples_or_whole(sizes: dict[str, int], sparsity: float, round_to: int) -> None:
    for name, width in uniform_widths(sizes, sparsity, round_to=round_to).items():
        assert 1 <= width <= sizes[name]
        assert width % round_to == 0 or width == sizes[name]


@given(sizes=SIZES, sparsity=SHARES, round_to=STEPS, seed=st.integers(0, 99))
def test_ranked_widths_keep_the_floor_and_never_cut_more_than_asked(
    sizes: dict[str, int], sparsity: float, round_to: int, seed: int
) -> None:
    costs = {name: 1.0 + len(name) for name in sizes}
    widths = ranked_widths(scores_of(sizes, seed), costs, sparsity, round_to=round_to)
    removed = sum((sizes[name] - width) * costs[name] for name, width in widths.items())
    assert removed <= sparsity * sum(sizes[name] * costs[name] for name in sizes) + 1e-6
    for name, width in widths.items():
        assert min(sizes[name], round_to, max(1, int(FLOOR * sizes[name]))) <= width <= sizes[name]


@given(sizes=SIZES, seed=st.integers(0, 99), round_to=STEPS)
@pytest.mark.slow
def test_more_strength_never_keeps_more(sizes: dict[str, int], seed: int, round_to: int) -> None:
    scores, costs = scores_of(sizes, seed), dict.fromkeys(sizes, 1.0)
    widths = [ranked_widths(scores, costs, k / 10, round_to=round_to) for k in range(10)]
    assert widths[0] == sizes
    for lighter, heavier in itertools.pairwise(widths):
        assert all(heavier[name] <= lighter[name] for name in sizes)


def test_the_least_important_channel_per_cost_goes_first() -> None:
    scores = {"a": torch.tensor([1.0, 1.0, 1.0, 1.0]), "b": torch.tensor([4.0, 4.0, 0.4, 0.4])}
    assert ranked_widths(scores, {"a": 1.0, "b": 1.0}, 0.25) == {"a": 4, "b": 2}


def test_an_expensive_group_is_cut_before_a_cheap_one_of_equal_importance() -> None:
    scores = {"a": torch.ones(8), "b": torch.ones(8)}
    widths = ranked_widths(scores, {"a": 10.0, "b": 1.0}, 0.5)
    assert widths["a"] < widths["b"] == 8


def test_scores_of_different_scale_compare_after_normalisation() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(32, generator=generator) + 0.1 for _ in range(2))
    plain = ranked_widths({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, 0.4)
    assert ranked_widths({"a": 1e6 * a, "b": b}, {"a": 1.0, "b": 1.0}, 0.4) == plain
