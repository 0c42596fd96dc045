"""The trellis and the rate-aware quantizers against slow loops, brute force and uniform rounding."""

import itertools

import numpy as np
import pytest
from coder_data import laplacian
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadInput
from gossamer.gsr.codec import rates, scalar, trellis, viterbi
from gossamer.gsr.codec.integers import Integers
from gossamer.gsr.codec.section import encode_section
from gossamer.models import pretrained

# ISO/IEC 15938-17: the state after an even and after an odd index.
MACHINE = [(0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)]


def slow_levels(indices: list[int]) -> list[int]:
    state, levels = 0, []
    for k in indices:
        levels.append(2 * k if state % 2 == 0 else 2 * k - int(np.sign(k)))
        state = MACHINE[state][k % 2]
    return levels


@given(indices=st.lists(st.integers(-9, 9), max_size=60))
def test_levels_are_those_of_the_machine_and_give_the_indices_back(indices: list[int]) -> None:
    q = np.array([indices], np.int32)
    levels = trellis.levels_of(q)
    assert levels.tolist() == [slow_levels(indices)]
    assert np.array_equal(trellis.indices_of(levels)[0], q)
    assert trellis.follows(levels)


@given(levels=st.lists(st.integers(-3, 3), max_size=8))
def test_levels_that_the_machine_cannot_reach_are_told_apart(levels: list[int]) -> None:
    state, possible = 0, True
    for level in levels:
        possible = possible and (level == 0 or (level - state) % 2 == 0)
        state = MACHINE[state][((abs(level) + state % 2) // 2 if level else 0) % 2]
    assert trellis.follows(np.array([levels], np.int32)) == possible


def test_every_state_can_be_entered_from_two_and_the_two_quantizers_alternate() -> None:
    assert sorted(to for pair in MACHINE for to in pair) == sorted([*range(8), *range(8)])
    assert trellis.NEXT.tolist() == [list(pair) for pair in MACHINE]


def test_weights_are_levels_times_the_step() -> None:
    levels = np.array([[3, -2, 0]], np.int32)
    assert trellis.dequantize(levels, 0.1).tolist() == [[np.float32(n) * np.float32(0.1) for n in (3, -2, 0)]]


def path_cost(x: np.ndarray, gain: np.ndarray, lagrangian: float, bits: np.ndarray, indices: tuple[int, ...]) -> float:
    state, cost = 0, 0.0
    for value, weight, k in zip(x, gain, indices):
        level = 2 * k - (state % 2) * np.sign(k)
        cost += weight * (value - level) ** 2 + lagrangian * bits[state % 2, 0, abs(k)]
        state = MACHINE[state][k % 2]
    return cost


@pytest.mark.parametrize("lagrangian", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.slow
def test_the_path_is_the_cheapest_of_all(lagrangian: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        x, gain = rng.laplace(0, 1.5, 5).clip(-4, 4), rng.uniform(0.2, 3, 5)
        bits = rates.first_rates(x.reshape(1, -1), kinds=2).bits[:, 12:13]
        bits[1] += np.linspace(0, 1, bits.shape[2])
        levels = np.zeros(5, np.int32)
        viterbi.viterbi(x, gain, lagrangian, bits, np.zeros(5, np.uint8), trellis.NEXT, 0, levels)
        indices = tuple(trellis.indices_of(levels)[0].tolist())
        best = min(path_cost(x, gain, lagrangian, bits, p) for p in itertools.product(range(-3, 4), repeat=5))
        assert path_cost(x, gain, lagrangian, bits, indices) == pytest.approx(best)


@pytest.mark.slow
def test_without_a_price_for_bits_rounding_is_to_nearest_and_the_trellis_is_better() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (40, 50))
    nearest = scalar.quantize(weights, 0.2, 0.0)
    assert np.array_equal(nearest, np.rint(weights / 0.2))
    error = ((trellis.quantize(weights, 0.1, 0.0) * 0.1 - weights) ** 2).mean()
    assert error < 0.85 * ((nearest * 0.2 - weights) ** 2).mean()


@pytest.mark.parametrize("quantizer", [scalar, trellis])
def test_a_dearer_bit_means_fewer_bits_and_more_error(quantizer) -> None:  # type: ignore[no-untyped-def]
    weights = np.random.default_rng(0).laplace(0, 1, (60, 70))
    errors, sizes = [], []
    for lagrangian in (0.0, 0.1, 0.3, 1.0):
        q = quantizer.quantize(weights, 0.3, lagrangian)
        errors.append(((q * 0.3 - weights) ** 2).mean())
        sizes.append(len(encode_section([Integers(q=q, trellis=quantizer is trellis)], "cm4")))
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.9 * sizes[0]


@pytest.mark.parametrize("quantizer", [scalar, trellis])
def test_important_weights_are_kept_nearer(quantizer) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    weights, importance = rng.laplace(0, 1, (60, 70)), np.where(rng.random((60, 70)) < 0.5, 1.9, 0.1)
    error = (quantizer.quantize(weights, 0.5, 0.4, importance) * 0.5 - weights) ** 2
    assert error[importance > 1].mean() < 0.6 * error[importance < 1].mean()


@pytest.mark.parametrize("name", ["lenet300", "resnet20"])
def test_at_equal_error_the_trellis_takes_fewer_bytes_than_uniform_rounding(name: str) -> None:
    """The steps are such that the trellis has the smaller error as well."""
    tensors = [p.detach().flatten(1).numpy() for p in pretrained(name, "fashion-mnist").parameters() if p.ndim > 1]
    spread = float(np.sqrt(np.mean(np.concatenate([w.ravel() for w in tensors]) ** 2)))
    sizes, errors = {}, {}
    for quantizer, step, price in ((scalar, 0.6 * spread, 0.0), (trellis, 0.36 * spread, 0.3)):
        levels = [quantizer.quantize(w, step, price) for w in tensors]
        sizes[quantizer] = len(encode_section([Integers(q=q, trellis=quantizer is trellis) for q in levels], "cm4"))
        errors[quantizer] = sum(float(((q * step - w) ** 2).sum()) for q, w in zip(levels, tensors))
    assert errors[trellis] <= errors[scalar]
    assert sizes[trellis] < 0.98 * sizes[scalar]


def test_the_state_is_worth_its_context() -> None:
    levels = trellis.quantize(np.random.default_rng(0).laplace(0, 1, (100, 200)), 0.4, 0.3)
    with_state, without = (len(encode_section([Integers(q=levels, trellis=t)], "cm4")) for t in (True, False))
    assert with_state < 0.9 * without


def test_long_tensors_are_quantized_in_chunks_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).normal(0, 1, (20, 50))
    whole = trellis.quantize(weights, 0.3, 0.2)
    monkeypatch.setattr(trellis, "CHUNK", 333)
    parts = trellis.quantize(weights, 0.3, 0.2)
    assert trellis.follows(parts)
    assert ((parts * 0.3 - weights) ** 2).mean() == pytest.approx(((whole * 0.3 - weights) ** 2).mean(), rel=0.05)


@pytest.mark.parametrize("quantizer", [scalar, trellis])
def test_empty_zero_and_huge_weights(quantizer) -> None:  # type: ignore[no-untyped-def]
    assert quantizer.quantize(np.zeros((0, 3)), 1.0, 0.1).shape == (0, 3)
    assert not quantizer.quantize(np.zeros((4, 3)), 1.0, 0.1).any()
    huge = np.array([[31999.0, -31999.0, 0.2]])
    assert np.abs(quantizer.quantize(huge, 1.0, 0.01) - huge).max() <= 1.5


@pytest.mark.parametrize(
    ("weights", "step", "price", "importance", "message"),
    [
        (np.zeros(3), 1.0, 0.0, None, "shape"),
        (np.zeros((1, 3)), 0.0, 0.0, None, "step=0.0"),
        (np.zeros((1, 3)), float("nan"), 0.0, None, "step=nan"),
        (np.zeros((1, 3)), 1.0, -1.0, None, "lagrangian=-1.0"),
        (np.zeros((1, 3)), 1.0, 0.0, np.ones((3, 1)), "importance"),
        (np.zeros((1, 3)), 1.0, 0.0, np.array([[1.0, -1.0, 1.0]]), "importance"),
        (np.full((1, 3), np.nan), 1.0, 0.0, None, "NaN"),
        (np.full((1, 3), 1e5), 1.0, 0.0, None, "larger step"),
    ],
)
@pytest.mark.parametrize("quantizer", [scalar, trellis])
def test_bad_arguments_are_refused(quantizer, weights, step, price, importance, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=message):
        quantizer.quantize(weights, step, price, importance)


def test_laplacian_data_is_what_the_name_says() -> None:
    assert np.abs(laplacian(200, 200, 2.0)).mean() == pytest.approx(2.5, rel=0.4)
