"""Binary and ternary values against equations, brute force and large samples."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.signs import (
    LossAware,
    ScaledSigns,
    Signs,
    TernaryWeights,
    TrainedTernary,
    loss_aware_values,
    stochastic_sign,
    stochastic_ternary,
)
from gossamer.core.signs import sign_of, straight_through, weight_signs
from gossamer.errors import BadInput


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradient(constraint: torch.nn.Module, weight: Tensor, weights: Tensor) -> Tensor:
    """Of sum(weights * value)."""
    raw = weight.clone().requires_grad_()
    [found] = torch.autograd.grad((weights * constraint(raw)).sum(), raw)
    return found


@pytest.mark.parametrize("part", [-1.5, -1.0, -0.6, 0.0, 0.3, 1.0])
def test_drawn_signs_are_unbiased(part: float) -> None:
    torch.manual_seed(0)
    n, mean = 100_000, min(max(part, -1.0), 1.0)
    drawn = stochastic_sign(torch.full((n,), part))
    assert set(drawn.tolist()) <= {-1.0, 1.0}
    assert abs(float(drawn.mean()) - mean) <= 5 * ((1 - mean * mean) / n) ** 0.5


@pytest.mark.parametrize("part", [-1.0, -0.6, 0.0, 0.3, 1.0])
def test_drawn_ternary_values_are_unbiased(part: float) -> None:
    torch.manual_seed(0)
    n = 100_000
    drawn = stochastic_ternary(torch.full((n,), part))
    assert set(drawn.tolist()) <= {-1.0, 0.0, 1.0}
    assert abs(float(drawn.mean()) - part) <= 5 * ((abs(part) - part * part) / n) ** 0.5


def test_values_are_drawn_in_training_only() -> None:
    torch.manual_seed(0)
    one, weight = Signs(2.0, limit=4.0, stochastic=True), torch.full((1000,), 2.0)
    assert 700 < int((one.train()(weight) == 2.0).sum()) < 800
    assert torch.equal(one.eval()(weight), weight)
    ternary = Signs(2.0, limit=4.0, ternary=True)
    assert ternary(torch.tensor([-3.0, -1.9, 2.0])).tolist() == [-2.0, 0.0, 2.0]
    real = Signs(2.0, limit=4.0, stochastic=True, real=True).eval()
    assert real(torch.tensor([-8.0, 2.0])).tolist() == [-2.0, 1.0]


def test_gradients_pass_straight_through() -> None:
    weight, g = seeded(2, 3), seeded(6).view(2, 3)
    for constraint in (Signs(0.3), TernaryWeights(), LossAware((2, 3)), LossAware((2, 3), bits=3)):
        assert torch.equal(gradient(constraint, weight, g), g)


def test_gradients_of_scaled_signs_are_those_of_the_paper() -> None:
    weight, g = torch.tensor([[0.5, -1.5], [0.25, 0.75]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = g * torch.tensor([[0.5 + 1.0, 0.5], [0.5 + 0.5, 0.5 + 0.5]])
    torch.testing.assert_close(gradient(ScaledSigns(), weight, g), expected)


def test_scales_of_signs_have_the_least_squared_error() -> None:
    weight = seeded(3, 4, 2).double()
    value = ScaledSigns()(weight)
    error = (weight - value).square().flatten(1).sum(1)
    n = weight[0].numel()
    torch.testing.assert_close(error, weight.square().flatten(1).sum(1) - weight.abs().flatten(1).sum(1) ** 2 / n)
    for scale in torch.linspace(0.5, 1.5, 101):
        assert bool(((weight - scale * value).square().flatten(1).sum(1) >= error - 1e-12).all())


def brute_force(weight: Tensor, curvature: Tensor, levels: list[float]) -> float:
    """The least sum of d (w - a b)^2 over all b of these levels, each with its best a."""
    every = torch.tensor(list(itertools.product(levels, repeat=len(weight)))).double()
    every = every[every.any(1)]
    best = (curvature * every * weight).sum(1) / (curvature * every * every).sum(1)
    return float((curvature * (weight - best[:, None] * every).square()).sum(1).min())


@pytest.mark.parametrize("seed", range(4))
def test_the_proximal_step_to_binary_weights_is_the_least_of_all(seed: int) -> None:
    torch.manual_seed(seed)
    weight, curvature = torch.randn(8).double(), torch.rand(8).double() + 0.01
    value = loss_aware_values(weight, curvature, 1)
    found = float((curvature * (weight - value).square()).sum())
    assert found == pytest.approx(brute_force(weight, curvature, [-1.0, 1.0]), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3])
def test_turns_come_near_the_least_of_all(bits: int) -> None:
    """Local minima, all together not half as far again as the global ones."""
    k = 2 ** (bits - 1) - 1
    levels, found, least = [i / k for i in range(-k, k + 1)], 0.0, 0.0
    for seed in range(6):
        torch.manual_seed(seed)
        weight, curvature = torch.randn(5).double(), torch.rand(5).double() + 0.01
        value = loss_aware_values(weight, curvature, bits)
        assert len(value.unique()) <= 2 * k + 1
        found += float((curvature * (weight - value).square()).sum())
        least += brute_force(weight, curvature, levels)
    assert least <= found + 1e-9 and found <= 1.5 * least


def test_equal_curvatures_give_the_scale_of_the_least_squared_error() -> None:
    weight = seeded(1, 6)
    torch.testing.assert_close(LossAware((1, 6))(weight), ScaledSigns()(weight))


def test_ternary_weights_have_their_threshold_and_the_best_scale_for_it() -> None:
    weight = torch.tensor([-2.0, -0.1, 0.4, 1.0, 1.5])  # 0.7 mean |w| = 0.7
    assert TernaryWeights()(weight).tolist() == pytest.approx([-1.5, 0.0, 0.0, 1.5, 1.5])


def test_trained_values_get_the_sums_of_their_gradients() -> None:
    one = TrainedTernary(4.0, 3.0, 0.5)
    weight, g = torch.tensor([-1.0, -0.2, 0.8, 0.9], requires_grad=True), torch.tensor([1.0, 2.0, 4.0, 8.0])
    value = one(weight)
    assert value.tolist() == [-3.0, 0.0, 4.0, 4.0]
    raw, positive, negative = torch.autograd.grad((g * value).sum(), [weight, one.positive, one.negative])
    assert (float(positive), float(negative)) == (12.0, -1.0)
    assert raw.tolist() == [3.0, 2.0, 16.0, 32.0]


@pytest.mark.parametrize(
    "constraint",
    [Signs(0.5, keep_zeros=True), ScaledSigns(keep_zeros=True), LossAware((1, 4), keep_zeros=True), TernaryWeights()],
)
def test_zeros_of_a_mask_stay(constraint: torch.nn.Module) -> None:
    layer = torch.nn.Linear(4, 1)
    mask = Mask(torch.tensor([[True, False, True, True]]))
    model: torch.nn.Module = constrain(constrain(layer, {"weight": mask}), {"weight": constraint})
    [row] = model.weight.tolist()
    assert row[1] == 0.0
    if not isinstance(constraint, Signs | TernaryWeights):
        kept = layer.weight.detach()[0, [0, 2, 3]].abs().mean()
        assert abs(row[0]) == pytest.approx(float(kept))


def test_a_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(BadInput, match=r"scale = 0\.0 and limit = 1\.0 must be positive"):
        Signs(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_signs_of_weights_are_those_of_activations(dtype: torch.dtype) -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, -1e-30, 1e-30, float("inf"), float("-inf")], dtype=dtype)
    found = weight_signs(x.requires_grad_())
    assert torch.equal(found, sign_of(x)) and found.dtype == dtype and not found.requires_grad


@pytest.mark.parametrize("slope", [1.0, 0.5, torch.tensor([2.0, 0.0, -1.0])])
def test_a_value_with_the_gradient_of_another(slope: Any) -> None:
    """As in the formula value + slope * (x - x.detach()): values, both gradients, and gradients of gradients."""
    x, scale = torch.tensor([0.3, -4.0, 1e9], requires_grad=True), torch.tensor(2.0, requires_grad=True)

    def gradients(find: Any) -> list[torch.Tensor]:
        y = find(scale * x.detach().sign(), x, slope)
        first = torch.autograd.grad((y**3).sum(), (x, scale), create_graph=True)
        return [y, *first, *torch.autograd.grad(first[1], scale)]

    found = gradients(straight_through)
    for one, other in zip(found, gradients(lambda v, x, s: v + s * (x - x.detach())), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(straight_through(x.detach(), torch.ones(3)), x.detach())
