"""The choice of ranks: energy, EVBMF, budgets."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import BadInput
from gossamer.methods.lowrank import _ranks
from gossamer.methods.lowrank._ranks import (
    Options,
    by_budget,
    by_energy,
    evbmf_rank,
    rank_grid,
    tails,
)


def planted(rows: int, columns: int, rank: int, noise: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
    return left @ right.T + noise * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def squares(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix).square()


@pytest.mark.parametrize("rank", [0, 1, 12])
@pytest.mark.parametrize("shape", [(40, 40), (300, 64)])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_evbmf_finds_the_planted_rank(rank: int, shape: tuple[int, int], noise: float) -> None:
    matrix = planted(*shape, rank, noise, seed=rank)
    assert evbmf_rank(squares(matrix), shape) == rank
    assert evbmf_rank(squares(1e-4 * matrix), shape) == rank


def test_evbmf_keeps_the_whole_rank_without_noise_and_nothing_of_zeros() -> None:
    assert evbmf_rank(squares(planted(30, 50, 7, 0.0, 0)), (30, 50)) == 7
    assert evbmf_rank(torch.zeros(30), (30, 50)) == 0


def test_evbmf_on_the_leading_part_of_a_spectrum() -> None:
    energies = squares(planted(80, 200, 6, 1.0, 3))
    assert evbmf_rank(energies[:20], (80, 200), float(energies.sum())) == 6


def test_tails_are_the_shares_left_out() -> None:
    torch.testing.assert_close(tails(torch.tensor([3.0, 1.0]), 8.0), torch.tensor([1.0, 0.625, 0.5]))
    assert tails(torch.zeros(2), 0.0).tolist() == [0, 0, 0]


def test_a_grid_has_every_combination_or_evenly_spread_ones() -> None:
    assert rank_grid((3,)).tolist() == [[1], [2], [3]]
    assert rank_grid((2, 3)).tolist() == [[a, b] for a in (1, 2) for b in (1, 2, 3)]
    large = rank_grid((500, 40, 500))
    assert len(large) <= _ranks.GRID_POINTS and large.amin(0).tolist() == [1, 1, 1]
    assert large.amax(0).tolist() == [500, 40, 500]


def options(lost: list[float], cost: int, dense: int) -> Options:
    count = torch.arange(1, len(lost) + 1)
    macs = count * cost
    return Options(
        ranks=count[:, None],
        macs=macs,
        params=macs,
        lost=torch.tensor(lost, dtype=torch.float64),
        dense_macs=dense,
        dense_params=dense,
    )


def test_energy_takes_the_cheapest_that_keeps_enough_and_pays() -> None:
    o = options([0.5, 0.2, 0.1, 0.0], 10, 35)
    assert by_energy(o, 0.8) == 1
    assert by_energy(o, 0.81) == 2
    assert by_energy(o, 0.95) is None  # rank 4 keeps it, and takes more than the layer


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.27, 0.95))
def test_a_budget_is_kept_and_no_choice_as_cheap_is_better(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in "abc":
        energies = torch.rand(4, generator=generator, dtype=torch.float64).sort(descending=True).values
        lost = tails(energies, float(energies.sum()))[1:]
        layers[name] = options(lost.tolist(), int(torch.randint(3, 9, (), generator=generator)), 30)
    picks = by_budget(layers, share, "macs")

    def judge(picks: dict[str, int | None]) -> tuple[float, float]:
        found = [(layers[n], p) for n, p in picks.items()]
        cost = sum(o.dense_macs if p is None else int(o.macs[p]) for o, p in found)
        loss = sum(0.0 if p is None else -math.log(max(1 - float(o.lost[p]), 1e-30)) for o, p in found)
        return cost, loss

    cost, loss = judge(picks)
    assert cost <= share * 90
    choices = [[None, *(i for i in range(4) if bool(layers[n].paying()[i]))] for n in "abc"]
    for other in itertools.product(*choices):
        other_cost, other_loss = judge(dict(zip("abc", other)))
        assert other_cost > cost or other_loss >= loss - 1e-9


def test_a_budget_below_the_cheapest_says_what_can_be_had() -> None:
    with pytest.raises(BadInput, match=r"macs = 0\.1: .* cheaper than 0\.200"):
        by_budget({"a": options([0.5, 0.2], 10, 50)}, 0.1, "macs")


def test_a_budget_on_parameters_counts_parameters() -> None:
    o = Options(
        ranks=torch.tensor([[1], [2]]),
        macs=torch.tensor([10, 20]),
        params=torch.tensor([6, 9]),
        lost=torch.tensor([0.5, 0.1]).double(),
        dense_macs=100,
        dense_params=10,
    )
    assert by_budget({"a": o}, 0.7, "params") == {"a": 0}
    assert by_budget({"a": o}, 0.7, "macs") == {"a": 1}
