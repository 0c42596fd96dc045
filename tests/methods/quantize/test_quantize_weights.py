"""Grids for weights, and rounding that is learned: uniform, LSQ, AdaRound."""

import itertools
import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.calibration.moments import moments
from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.grid import (
    Grid,
    PerChannel,
    PerTensor,
    bits_by_layer,
    grid_errors,
    max_scales,
    mse_scales,
    rows,
)
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.jobs.recipe import parse
from gossamer.methods.quantize._rounding import flip_pairs, flip_rounding, reconstruction_error, sequential_rounding
from gossamer.methods.quantize.adaround import AdaRound, best_rounding, learn_rounding
from gossamer.methods.quantize.lsq import LearnedStepSize, first_scales, learned_grid
from gossamer.methods.quantize.uniform import UniformQuantization, bits_grid, step_grid

GRANULARITIES = [PerTensor(), PerChannel(), PerChannel(dim=1)]


def weight(seed: int, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g)


# Uniform


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 12), granularity=st.sampled_from(GRANULARITIES))
@settings(max_examples=40)
def test_no_weight_moves_more_than_half_a_step(seed: int, bits: int, granularity: Any) -> None:
    w = weight(seed, 4, 3, 2)
    grid = bits_grid(w, bits, granularity)
    value = grid(w)
    scale = grid.scale if grid.scale.ndim == 0 else grid.scale.view([-1 if d == grid.dim else 1 for d in range(3)])
    assert ((value - w).abs() <= scale / 2 * (1 + 1e-5)).all()
    codes = value / scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.abs().max().round() == 2 ** (bits - 1) - 1
    assert grid.scale.numel() == (1 if isinstance(granularity, PerTensor) else w.shape[granularity.dim])


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
@settings(max_examples=30)
def test_a_scale_for_every_channel_is_no_worse_than_one(seed: int, bits: int) -> None:
    """With the least squared error this is a law; with the largest weight it holds for the bound on the error."""
    w = weight(seed, 6, 10)
    high = 2 ** (bits - 1) - 1
    one, each = (rows(w, g) for g in (PerTensor(), PerChannel()))
    scales = mse_scales(one, high)
    candidates = torch.minimum(
        grid_errors(each, mse_scales(each, high), high), grid_errors(each, max_scales(each, high), high)
    )
    assert candidates.sum() <= grid_errors(one, scales, high).sum() * 1.02
    assert (max_scales(each, high) <= max_scales(one, high)).all()


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
@settings(max_examples=20)
def test_least_squares_scale_is_no_worse_than_the_largest(seed: int, bits: int) -> None:
    r, high = rows(weight(seed, 5, 40), PerChannel()), 2 ** (bits - 1) - 1
    assert (grid_errors(r, mse_scales(r, high), high) <= grid_errors(r, max_scales(r, high), high)).all()


def test_zero_stays_zero_and_a_channel_of_zeros_does_no_harm() -> None:
    w = weight(0, 4, 9)
    w[1], w[:, 2] = 0, 0
    for granularity, scale in product(GRANULARITIES[:2], ("max", "mse")):
        value = bits_grid(w, 4, granularity, scale)(w)
        assert not value[w == 0].any() and value.isfinite().all()


def test_a_step_gives_its_multiples() -> None:
    w = torch.tensor([0.26, -0.61, 0.1, 0.0])
    grid = step_grid(w, 0.25)
    assert grid(w).tolist() == [0.25, -0.5, 0.0, 0.0] and (grid.qmin, grid.qmax) == (-2, 2)
    assert step_grid(w / 100, 0.25).qmax == 1


def test_uniform_holds_every_layer_with_the_bits_that_it_was_given() -> None:
    context = Context()
    result = UniformQuantization(bits=3, layer_bits={"body.*": 4, "body.1.conv1": 5}).apply(tiny(), task(), context)
    values = {
        name: len(effective_weight(result, f"{name}.weight")[0].unique()) for name in ("stem", "body.0.conv1", "head")
    }
    assert values["stem"] <= 7 and 7 < values["body.0.conv1"] <= 15
    after = {edit.target: edit.after for edit in context.log.edits}
    assert after["stem.weight"] == "7 values, 8 scales" and after["body.1.conv1.weight"] == "31 values, 8 scales"
    assert all(isinstance(stack[-1], Grid) for stack in constraints(result).values())


def test_a_mask_under_a_grid_keeps_its_zeros() -> None:
    mask = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    result = materialize(
        UniformQuantization(bits=2)(constrain(tiny(), {"stem.weight": Mask(mask)}), task(), Context()).model
    )
    assert not weights_of(result)["stem.weight"][~mask].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either bits or step"),
        ({"bits": 4, "step": 0.1}, "either bits or step"),
        ({"step": 0.1, "layer_bits": {"stem": 8}}, "layer_bits goes with bits"),
        ({"bits": 4, "scale": "mean"}, "unknown quantize.uniform scale 'mean'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        UniformQuantization(**options)


def test_bits_by_layer_refuses_what_it_does_not_know() -> None:
    assert bits_by_layer(["a", "b.c"], 4, {"b.*": 8}) == {"a": 4, "b.c": 8}
    with pytest.raises(NoEffect, match="'x' matches none"):
        bits_by_layer(["a"], 4, {"x": 8})
    with pytest.raises(BadInput, match=r"'a' = 1 must be in \[2, 16\]"):
        bits_by_layer(["a"], 4, {"a": 1})
    with pytest.raises(BadInput, match=r"dim = 2 must be in \[0, 2\)"):
        rows(torch.ones(2, 2), PerChannel(dim=2))


def test_granularity_is_readable_in_yaml() -> None:
    text = "name: r\nsteps:\n- quantize.uniform: {bits: 4, granularity: {per: tensor}}\n"
    [step] = parse(text).steps
    assert step == UniformQuantization(bits=4, granularity=PerTensor())
    [step] = parse(text.replace("per: tensor", "per: channel, dim: 1")).steps
    assert step == UniformQuantization(bits=4, granularity=PerChannel(dim=1))


# Learned step size


def test_first_step_size_is_that_of_the_paper_over_weights_that_are_there() -> None:
    r = torch.tensor([[0.5, -1.5, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(first_scales(r, 7), torch.tensor([2 * 1.0, 2 * 0.1]) / 7**0.5)


def slow_gradient(w: float, s: float, low: int, high: int) -> float:
    """Equation 3 of the paper."""
    if w / s <= low:
        return low
    if w / s >= high:
        return high
    return -w / s + round(w / s)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_the_step_size_is_that_of_the_paper(bits: int) -> None:
    w, up = weight(1, 5, 12), weight(2, 5, 12)
    grid = learned_grid(w, bits, PerTensor())
    assert (grid.qmin, grid.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    (grid(w) * up).sum().backward()
    slow = sum(
        u * slow_gradient(v, grid.scale.item(), grid.qmin, grid.qmax)
        for v, u in zip(w.flatten().tolist(), up.flatten().tolist())
    )
    assert isinstance(grid.scale, nn.Parameter) and grid.scale.grad is not None
    torch.testing.assert_close(float(grid.scale.grad), slow / (60 * grid.qmax) ** 0.5, rtol=1e-4, atol=1e-5)


def accuracy(model: nn.Module) -> float:
    return float(stripes().metric.score(model, stripes().test))


@pytest.mark.slow
def test_training_the_grid_wins_back_what_rounding_loses() -> None:
    model, data = learned(), stripes()
    context = Context(original=learned())
    rounded = UniformQuantization(bits=2, granularity=PerTensor())(model, data, Context()).model
    trained = LearnedStepSize(bits=2, epochs=4, lr=0.02).apply(model, data, context)
    assert accuracy(trained) > accuracy(rounded) + 0.1
    before = learned_grid(effective_weight(model, "stem.weight"), 2, PerTensor())
    [grid] = constraints(trained)["stem.weight"]
    assert isinstance(grid, Grid) and not torch.equal(grid.scale, before.scale)
    assert all(len(w.unique()) <= 4 for w in weights_of(materialize(trained)).values())
    assert context.log.edits[0].after == "4 values, 1 trained scales"


# AdaRound


def problem(seed: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, its scale, and moments of inputs that go together strongly."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(8, 8, generator=g, dtype=torch.double)
    x = torch.randn(groups, 50, 8, generator=g, dtype=torch.double) @ mix
    z = x + 0.1 * torch.randn(x.shape, generator=g, dtype=torch.double)
    w = torch.randn(groups, 5, 8, generator=g)
    scale = mse_scales(w.flatten(0, 1), 3).view(groups, 5, 1)
    return w, scale, x.mT @ x / 50, z.mT @ x / 50


def test_reconstruction_error_is_that_of_the_outputs() -> None:
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(9, 4, generator=g) for _ in range(2))
    v, w = (torch.randn(3, 4, generator=g) for _ in range(2))
    slow = (z @ w.T - x @ v.T).square().sum(0) - (z @ w.T).square().sum(0)
    torch.testing.assert_close(reconstruction_error(v[None], w[None], (x.T @ x)[None], (z.T @ x)[None])[0], slow)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_learned_rounding_is_never_worse_than_nearest_and_sequential_rounding(seed: int) -> None:
    w, scale, same, cross = problem(seed, groups=2)
    codes = best_rounding(w, scale, 3, same, cross, iterations=60)
    nearest, sequential = (w / scale).round().clamp(-3, 3), sequential_rounding(w, scale, 3, same, cross).float()
    error, *others = (
        reconstruction_error((scale * c).double(), w.double(), same, cross) for c in (codes, nearest, sequential)
    )
    assert all(bool((error <= other + 1e-9).all()) for other in others)
    assert torch.equal(flip_pairs(codes, w, scale, 3, same, cross), codes)
    floor = (w / scale).floor()
    assert ((codes == floor.clamp(-3, 3)) | (codes == (floor + 1).clamp(-3, 3))).all()


def test_learned_rounding_is_near_the_best_of_all() -> None:
    """Against all 256 ways to round eight weights up or down, for five outputs."""
    w, scale, same, cross = problem(3)
    choices = torch.tensor(list(product((0.0, 1.0), repeat=8)))
    floor = (w / scale).floor()
    ways = (floor[:, :, None] + choices).clamp(-3, 3)  # (1, outputs, 256, 8)
    value = (scale[..., None] * ways).double()
    const = ((w.double() @ same) * w.double()).sum(2)[0]
    target = w.double() @ cross
    errors = ((value @ same[:, None] - 2 * target[:, :, None]) * value).sum(3)[0] + const[:, None]
    learned_codes = learn_rounding(w, scale, 3, same.float(), cross.float(), iterations=400)
    nearest = (w / scale).round().clamp(-3, 3)
    found, rounded = (
        reconstruction_error((scale * c).double(), w.double(), same, cross)[0] + const for c in (learned_codes, nearest)
    )
    best = errors.min(1).values
    assert (found - best).sum() < 0.25 * (rounded - best).sum()


def test_zeros_are_not_rounded_up() -> None:
    w, scale, same, cross = problem(0)
    w[..., ::2] = 0
    assert not learn_rounding(w, scale, 3, same.float(), cross.float(), 30)[..., ::2].any()


@pytest.mark.slow
def test_adaround_gives_outputs_nearer_to_the_original_than_nearest_rounding() -> None:
    model, data = learned(), stripes()
    nearest = UniformQuantization(bits=3, scale="mse")(model, data, Context()).model
    rounded = AdaRound(bits=3, iterations=150)(model, data, Context()).model

    def distance(net: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(F.mse_loss(net(x), model(x))) for x in data.calibration)

    assert distance(rounded) < 0.7 * distance(nearest)
    for name, w in weights_of(materialize(rounded)).items():
        assert max(len(row.unique()) for row in w.flatten(1)) <= 7, name
        [grid] = constraints(rounded)[name]
        torch.testing.assert_close(grid(w), w)


def test_later_layers_see_what_the_quantized_ones_before_them_give() -> None:
    model, data = learned(), stripes()
    rounded = AdaRound(bits=2, iterations=30)(model, data, Context()).model
    same, cross = moments(rounded, model, ["head"], data.calibration)["head"]
    w, q = (effective_weight(m, "head.weight")[None].double() for m in (model, rounded))
    [grid] = constraints(rounded)["head.weight"]
    assert isinstance(grid, Grid)
    nearest = grid(effective_weight(model, "head.weight"))[None].double()
    errors = [reconstruction_error(v, w, same, cross) for v in (q, nearest)]
    assert (errors[0] <= errors[1] + 1e-6).all()


def test_sequential_rounding_makes_up_for_what_was_rounded_before() -> None:
    """After each weight, those that are left are solved for again."""
    w, scale, same, cross = problem(5)
    found = sequential_rounding(w, scale, 100, same, cross)
    for o in range(5):
        step, target = float(scale[0, o]), w[0, o].double() @ cross[0]
        codes = torch.zeros(8, dtype=torch.double)
        for place in reversed(range(8)):
            later = step * codes[place + 1 :] @ same[0, place + 1 :, : place + 1]
            wanted = torch.linalg.solve(same[0, : place + 1, : place + 1], target[: place + 1] - later)[-1] / step
            low = math.floor(float(w[0, o, place]) / step)
            codes[place] = min(max(round(float(wanted)), low), low + 1)
        assert found[0, o].tolist() == codes.tolist()


def test_no_turn_of_a_pair_helps_after_the_turns_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.methods.quantize._rounding.PARTNERS", 8)
    w, scale, same, cross = problem(1, groups=2)
    w[0, 0, 2] = 0
    floor, start = (w / scale).floor(), (w / scale).round().clamp(-3, 3)
    found = flip_pairs(start, w, scale, 3, same, cross)

    def error(codes: Tensor) -> Tensor:
        return reconstruction_error((scale * codes).double(), w.double(), same, cross)

    least = error(found)
    assert bool((least < error(start)).any()) and found[0, 0, 2] == 0
    for one, two in itertools.combinations_with_replacement(range(8), 2):
        other, places = found.clone(), sorted({one, two})
        other[..., places] += torch.where(found == floor, 1.0, -1.0)[..., places]
        allowed = ((other.abs() <= 3) & (w != 0))[..., places].all(-1)
        assert bool((error(other) >= least - 1e-9)[allowed].all())


def test_all_turns_together_end_near_the_best_of_all() -> None:
    """On average over ten problems of five outputs; nearest rounding has several times the error."""
    ratios = []
    for seed in range(10):
        w, scale, same, cross = problem(seed)
        ways = ((w / scale).floor()[:, :, None] + torch.tensor(list(product((0.0, 1.0), repeat=8)))).clamp(-3, 3)
        value, constant = (scale[..., None] * ways).double(), 0.01 + ((w.double() @ same) * w.double()).sum(2)[0]
        errors = ((value @ same[:, None] - 2 * (w.double() @ cross)[:, :, None]) * value).sum(3)[0].amin(1)
        found = best_rounding(w, scale, 3, same, cross, iterations=100)
        reached = reconstruction_error((scale * found).double(), w.double(), same, cross)[0]
        ratios.append(float((reached + constant).sum() / (errors + constant).sum()))
    assert sum(ratios) / len(ratios) < 1.05 and min(ratios) >= 1 - 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roundings_are_near_the_best_of_all_and_no_single_turn_helps(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1, 6, 8, generator=generator).to(dtype)
    w[0, 0, :3] = 0
    x = torch.randn(100, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    same = (x.T @ x)[None].double() / 100
    scale, high = (w.abs().amax(2, keepdim=True) / 3).expand_as(w).contiguous(), 3
    constant = ((w.double() @ same) * w.double()).sum(2)

    def error(codes: torch.Tensor) -> torch.Tensor:
        return reconstruction_error((scale * codes).double(), w.double(), same, same) + constant

    floor = (w / scale).floor()
    every = [
        (floor + torch.tensor(up, dtype=dtype)).clamp(-high, high).where(w != 0, 0.0)
        for up in itertools.product([0.0, 1.0], repeat=8)
    ]
    best = torch.stack([error(codes) for codes in every]).amin(0).sum()
    nearest = (w / scale).round().clamp(-high, high)
    found = best_rounding(w, scale, high, same, same, iterations=50)
    assert float(error(found).sum() / best) < 1.1 < 1.3 < float(error(nearest).sum() / best)
    turned = flip_rounding(nearest, w, scale, high, same, same)
    least = error(turned)
    assert bool((least <= error(nearest)).all()) and not bool(turned[0, 0, :3].any())
    for d in range(8):
        other = turned.clone()
        other[..., d] += torch.where(turned[..., d] == floor[..., d], 1.0, -1.0)
        allowed = (other[..., d].abs() <= high) & (w[..., d] != 0)
        assert bool((error(other) >= least - 1e-9)[allowed].all())
