"""Factorizations of single layers: identities, errors, costs."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, input_rows
from gossamer.errors import BadInput
from gossamer.methods.lowrank import _matrices
from gossamer.methods.lowrank._alternating import along_rows, alternated, fit_vertical
from gossamer.methods.lowrank._chain import chain_macs, chain_params, dense_factor, grouped_weight, kernel_of
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._matrices import (
    balance,
    by_columns,
    channel_gram,
    corrected,
    last_factor,
    principal,
    split_matrix,
)
from gossamer.methods.lowrank._notes import product, relative_error, spectrum_rows
from gossamer.methods.lowrank.biclustered import BiclusteredFactors
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.predicted import PredictedParameters, chosen_rows, predictor, smooth
from gossamer.methods.lowrank.separable import TRANSFORMS, SeparableFilters, cosines, filters, haar, learned
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tensor_train import TensorTrain, joined_factors, tt_svd
from gossamer.methods.lowrank.tucker import Tucker, alternating_sweeps
from gossamer.modules.cost import layer_costs
from gossamer.modules.inserted import Reorder

D = torch.float64


def layer(kind: str) -> Any:
    torch.manual_seed(0)
    return {
        "linear": lambda: nn.Linear(10, 7),
        "tall linear": lambda: nn.Linear(5, 12, bias=False),
        "1x1": lambda: nn.Conv2d(6, 8, 1, stride=2, padding=1),
        "1x1 groups": lambda: nn.Conv2d(6, 8, 1, groups=2),
        "plain": lambda: nn.Conv2d(5, 6, 3, padding=1),
        "odd": lambda: nn.Conv2d(4, 5, (2, 3), stride=(2, 1), dilation=(2, 3), padding=(0, 2), bias=False),
        "groups": lambda: nn.Conv2d(6, 8, 3, padding=2, groups=2, stride=2),
        "depthwise": lambda: nn.Conv2d(4, 8, 5, padding=1, groups=4),
        "same": lambda: nn.Conv2d(4, 6, (3, 4), padding="same", padding_mode="circular"),
        "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
        "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
        "1d": lambda: nn.Conv1d(4, 6, 5, stride=2, padding=1, dilation=2),
        "3d": lambda: nn.Conv3d(3, 4, (2, 3, 3), padding=(1, 0, 1), stride=(1, 2, 1)),
    }[kind]().to(D)


def inputs(one: Any, count: int = 20, seed: int = 0) -> Tensor:
    """Correlated channels, not centred, so that a metric matters."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(one, nn.Linear):
        mix = torch.randn(one.in_features, one.in_features, generator=generator, dtype=D)
        return torch.randn(count, one.in_features, generator=generator, dtype=D) @ mix + 0.5
    channels, spatial = one.in_channels, (11, 13, 7)[: len(one.kernel_size)]
    mix = torch.randn(channels, channels, generator=generator, dtype=D)
    noise = torch.randn(count, *spatial, channels, generator=generator, dtype=D) @ mix
    return noise.movedim(-1, 1) + 0.5


def gram_of(one: Layer, x: Tensor) -> Tensor:
    rows = input_rows(one, x).transpose(0, 1).flatten(1, 2)
    return rows.mT @ rows / len(x)


ALL_CONVOLUTIONS = ("plain", "odd", "groups", "depthwise", "same", "valid", "reflect", "3d")
SCHEMES: list[tuple[LowRank, tuple[str, ...]]] = [
    (SVD(), ("linear", "tall linear", "1x1", "1x1 groups")),
    (ChannelDecomposition(), (*ALL_CONVOLUTIONS, "1d")),
    (ChannelDecomposition(across="inputs"), (*ALL_CONVOLUTIONS, "1d")),
    (SpatialDecomposition(), ALL_CONVOLUTIONS),
    (Tucker(), ("plain", "odd", "groups", "same", "1d", "3d")),
    (TensorTrain(), ("plain", "odd", "groups", "depthwise", "same", "1d", "3d")),
    (PredictedParameters(), ("plain", "odd", "groups", "1d", "3d")),
    (PredictedParameters(grid=(2, 5)), ("linear",)),
    (SeparableFilters(), ALL_CONVOLUTIONS),
    (BiclusteredFactors(), ("same", "valid", "reflect", "1d")),
    (BiclusteredFactors(inputs=3, outputs=2), ("3d",)),
    (BiclusteredFactors(inputs=1, outputs=5), ("odd",)),
    (SeparableFilters(basis="shared"), ("plain", "odd", "groups", "3d")),
    (SeparableFilters(basis="dct"), ("plain", "odd", "groups", "3d")),
    (SeparableFilters(basis="haar"), ("plain", "odd", "groups", "3d")),
]
CASES = [pytest.param(s, k, id=f"{s.name()}-{n}-{k}") for n, (s, kinds) in enumerate(SCHEMES) for k in kinds]
each = pytest.mark.parametrize(("scheme", "kind"), CASES)


def full_rank(scheme: LowRank, one: Layer) -> tuple[int, ...]:
    return scheme.largest(grouped_weight(one))


def chain_of(scheme: LowRank, one: Layer, rank: tuple[int, ...], gram: Tensor | None = None) -> nn.Sequential:
    assert not scheme.refusal(one)
    return scheme.build(one, grouped_weight(one), rank, gram)


def layers_of(chain: nn.Sequential) -> list[Any]:
    return [m for m in chain if not isinstance(m, Reorder)]


def ranks_of(scheme: LowRank, one: Layer) -> list[tuple[int, ...]]:
    """Ranks from 1 to full, all modes in step, as far as a tensor can have them together."""
    full = full_rank(scheme, one)
    steps = [tuple(max(1, n * step // 4) for n in full) for step in range(5)]
    return [rank for rank in steps if bool(scheme.possible(one, torch.tensor([rank])).all())]


@each
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
@pytest.mark.slow
def test_full_rank_is_the_layer(scheme: LowRank, kind: str, weighted: bool) -> None:
    one = layer(kind)
    x = inputs(one)
    chain = chain_of(scheme, one, full_rank(scheme, one), gram_of(one, x) if weighted else None)
    torch.testing.assert_close(chain(x), one(x), rtol=1e-6, atol=1e-6)
    *inner, last = layers_of(chain)
    assert (last.bias is None) == (one.bias is None)
    assert all(type(m) is type(one) for m in (*inner, last))
    assert all(m.bias is None for m in inner)


@each
@torch.no_grad()
@pytest.mark.slow
def test_the_error_of_the_weights_falls_with_the_rank(scheme: LowRank, kind: str) -> None:
    """The impulse responses are the weights."""
    one = layer(kind)
    x = torch.randn(40, *inputs(one).shape[1:], generator=torch.Generator().manual_seed(5), dtype=D)
    gram = torch.eye(grouped_weight(one)[0, 0].numel(), dtype=D).expand(len(grouped_weight(one)), -1, -1)
    errors = [weight_error(one, chain_of(scheme, one, rank), gram) for rank in ranks_of(scheme, one)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[0] > 1e-3 * float(one.weight.square().sum()) or full_rank(scheme, one) == (1,)
    assert (chain_of(scheme, one, ranks_of(scheme, one)[0])(x) - one(x)).isfinite().all()


def impulse(chain: nn.Sequential, one: Any) -> Tensor:
    """The weight (g, O, D) that a chain has as one layer, by sending unit windows through it."""
    groups, size = len(grouped_weight(one)), grouped_weight(one)[0, 0].numel()
    if isinstance(one, nn.Linear):
        units = torch.eye(size, dtype=D)
        return (chain(units) - chain(torch.zeros_like(units))).T[None]
    copies: list[Any] = []
    for m in chain:
        if not isinstance(m, Reorder):
            own, m = m, type(m)(m.in_channels, m.out_channels, m.kernel_size, groups=m.groups, bias=False).to(D)
            m.weight.data = own.weight.data
        copies.append(m)
    units = torch.eye(size, dtype=D).view(size, -1, *one.kernel_size)
    result = nn.Sequential(*copies)(units.repeat(1, groups, *[1] * len(one.kernel_size)))
    return result.flatten(1).T.unflatten(0, (groups, -1))


@each
@torch.no_grad()
@pytest.mark.slow
def test_a_chain_as_one_weight(scheme: LowRank, kind: str) -> None:
    one = layer(kind)
    rank = ranks_of(scheme, one)[-2]
    chain = chain_of(scheme, one, rank)
    found, wanted = product(one, list(chain)), impulse(chain, one)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    x = inputs(one)
    gram = gram_of(one, x)
    whole = float((grouped_weight(one).flatten(2) @ gram * grouped_weight(one).flatten(2)).sum())
    error = relative_error(one, list(chain), grouped_weight(one), gram)
    assert error == pytest.approx((weight_error(one, chain, gram) / whole) ** 0.5, rel=1e-3, abs=1e-6)


def test_spectra_mark_the_rank_and_keep_the_values_around_it() -> None:
    sizes = torch.linspace(4, 0.5, 300, dtype=D)
    tail = 1 - torch.cat([torch.zeros(1, dtype=D), sizes.square().cumsum(0)]) / sizes.square().sum()
    [row] = spectrum_rows([tail], [101], ["rank"], singular=True)
    assert len(row.ranks) < 90 and row.ranks[0] == 1 and row.ranks[-1] == 300 and row.rank == 101
    assert {101, 102} <= set(row.ranks)
    wanted = [float(sizes[n - 1] / 4) for n in row.ranks]
    torch.testing.assert_close(torch.tensor(row.values, dtype=D), torch.tensor(wanted, dtype=D), rtol=1e-3, atol=1e-3)
    [row] = spectrum_rows([torch.tensor([1.0, 0.25, 0.0])], [2], ["terms"], singular=False)
    assert (row.what, row.ranks, row.values) == ("error", [0, 1, 2], [1.0, 0.5, 0.0])


def weight_error(one: Any, chain: nn.Sequential, gram: Tensor) -> float:
    change = impulse(chain, one) - grouped_weight(one).flatten(2)
    return float((change @ gram * change).sum())


@each
@torch.no_grad()
@pytest.mark.slow
def test_fitted_to_the_inputs_the_outputs_are_never_worse(scheme: LowRank, kind: str) -> None:
    one = layer(kind)
    x = inputs(one)
    gram = gram_of(one, x)
    for rank in ranks_of(scheme, one)[:-1]:
        plain, fitted = chain_of(scheme, one, rank), chain_of(scheme, one, rank, gram)
        error = [float((chain(x) - one(x)).square().sum()) for chain in (plain, fitted)]
        assert error[1] <= error[0] * (1 + 1e-9) + 1e-9
        assert error[1] == pytest.approx(len(x) * weight_error(one, fitted, gram), rel=1e-6, abs=1e-8)


@each
@pytest.mark.slow
def test_costs_are_those_of_the_network(scheme: LowRank, kind: str) -> None:
    one = layer(kind)
    x = inputs(one, 2)
    with torch.no_grad():
        y = one(x)
    linear = isinstance(one, nn.Linear)
    calls = [((1,), (1,))] if linear else [(tuple(x.shape[2:]), tuple(y.shape[2:]))]
    rank = ranks_of(scheme, one)[-2]
    chain, factors = chain_of(scheme, one, rank), scheme.chain(one, rank)
    assert chain_macs(factors, kernel_of(one), calls) == sum(row.macs for row in layer_costs(chain, (x,)))
    assert chain_params(factors, kernel_of(one)) == sum(m.weight.numel() for m in layers_of(chain))
    whole = nn.Sequential(one)
    assert chain_macs([dense_factor(one)], kernel_of(one), calls) == sum(r.macs for r in layer_costs(whole, (x,)))
    vector = scheme.chain(one, [torch.tensor([r, r]) for r in rank])
    assert chain_macs(vector, kernel_of(one), calls).tolist() == [chain_macs(factors, kernel_of(one), calls)] * 2


@pytest.mark.parametrize(("rank", "saving"), [(10, 34.9), (20, 17.5), (50, 7.0), (100, 3.5)])
def test_savings_of_a_vertical_and_a_horizontal_convolution(rank: int, saving: float) -> None:
    """K d (C + N) for N C d^2: N = 256, C = 96, d = 5."""
    one = nn.Conv2d(96, 256, 5, padding=2)
    calls = [((27, 27), (27, 27))]
    dense = chain_macs([dense_factor(one)], (5, 5), calls)
    assert dense == 614_400 * 27 * 27
    assert dense / chain_macs(SpatialDecomposition().chain(one, (rank,)), (5, 5), calls) == pytest.approx(
        saving, abs=0.05
    )


@torch.no_grad()
def test_tais_error_is_the_energy_of_the_singular_values_left_out() -> None:
    one = layer("plain")
    n, c, k, width = one.weight.shape
    table = torch.empty(c * k, n * width, dtype=D)
    for cc in range(c):
        for i in range(k):
            for nn_ in range(n):
                for j in range(width):
                    table[cc * k + i, nn_ * width + j] = one.weight[nn_, cc, i, j]
    squares = torch.linalg.svdvals(table).square()
    gram = torch.eye(c * k * width, dtype=D)[None]
    for rank in (1, 4, 9):
        error = weight_error(one, chain_of(SpatialDecomposition(), one, (rank,)), gram)
        assert error == pytest.approx(float(squares[rank:].sum()), rel=1e-9)


@torch.no_grad()
def reconstruction(dtype: torch.dtype = D) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, the second moment of correlated inputs, and the pair of filters after one pass."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 2, 3, 3, generator=generator, dtype=D)
    mix = torch.randn(2, 18, 18, generator=generator, dtype=D) * torch.linspace(0.05, 1, 18, dtype=D)
    x = torch.randn(2, 90, 18, generator=generator, dtype=D) @ mix
    gram = x.mT @ x / 90
    vertical = split_matrix(by_columns(weight), 2)[1]
    outer = last_factor(weight.flatten(2), along_rows(vertical, 3), gram)
    return weight.flatten(2).to(dtype), gram.to(dtype), vertical.to(dtype), outer.to(dtype)


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_filters_fitted_in_turn_reach_the_optimum_of_gradient_descent(dtype: torch.dtype) -> None:
    target, gram, vertical, outer = reconstruction(dtype)

    def error(v: Tensor, h: Tensor) -> Tensor:
        rest = target - torch.einsum("gorl,grp->gopl", h.unflatten(2, (2, 3)), v).flatten(2)  # type: ignore[no-untyped-call]
        return torch.einsum("gop,gpq,goq->", rest, gram, rest)

    fitted = float(error(*alternated(target, vertical, outer, gram, 3)))
    pair = [vertical.contiguous().requires_grad_(), outer.contiguous().requires_grad_()]
    descent = torch.optim.LBFGS(pair, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        loss = error(pair[0], pair[1])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    once = float(descent.step(closure).detach())
    assert fitted < 0.9 * once
    assert fitted == pytest.approx(float(error(pair[0], pair[1]).detach()), rel=2e-3)


def test_each_fit_of_vertical_filters_is_the_least_squares_solution() -> None:
    target, gram, vertical, outer = reconstruction()
    by_column = gram.unflatten(2, (-1, 3)).movedim(3, 1)  # type: ignore[no-untyped-call]
    found = fit_vertical(target, vertical, outer, by_column)
    for g in range(2):  # one column of the system for each number of the filters: the obvious way
        root = torch.linalg.cholesky(gram[g])
        units = torch.eye(vertical[g].numel(), dtype=D).view(-1, 1, *vertical[g].shape)
        columns = torch.stack([((outer[g] @ along_rows(unit, 3)[0]) @ root).flatten() for unit in units], 1)
        wanted = torch.linalg.lstsq(columns, (target[g] @ root).flatten()[:, None]).solution
        torch.testing.assert_close(found[g].flatten(), wanted[:, 0], rtol=1e-6, atol=1e-8)


def test_a_rank_one_kernel_is_recovered_exactly() -> None:
    one = layer("plain")
    vertical, horizontal = torch.randn(5, 3, dtype=D), torch.randn(6, 3, dtype=D)
    one.weight.data = torch.einsum("ci,nj->ncij", vertical, horizontal)
    x = inputs(one)
    torch.testing.assert_close(chain_of(SpatialDecomposition(), one, (1,))(x), one(x))


@torch.no_grad()
def test_the_weighted_svd_is_the_best_of_its_rank() -> None:
    """No truncated decomposition of W S S^-1, S S^T = G, has a smaller error, and the plain one a larger."""
    one = layer("linear")
    x = inputs(one, 50)
    gram = gram_of(one, x)[0]
    root = torch.linalg.cholesky(gram)
    u, s, v = torch.linalg.svd(one.weight @ root, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(root)
    outer, inner = split_matrix(one.weight[None], 3, gram[None])
    torch.testing.assert_close((outer @ inner)[0], best, rtol=1e-6, atol=1e-8)
    plain = chain_of(SVD(), one, (3,))
    assert float((plain(x) - one(x)).square().sum()) > 1.5 * len(x) * float(s[3:].square().sum())


def test_a_singular_gram_does_no_harm() -> None:
    one = layer("linear")
    x = inputs(one, 4)
    chain = chain_of(SVD(), one, (4,), gram_of(one, x))
    torch.testing.assert_close(chain(x), one(x))


@torch.no_grad()
def test_large_matrices_get_the_leading_part_of_their_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    falling = torch.exp(-torch.arange(120) / 10.0).double()
    w = torch.linalg.qr(torch.randn(120, 120, generator=generator, dtype=D)).Q * falling
    w = (w @ torch.linalg.qr(torch.randn(150, 120, generator=generator, dtype=D)).Q.T)[None]
    mix = torch.randn(150, 150, generator=generator, dtype=D)
    for gram in (None, (mix @ mix.T)[None]):
        monkeypatch.setattr(_matrices, "EXACT_SIZE", 2048)
        left, energies = principal(w, gram)
        monkeypatch.setattr(_matrices, "EXACT_SIZE", 100)
        u, leading = principal(w, gram)
        assert leading.shape == (1, 30) and u.shape == (1, 120, 30)
        torch.testing.assert_close(leading, energies[:, :30], rtol=1e-3, atol=1e-6 * float(energies[0, 0]))
        torch.testing.assert_close(u[0, :, :5].T @ left[0, :, :5] @ left[0, :, :5].T @ u[0, :, :5], torch.eye(5).to(D))


@pytest.mark.parametrize("rank", [20, 45, 70])
@torch.no_grad()
def test_large_matrices_get_any_rank_that_is_asked_for(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one beyond the part of the spectrum that is looked at otherwise."""
    monkeypatch.setattr(_matrices, "EXACT_SIZE", 64)
    generator = torch.Generator().manual_seed(0)
    for sizes in ((100, 120), (120, 100)):
        w = torch.randn(1, *sizes, generator=generator, dtype=D)
        outer, inner = split_matrix(w, rank)
        assert outer.shape[2] == inner.shape[1] == rank
        left_out = torch.linalg.svdvals(w[0])[rank:].square().sum()
        assert float((w - outer @ inner).square().sum()) <= 1.05 * float(left_out)


def test_balanced_factors_have_equal_lengths_and_the_same_product() -> None:
    left, right = torch.randn(2, 5, 3, dtype=D), torch.randn(2, 3, 4, dtype=D)
    left[0, :, 1] = 0
    a, b = balance(left, right)
    torch.testing.assert_close(a @ b, left @ right)
    torch.testing.assert_close(a.norm(dim=1)[1], b.norm(dim=2)[1])


def test_the_last_factor_is_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, inner = torch.randn(30, 6, generator=generator, dtype=D), torch.randn(3, 6, generator=generator, dtype=D)
    w = torch.randn(4, 6, generator=generator, dtype=D)
    found = last_factor(w[None], inner[None], (x.T @ x)[None])[0]
    wanted = torch.linalg.lstsq(x @ inner.T, x @ w.T).solution.T
    torch.testing.assert_close(found, wanted)


def test_a_corrected_target_gives_from_the_new_inputs_what_the_old_gave() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100, 6, generator=generator, dtype=D)
    turn = torch.randn(6, 6, generator=generator, dtype=D)
    x, w = z @ turn, torch.randn(1, 4, 6, generator=generator, dtype=D)
    found = corrected(w, (x.T @ x)[None] / 100, (z.T @ x)[None] / 100)
    before = ((x @ w[0].T - z @ w[0].T).square().sum(), (x @ found[0].T - z @ w[0].T).square().sum())
    assert before[1] < 1e-3 * before[0]
    same = (x.T @ x)[None]
    torch.testing.assert_close(corrected(w, same, same), w)


def test_the_gram_of_single_taps_is_the_mean_over_the_others() -> None:
    rows = torch.randn(7, 2, 3, 4, dtype=D)  # windows of 2 channels, 3 x 4
    gram = rows.flatten(1).T @ rows.flatten(1)
    wanted = sum(rows[:, :, i, j].T @ rows[:, :, i, j] for i in range(3) for j in range(4)) / 12
    torch.testing.assert_close(channel_gram(gram[None], 2, (3, 4))[0], wanted)
    columns = sum(rows[..., j].flatten(1).T @ rows[..., j].flatten(1) for j in range(4)) / 4
    torch.testing.assert_close(channel_gram(gram[None], 2, (3, 4), keep=(0,))[0], columns)


@torch.no_grad()
def test_tuckers_iteration_is_better_than_its_start_and_finds_a_planted_core() -> None:
    generator = torch.Generator().manual_seed(0)

    def error(weight: Tensor, a: Tensor, b: Tensor) -> float:
        near = torch.einsum("gnct,gnp,gmp,gcr,gdr->gmdt", weight, a, a, b, b)
        return float((near - weight).square().sum())

    weight = torch.randn(1, 8, 7, 9, generator=generator, dtype=D)
    start = [
        torch.linalg.svd(weight[0].movedim(mode, 0).flatten(1)).U[None, :, :count] for mode, count in ((0, 3), (1, 2))
    ]
    assert error(weight, *alternating_sweeps(weight, (3, 2))) < error(weight, start[0], start[1])
    a, b = (torch.randn(n, r, generator=generator, dtype=D) for n, r in ((8, 3), (7, 2)))
    planted = torch.einsum("np,cr,prt->nct", a, b, torch.randn(3, 2, 9, generator=generator, dtype=D))[None]
    assert error(planted, *alternating_sweeps(planted, (3, 2))) < 1e-20 * float(planted.square().sum())


@torch.no_grad()
def test_a_trains_error_is_at_most_what_its_unfoldings_lose() -> None:
    one = layer("plain")
    weight = grouped_weight(one)
    lost = TensorTrain().spectrum(weight, None, "lost").lost
    for rank in ((2, 4, 3), (5, 9, 4)):
        *inner, last = tt_svd(weight, rank)
        error = float((last @ joined_factors(inner) - weight.flatten(2)).square().sum() / weight.square().sum())
        assert 0 < error <= sum(float(tail[r]) for tail, r in zip(lost, rank)) + 1e-12
        assert error >= max(float(tail[r]) for tail, r in zip(lost, rank)) - 1e-12


@pytest.mark.parametrize("size", [2, 3, 5])
def test_cosines_are_orthonormal_and_the_first_is_flat(size: int) -> None:
    basis = cosines(size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis[:, 0], torch.full((size,), size**-0.5, dtype=D))
    assert basis[0, 1] == pytest.approx((2 / size) ** 0.5 * math.cos(math.pi / (2 * size)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_wavelets_are_orthonormal_and_have_two_levels_each(size: int) -> None:
    basis = haar(size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis[:, 0], torch.full((size,), size**-0.5, dtype=D))
    assert all(len(column[column != 0].unique()) == 2 for column in basis.T[1:].contiguous().round(decimals=12))


def test_wavelets_of_four_are_haars() -> None:
    r = 2**-0.5
    wanted = [[0.5, 0.5, r, 0], [0.5, 0.5, -r, 0], [0.5, -0.5, 0, r], [0.5, -0.5, 0, -r]]
    torch.testing.assert_close(haar(4), torch.tensor(wanted, dtype=D))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_coefficients_that_are_dropped_are_what_is_lost(name: Any) -> None:
    """Parseval: the error is the energy of the dropped coefficients."""
    weight = grouped_weight(layer("plain"))
    basis = torch.kron(TRANSFORMS[name](3), TRANSFORMS[name](3))
    energies = (weight.flatten(3) @ basis).square().sum((0, 1, 2)).sort(descending=True).values
    [lost] = SeparableFilters(basis=name).spectrum(weight, None, "lost").lost
    wanted = [float(energies[r:].sum() / energies.sum()) for r in range(10)]
    torch.testing.assert_close(lost, torch.tensor(wanted, dtype=D))


@pytest.mark.slow
def test_a_planted_bank_of_separable_filters_is_found() -> None:
    """Filters mixed from three separable ones: three that are learned and shared hold all of them; cosines do not."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(1, 5, 3, generator=generator, dtype=D) for _ in range(2))
    bank = (torch.randn(40, 3, generator=generator, dtype=D) @ filters([u, v])[0]).view(1, 40, 5, 5)
    found = filters(learned(bank, 3))
    rest = bank.flatten(2) - bank.flatten(2) @ torch.linalg.pinv(found) @ found
    assert float(rest.norm() / bank.norm()) < 1e-3
    weight = bank.view(1, 8, 5, 5, 5)
    lost = {
        basis: SeparableFilters(basis=basis).spectrum(weight, None, "lost").lost[0]
        for basis in ("own", "shared", "dct")
    }
    assert lost["shared"][3] < 1e-5 < 0.05 < lost["dct"][3]
    assert (lost["own"] <= lost["shared"] + 1e-4).all()


@pytest.mark.slow
def test_one_separable_filter_for_each_channel_is_its_first_singular_pair() -> None:
    weight = torch.randn(1, 1, 6, 5, 5, generator=torch.Generator().manual_seed(1), dtype=D)
    [lost] = SeparableFilters().spectrum(weight, None, "lost").lost
    squares = torch.linalg.svdvals(weight[0, 0]).square()
    assert float(lost[1]) == pytest.approx(1 - float(squares[:, 0].sum() / squares.sum()), abs=1e-6)


def test_smooth_weights_are_predicted_from_few() -> None:
    """Smooth ones better the more are kept; noise is not predicted; all of them are the weights themselves."""
    kernel = smooth((12, 12), 2.0)
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(6, 144, generator=generator, dtype=D)
    errors = {}
    for name, weight in (("smooth", rough @ kernel), ("noise", rough)):
        for count in (18, 36, 72):
            picks = chosen_rows(kernel, count)
            assert len(set(picks.tolist())) == count
            guess = weight[:, picks] @ predictor(kernel, picks)
            errors[name, count] = float((guess - weight).norm() / weight.norm())
    assert errors["smooth", 72] < errors["smooth", 36] < errors["smooth", 18] < 0.7
    assert errors["smooth", 36] < 0.1 < 0.7 < errors["noise", 36]
    torch.testing.assert_close(predictor(kernel, torch.arange(144)) @ kernel, kernel, atol=1e-3, rtol=1e-3)


def test_kernel_of_a_grid_is_the_distance_in_pixels() -> None:
    kernel = smooth((2, 3), 0.5)
    assert float(kernel[0, 5]) == pytest.approx(math.exp(-(1 + 4) / 0.5))
    assert float(kernel[2, 3]) == pytest.approx(math.exp(-(1 + 4) / 0.5))


@torch.no_grad()
def test_the_covariance_tells_which_inputs_predict_the_others() -> None:
    """Inputs that are mixes of three: three are kept, and the map is not trained."""
    one = layer("linear")
    x = torch.randn(60, 3, dtype=D) @ torch.randn(3, 10, dtype=D)
    scheme = PredictedParameters(kernel="covariance", data="inputs")
    chain = chain_of(scheme, one, (3,), gram_of(one, x))
    torch.testing.assert_close(chain(x), one(x), rtol=1e-4, atol=1e-4)
    assert [p.requires_grad for p in chain.parameters()] == [False, True, True]
    with pytest.raises(BadInput, match="needs data"):
        PredictedParameters(kernel="covariance")
    assert "grid [3, 3]" in PredictedParameters(grid=(3, 3)).refusal(one)
