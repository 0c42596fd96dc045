"""Channels by reconstruction: regression paths, greedy and combinatorial choices, against slow doubles and planted
answers."""

import itertools

import pytest
import torch
from torch import Tensor

from gossamer.calibration.channel_selection import (
    GramSystem,
    best_channels,
    contributions,
    eliminate,
    explained,
    greedy_channels,
    lasso_channels,
    lasso_path,
    refit,
    unexplained,
)

COUNT, TAPS = 6, 2


def data(seed: int = 0, rows: int = 200, correlated: float = 0.8) -> tuple[Tensor, Tensor]:
    """Inputs of six channels of two columns each, and weights of five outputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, COUNT * TAPS, dtype=torch.double, generator=draw)
    x = x + correlated * x[:, torch.randperm(COUNT * TAPS, generator=draw)]
    return x, torch.randn(COUNT * TAPS, 5, dtype=torch.double, generator=draw)


def system(x: Tensor, w: Tensor, y: Tensor | None = None) -> GramSystem:
    y = x @ w if y is None else y
    channels = torch.arange(len(w)) // TAPS
    return GramSystem(same=x.T @ x, cross=x.T @ y, weight=w, channels=channels, energy=float(y.square().sum()))


def parts(x: Tensor, w: Tensor) -> Tensor:
    """What each channel gives, shape (channels, rows * outputs)."""
    pairs = zip(x.split(TAPS, 1), w.split(TAPS))
    return torch.stack([(one @ own).flatten() for one, own in pairs])


def error(x: Tensor, y: Tensor, kept: list[int]) -> float:
    """The relative error of the best weights on the kept channels, by least squares on the data itself."""
    columns = [c for i in kept for c in range(TAPS * i, TAPS * i + TAPS)]
    fit = x[:, columns] @ torch.linalg.lstsq(x[:, columns], y).solution
    return float((y - fit).square().sum() / y.square().sum())


def test_contributions_are_inner_products_of_what_channels_give() -> None:
    x, w = data()
    y = x @ w + 0.1
    z, energy = parts(x, w), float(y.square().sum())
    inner, outer = contributions([system(x, w, y)] * 2, COUNT)
    torch.testing.assert_close(inner, 2 * z @ z.T / energy, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outer, 2 * z @ y.flatten() / energy, rtol=1e-10, atol=1e-12)


def test_columns_that_always_stay_are_taken_off_the_outputs() -> None:
    x, w = data()
    ones, bias = torch.ones(len(x), 1, dtype=torch.double), torch.full((1, 5), 0.7, dtype=torch.double)
    full, weight, y = torch.cat([x, ones], 1), torch.cat([w, bias]), x @ w + 0.7
    channels = torch.cat([torch.arange(COUNT * TAPS) // TAPS, torch.tensor([-1])])
    same, energy = full.T @ full, float((x @ w).square().sum())
    one = GramSystem(same=same, cross=full.T @ y, weight=weight, channels=channels, energy=energy)
    for got, wanted in zip(contributions([one], COUNT), contributions([system(x, w)], COUNT)):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert explained(one, range(COUNT), damp=0.0) * energy == pytest.approx(float(y.square().sum()))


def test_every_point_of_the_path_meets_the_conditions_of_the_lasso() -> None:
    """|<Z_i, rest>| <= lambda, with equality and the sign of b_i where b_i is not zero."""
    x, w = data(3)
    y = x @ w + torch.randn(len(x), 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    inner, outer = contributions([system(x, w, y)], COUNT)
    lambdas, solutions = lasso_path(inner, outer)
    assert len(lambdas) > COUNT and float(lambdas[-1]) < 1e-12
    for strength, b in zip(lambdas, solutions.T):
        gradient = outer - inner @ b
        assert bool((gradient.abs() <= strength + 1e-12).all())
        active = b != 0
        torch.testing.assert_close(gradient[active], strength * b[active].sign(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("choose", ["lasso", "elimination"])
def test_planted_channels_are_recovered(choose: str) -> None:
    x, w = data(5)
    y = x @ w.where((torch.arange(len(w)) // TAPS % 2 == 0)[:, None], 0.0)  # channels 0, 2 and 4 alone matter
    one = system(x, w, y)
    kept = lasso_channels(*contributions([one], COUNT), 3) if choose == "lasso" else eliminate([one], COUNT, 3)
    assert kept == [0, 2, 4]
    assert unexplained([one], kept, damp=0.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("keep", range(1, COUNT + 1))
def test_each_gives_as_many_as_are_asked_for(keep: int) -> None:
    one = system(*data(7))
    inner, outer = contributions([one], COUNT)
    for kept in (lasso_channels(inner, outer, keep), greedy_channels(inner, keep), best_channels([one], COUNT, keep)):
        assert kept == sorted(set(kept)) and len(kept) == keep


def test_the_greedy_choice_removes_what_is_smallest_together() -> None:
    x, w = data(8)
    z = parts(x, w)
    kept = greedy_channels(contributions([system(x, w)], COUNT)[0], 4)
    single = int(z.square().sum(1).argmin())
    pairs = {j: float((z[single] + z[j]).square().sum()) for j in range(COUNT) if j != single}
    assert set(range(COUNT)) - set(kept) == {single, min(pairs, key=lambda j: pairs[j])}


def test_the_greedy_choice_is_not_worse_than_a_random_one() -> None:
    for seed in range(10):
        x, w = data(seed)
        z = parts(x, w)
        kept = greedy_channels(contributions([system(x, w)], COUNT)[0], 3)

        def lost(kept: list[int] | tuple[int, ...], z: Tensor = z) -> float:
            return float(z[[i for i in range(COUNT) if i not in kept]].sum(0).square().sum())

        every = sorted(lost(one) for one in itertools.combinations(range(COUNT), 3))
        assert lost(kept) <= every[len(every) // 2]


def test_the_error_that_is_left_is_that_of_least_squares_on_the_data() -> None:
    x, w = data(9)
    for kept in ([0, 3], [1, 2, 5], list(range(COUNT))):
        assert unexplained([system(x, w)], kept, damp=0.0) == pytest.approx(error(x, x @ w, kept), abs=1e-10)


def test_exchanges_are_never_worse_than_greedy_and_elimination_and_mostly_the_best() -> None:
    best = 0
    for seed in range(6):
        one = system(*data(seed, correlated=1.5))
        greedy = greedy_channels(contributions([one], COUNT)[0], 3)
        found = best_channels([one], COUNT, 3, starts=[greedy])
        errors = [unexplained([one], kept) for kept in (found, greedy, eliminate([one], COUNT, 3))]
        assert errors[0] <= min(errors[1:]) + 1e-12
        every = min(unexplained([one], list(kept)) for kept in itertools.combinations(range(COUNT), 3))
        best += errors[0] < every + 1e-9
    assert best >= 5


def test_exchanges_lead_out_of_a_bad_start() -> None:
    """The elimination of several layers is beaten where it went wrong; from any start the error falls."""
    systems = [system(*data(seed, correlated=2.0)) for seed in (11, 12)]
    start = max(itertools.combinations(range(COUNT), 3), key=lambda kept: unexplained(systems, list(kept), damp=1e-5))
    no_swaps = best_channels(systems, COUNT, 3, starts=[start], swaps=0)
    assert unexplained(systems, no_swaps) < unexplained(systems, list(start))
    assert unexplained(systems, best_channels(systems, COUNT, 3, starts=[start])) <= unexplained(systems, no_swaps)


def test_elimination_keeps_the_inverse_right() -> None:
    """Each removal is the cheapest by the errors of fits from scratch."""
    one = system(*data(13))
    left = list(range(COUNT))
    for keep in range(COUNT - 1, 0, -1):
        tried = {i: unexplained([one], [j for j in left if j != i], damp=1e-5) for i in left}
        left.remove(min(tried, key=lambda i: tried[i]))
        assert eliminate([one], COUNT, keep) == left


def test_refit_weights_are_those_of_least_squares_and_with_all_channels_nothing_changes() -> None:
    x, w = data(14)
    one = system(x, w)
    assert torch.equal(refit(one, range(COUNT), damp=1e-3), w) or torch.allclose(
        refit(one, range(COUNT), damp=1e-3), w, rtol=0, atol=1e-12
    )
    kept = refit(one, [1, 4], damp=1e-12)
    columns = [2, 3, 8, 9]
    torch.testing.assert_close(kept[columns], torch.linalg.lstsq(x[:, columns], x @ w).solution, rtol=1e-6, atol=1e-8)
    assert not bool(kept[[0, 1, 4, 5, 6, 7, 10, 11]].any())
