"""`share.ecsq`: the Lagrangian falls, the budget holds, the limits of its parameters are other known methods."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import stripes, tiny
from torch import Tensor

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.share._decoded import Books
from gossamer.methods.share.ecsq import (
    ECSQ,
    Levels,
    assign_centers,
    centered,
    iterate,
    lagrangian,
    price_for,
    quantize_entropy_constrained,
    uniform,
)


def gaussian(n: int = 20_000, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(values: Tensor) -> float:
    """Bits per value, counted anew."""
    share = values.unique(return_counts=True)[1] / values.numel()
    return float(-(share * share.log2()).sum())


@given(st.integers(0, 1000), st.floats(1e-4, 1.0))
@settings(max_examples=40)
@pytest.mark.slow
def test_the_lagrangian_never_grows(seed: int, price: float) -> None:
    w, h = gaussian(400, seed), gaussian(400, seed + 1).square() + 0.01
    levels = uniform(w, h, price)
    seen = [lagrangian(levels, price)]
    for _ in range(10):
        levels = assign_centers(levels, price)
        seen.append(levels.distortion + price * float((levels.counts * levels.prices).sum()))
        levels = centered(levels)
        seen.append(lagrangian(levels, price))
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(seen))


def test_bits_and_distortion_are_what_they_are_called() -> None:
    w, h = gaussian(300), gaussian(300, 1).square()
    levels = iterate(uniform(w, h, 0.05), 0.05, 5)
    held = levels.centers[levels.chosen]
    assert levels.distortion == pytest.approx(float((h * (w - held) ** 2).sum()))
    assert levels.bits == pytest.approx(300 * entropy(held) + 32 * (len(levels.centers) - 1), rel=1e-6)
    for j in set(levels.chosen.tolist()) - {levels.zero}:
        mine = levels.chosen == j
        assert float(levels.centers[j]) == pytest.approx(float((h[mine] * w[mine]).sum() / h[mine].sum()))
    assert float(levels.centers[levels.zero]) == 0


def test_a_free_bit_gives_the_nearest_center() -> None:
    w, h = gaussian(500), torch.ones(500, dtype=torch.float64)
    levels = uniform(w, h, 0.3)
    free = assign_centers(levels, 0.0)
    assert torch.equal(free.chosen, (w[:, None] - levels.centers).abs().argmin(1))


def test_zeros_stay_zero_also_where_another_value_is_cheaper() -> None:
    w = torch.cat([torch.zeros(5), torch.full((1000,), 0.01)]).double()
    centers = torch.tensor([0.0, 0.01], dtype=torch.float64)
    levels = Levels(weights=w, importance=torch.ones_like(w), centers=centers, chosen=(w > 0).long())
    assert torch.equal(assign_centers(levels, 1.0).chosen, (w > 0).long())


def test_dearer_bits_are_fewer() -> None:
    w, h = gaussian(5000), torch.ones(5000, dtype=torch.float64)
    bits = [iterate(uniform(w, h, price), price, 10).bits for price in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    assert bits == sorted(bits, reverse=True)


def test_uniform_steps_are_a_quarter_of_a_bit_from_shannon() -> None:
    """D(R) of a Gaussian is 2^(-2 R); entropy-coded uniform steps need 0.2546 bits more at high rate."""
    w = gaussian(400_000)
    levels = uniform(w, torch.ones_like(w), 0.001)
    held = levels.centers[levels.chosen]
    shannon = -0.5 * math.log2(float((w - held).square().mean()))
    assert entropy(held) - shannon == pytest.approx(0.2546, abs=0.01)


def test_one_more_bit_lowers_the_error_by_its_price() -> None:
    """Steps a little wider and a little finer: the slope of distortion over bits is the price."""
    w, h = gaussian(200_000), torch.full((200_000,), 3.0, dtype=torch.float64)
    coarse, fine = (uniform(w, h, price) for price in (0.011, 0.009))
    entropies = [float((x.counts * x.prices).sum()) for x in (coarse, fine)]
    assert (coarse.distortion - fine.distortion) / (entropies[1] - entropies[0]) == pytest.approx(0.01, rel=0.05)


def test_layers_that_matter_more_get_finer_steps() -> None:
    w = {"a": gaussian(3000), "b": gaussian(3000, 1)}
    h = {"a": torch.full((3000,), 100.0), "b": torch.ones(3000)}
    found = quantize_entropy_constrained(w, h, 0.05, 0)
    errors = {n: float((w[n] - x.centers[x.chosen]).square().mean()) for n, x in found.items()}
    assert errors["b"] / errors["a"] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("iterations", [0, 5])
@pytest.mark.parametrize("bits", [1.0, 3.0])
@pytest.mark.slow
def test_the_price_meets_the_budget_and_hardly_wastes_any(bits: float, iterations: int) -> None:
    w = {"a": gaussian(40_000), "b": 3 * gaussian(10_000, 1)}
    h = {name: torch.ones_like(x) for name, x in w.items()}
    price = price_for(w, h, bits, iterations)
    total = sum(levels.bits for levels in quantize_entropy_constrained(w, h, price, iterations).values())
    assert 0.97 * bits * 50_000 < total <= bits * 50_000


@pytest.mark.parametrize(("spread", "low", "high"), [(0.0, 0.98, 1.01), (2.0, 0.0, 0.8)])
@pytest.mark.slow
def test_iterations_pay_where_weights_differ_in_importance(spread: float, low: float, high: float) -> None:
    """Uniform steps are nearly optimal for a Gaussian; what they cannot do is spend fewer bits on what matters less."""
    w, h = {"a": gaussian(20_000)}, {"a": (spread * gaussian(20_000, 1)).exp()}
    error = {n: quantize_entropy_constrained(w, h, price_for(w, h, 1.5, n), n)["a"].distortion for n in (0, 10)}
    assert low < error[10] / error[0] < high


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(BadInput, match="bits_per_weight"):
        ECSQ(bits_per_weight=0)
    with pytest.raises(BadInput, match="importance"):
        ECSQ(importance="hesian")  # type: ignore[arg-type]


@pytest.mark.parametrize("codebook", ["network", "layer"])
@pytest.mark.slow
def test_zeros_stay_and_the_budget_is_over_all_layers(codebook: Books) -> None:
    model = tiny()
    name = "body.1.conv2.weight"
    keep = effective_weight(model, name).abs() > 0.05
    model = constrain(model, {name: Mask(keep)})
    context = Context()
    quantized = ECSQ(bits_per_weight=5.0, samples=32, codebook=codebook).apply(model, stripes(), context)
    assert not effective_weight(quantized, name)[~keep].any()
    weights = [effective_weight(quantized, n).flatten() for n in weights_of(quantized)]
    books = [torch.cat(weights)] if codebook == "network" else weights
    bits = sum(w.numel() * entropy(w) + 32 * len(w[w != 0].unique()) for w in books)
    assert bits > 4.0 * sum(w.numel() for w in weights)
    assert bits <= 5.0 * sum(w.numel() for w in weights) + 1e-6
    assert len(context.log.edits) == len(weights)
