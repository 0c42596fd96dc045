"""Canonical polyadic decomposition: recovery, bounded norms, the chain of layers."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import input_rows
from gossamer.methods.lowrank import _cpd
from gossamer.methods.lowrank._chain import chain_macs, grouped_weight, make_chain
from gossamer.methods.lowrank._cpd import cp, equal_norms, rebuild
from gossamer.methods.lowrank.cp import CP
from gossamer.modules.cost import layer_costs

D = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(shape: tuple[int, ...], rank: int) -> Tensor:
    return rebuild([torch.randn(n, rank, generator=generator(n), dtype=D) for n in shape])


def test_rebuild_is_a_sum_of_outer_products() -> None:
    a, b, c = (torch.randn(n, 2, dtype=D) for n in (3, 4, 5))
    wanted = torch.zeros(3, 4, 5, dtype=D)
    for r in range(2):
        wanted += a[:, r, None, None] * b[None, :, r, None] * c[None, None, :, r]
    torch.testing.assert_close(rebuild([a, b, c]), wanted)
    torch.testing.assert_close(rebuild(equal_norms([a, b, c])), wanted)
    lengths = [f.norm(dim=0) for f in equal_norms([a, b, c])]
    torch.testing.assert_close(lengths[0], lengths[2])


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((6, 5, 4), 3), ((6, 5, 4), 5), ((6, 5, 3, 3), 1), ((6, 5, 3, 3), 4), ((7, 5, 4, 3), 3), ((64, 48, 3, 3), 40)],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_decomposition_is_found(shape: tuple[int, ...], rank: int, seed: int) -> None:
    tensor = planted(shape, rank)
    factors = cp(tensor, rank, penalty=0.0, sweeps=60, generator=generator(seed))
    assert float((rebuild(factors) - tensor).norm() / tensor.norm()) < 1e-6


def test_more_terms_than_channels_are_found_where_sweeps_alone_stay_in_a_swamp() -> None:
    tensor = planted((7, 6, 3, 3), 9)
    fit = _cpd._Fit(tensor, 0.0)
    start = _cpd.by_slices(tensor, 9, generator())
    found = [swept := fit.swept(start, 30)[0], fit.newton(fit.swept(start, 5)[1], 60)[0]]
    assert found[1] < 0.2 * swept


@pytest.mark.parametrize("penalty", [0.0, 1e-4])
def test_longer_steps_get_further_through_a_swamp_in_as_many_sweeps(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = planted((40, 32, 3, 3), 48)
    fit, start = _cpd._Fit(tensor, penalty), _cpd.by_slices(tensor, 48, generator())
    value, factors = fit.swept(start, 60)
    right = list(_cpd.products(tensor, factors))[-1]
    assert fit.objective(factors, right) <= value * (1 + 1e-9)  # even lengths may only lower it
    monkeypatch.setattr(_cpd, "FIRST_LONGER", 10**9)
    assert value < 0.9 * fit.swept(start, 60)[0]


@pytest.mark.parametrize("rank", [1, 4, 20, 54])
def test_the_start_by_slices_loses_the_energy_that_it_leaves_out(rank: int) -> None:
    tensor = torch.randn(7, 6, 3, 3, generator=generator(), dtype=D)
    start = _cpd.by_slices(tensor, rank, generator())
    assert [f.shape for f in start] == [(n, rank) for n in tensor.shape]
    error = float((rebuild(start) - tensor).square().sum() / tensor.square().sum())
    terms = torch.stack([f.norm(dim=0) for f in start]).prod(0).square()
    assert error == pytest.approx(1 - float(terms.sum() / tensor.square().sum()), abs=1e-9)
    assert error < (1 - rank / 54 if rank < 54 else 1e-12)  # the largest, more than so many of 54 have on average


def test_two_mixes_of_slices_tell_the_factors() -> None:
    tensor = planted((7, 6, 3, 3), 5)
    torch.testing.assert_close(rebuild(_cpd.by_pencil(tensor, 5, generator())), tensor)


def test_products_see_a_factor_that_changed_in_between() -> None:
    tensor = torch.randn(4, 5, 2, 3, generator=generator(), dtype=D)
    factors = [torch.randn(n, 2, generator=generator(n), dtype=D) for n in tensor.shape]
    for mode, found in enumerate(_cpd.products(tensor, factors)):
        others = [f for m, f in enumerate(factors) if m != mode]
        letters = ["abcd"[m] for m in range(4) if m != mode]
        wanted = torch.einsum(f"abcd,{','.join(a + 'z' for a in letters)}->{'abcd'[mode]}z", tensor, *others)
        torch.testing.assert_close(found, wanted)
        factors[mode] = factors[mode] + 1


def test_the_normal_matrix_is_that_of_the_rebuilt_tensor() -> None:
    factors = tuple(torch.randn(n, 2, generator=generator(n), dtype=D) for n in (3, 4, 2))
    parts = torch.autograd.functional.jacobian(lambda *f: rebuild(f).flatten(), factors)
    jacobian = torch.cat([part.flatten(1) for part in parts], 1)
    torch.testing.assert_close(_cpd.normal_matrix(factors), jacobian.T @ jacobian)


@pytest.mark.slow
def test_a_penalty_bounds_terms_that_cancel_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """a a b + a b a + b a a has rank 3, and is approached by rank 2 with factors that grow without bound."""
    monkeypatch.setattr(_cpd, "TOLERANCE", 0.0)
    a, b = torch.eye(2, dtype=D)
    tensor = torch.stack([torch.einsum("i,j,k->ijk", *t) for t in ((a, a, b), (a, b, a), (b, a, a))]).sum(0)

    def size(penalty: float, sweeps: int) -> float:
        factors = cp(tensor, 2, penalty=penalty, sweeps=sweeps, generator=generator())
        return max(float(f.norm()) for f in factors)

    assert size(0.0, 80) > 2 * size(0.0, 6)
    assert size(1e-2, 800) == pytest.approx(size(1e-2, 400), rel=1e-3)


def convolutions() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Conv2d(5, 6, 3, padding=1).to(D),
        nn.Conv2d(4, 5, (2, 3), stride=(2, 1), dilation=(2, 3), padding=(0, 2), bias=False).to(D),
        nn.Conv1d(4, 6, 5, stride=2, padding=1, dilation=2).to(D),
    ]


@pytest.mark.parametrize("one", convolutions())
@torch.no_grad()
def test_the_chain_computes_what_the_factors_say(one: nn.Conv2d) -> None:
    """On a kernel of rank 3 the chain is the layer; fitted to inputs, it is never worse."""
    x = torch.randn(10, one.in_channels, *(9, 11)[: len(one.kernel_size)], generator=generator(), dtype=D)
    factors = [torch.randn(n, 3, generator=generator(n), dtype=D) for n in one.weight.shape]
    weights = [f.T for f in factors[1:]] + [factors[0]]
    chain = make_chain(one, CP().chain(one, (3,)), weights)
    one.weight.data = rebuild(factors)
    torch.testing.assert_close(chain(x), one(x))
    rows = input_rows(one, x).transpose(0, 1).flatten(1, 2)
    gram = rows.mT @ rows
    errors = []
    for metric in (None, gram):
        two = make_chain(one, CP().chain(one, (2,)), CP(sweeps=20).solve(grouped_weight(one), (2,), metric))
        errors.append(float((two(x) - one(x)).square().sum()))
    assert errors[1] <= errors[0]
    calls = [(tuple(x.shape[2:]), tuple(one(x).shape[2:]))]
    macs = sum(row.macs for row in layer_costs(chain, (x,)))
    assert chain_macs(CP().chain(one, (3,)), one.kernel_size, calls) == macs


@torch.no_grad()
def test_kernels_as_a_whole_lose_less_at_the_same_rank() -> None:
    """And at the rank of the unfolding over outputs and inputs that has all, nothing."""
    one = nn.Conv2d(6, 7, 3, stride=2, padding=1, dilation=2).to(D)
    x = torch.randn(10, 6, 9, 11, generator=generator(), dtype=D)
    error = {}
    for apart in (True, False):
        scheme = CP(apart=apart, penalty=0, sweeps=40)
        chain = make_chain(one, scheme.chain(one, (8,)), scheme.solve(grouped_weight(one), (8,), None))
        error[apart] = float((chain(x) - one(x)).square().sum())
        assert [m.kernel_size for m in chain[1:-1]] == ([(3, 1), (1, 3)] if apart else [(3, 3)])
    assert error[False] < 0.9 * error[True]
    scheme = CP(apart=False, penalty=0, sweeps=40)
    exact = make_chain(one, scheme.chain(one, (54,)), scheme.solve(grouped_weight(one), (54,), None))
    torch.testing.assert_close(exact(x), one(x), rtol=1e-6, atol=1e-6)
    assert scheme.largest(grouped_weight(one)) == (378 // (7 + 6 + 9),)


@pytest.mark.slow
def test_what_is_lost_falls_with_the_rank() -> None:
    weight = grouped_weight(nn.Conv2d(6, 8, 3))
    [lost] = CP(sweeps=20).spectrum(weight, None, "lost").lost
    assert len(lost) == 1 + 432 // (8 + 6 + 3 + 3)
    assert lost[0] == 1 and bool((lost.diff() <= 0).all())


def test_groups_are_refused() -> None:
    assert "groups" in CP().refusal(nn.Conv2d(4, 4, 3, groups=2))
    assert "one position" in CP().refusal(nn.Linear(3, 3))
    assert not CP().refusal(nn.Conv3d(2, 2, 3))
