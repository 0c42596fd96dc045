"""Rules that shrink groups, against closed forms and the conditions of optimality."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gossamer.methods.prune._proximal import (
    Biased,
    GroupLasso,
    Growing,
    HalfSpace,
    Magnitudes,
    exponential_slope,
    group_factors,
    hyperbolic_slope,
    layer_means,
    soft_threshold,
)
from gossamer.modules.element_groups import ElementGroups
from gossamer.train.sparsity import Shrinking, ShrinkRule

ROWS = torch.arange(4)[:, None]
GROUPS = ElementGroups(names=("a",) * 4, carried={"w": (ROWS,)}, cleared={"w": (ROWS,)})
AMOUNTS = torch.tensor([0.0, 0.3, 1.0, 50.0], dtype=torch.double)


def weights(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def after(rule: ShrinkRule, before: Tensor, amounts: Tensor, **more: Tensor) -> Tensor:
    value = before.clone()
    step = Shrinking(
        groups=GROUPS,
        parameters={"w": value},
        amounts=amounts,
        chosen=more.get("chosen", torch.ones(4, dtype=torch.bool)),
        previous={"w": more.get("previous", before)},
    )
    rule(step)
    return value


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_step_minimizes_distance_and_penalty(alpha: float) -> None:
    """0 is a subgradient of |x - v|^2 / 2 + t ((1 - a) |x|_2 + a |x|_1 / sqrt(n)) at the result, to 1e-12."""
    v = weights()
    x = after(GroupLasso(alpha), v, AMOUNTS)
    own = AMOUNTS / 6**0.5 * alpha
    for i in range(4):
        rest = v[i] - x[i]
        if not bool(x[i].any()):
            # What is beyond the box of the l1 norm must lie in the ball of the group's norm.
            assert float(soft_threshold(v[i], own[i]).norm()) <= float(AMOUNTS[i]) * (1 - alpha) + 1e-12
            continue
        group = (1 - alpha) * AMOUNTS[i] * x[i] / x[i].norm()
        there = x[i] != 0
        torch.testing.assert_close(rest[there], (group + own[i] * x[i].sign())[there], rtol=0, atol=1e-12)
        assert bool((rest[~there].abs() <= own[i] + 1e-12).all())
    assert torch.equal(x[0], v[0]) and not bool(x[3].any())


def test_the_sparse_group_step_is_the_group_step_of_the_soft_threshold() -> None:
    v = weights(1)
    soft = soft_threshold(v, 0.5 * AMOUNTS[:, None] / 6**0.5)
    wanted = soft * group_factors(soft.norm(dim=1), 0.5 * AMOUNTS)[:, None]
    torch.testing.assert_close(after(GroupLasso(0.5), v, AMOUNTS), wanted, rtol=0, atol=1e-12)


def test_a_group_is_zero_exactly_where_its_norm_is_not_above_the_amount() -> None:
    norms = torch.tensor([1.0, 1.0, 1.0 - 2**-20, 0.0])
    amounts = torch.tensor([1.0, 1.0 - 2**-20, 1.0, 0.0])
    assert (group_factors(norms, amounts) == 0).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("slope", "bias"),
    [
        (hyperbolic_slope, lambda w, s: w / (1 + s * w)),
        (exponential_slope, lambda w, s: (1 - torch.exp(-s * w)) / s),
    ],
)
def test_slopes_are_the_derivatives_of_the_biases(
    slope: Callable[[Tensor, float], Tensor], bias: Callable[[Tensor, float], Tensor]
) -> None:
    w = torch.tensor([0.0, 0.2, 1.0, 7.0], dtype=torch.double, requires_grad=True)
    [gradient] = torch.autograd.grad(bias(w, 1.7).sum(), w)
    torch.testing.assert_close(slope(w.detach(), 1.7), gradient, rtol=1e-12, atol=0)
    assert bool((bias(w.detach(), 1.7) < 1 / 1.7).all())
    assert bool(slope(w.detach(), 1e-12).sub(1).abs().max() < 1e-10)


@pytest.mark.parametrize("bias", ["hyperbolic", "exponential"])
def test_without_sharpness_biased_decay_is_the_l1_norm_and_with_it_spares_large_units(bias: str) -> None:
    v = torch.cat([weights()[:1] * scale for scale in (0.1, 1, 10, 20)])
    t = torch.full((4,), 0.005, dtype=torch.double)
    torch.testing.assert_close(after(Biased(bias, 0.0), v, t), after(Magnitudes(), v, t))
    lost = (v - after(Biased(bias, 0.1), v, t)).abs().amax(1)
    assert bool((lost[1:] < lost[:-1]).all())


def test_a_step_along_the_tangent_never_raises_the_objective() -> None:
    v = weights()
    x = after(Biased("hyperbolic", 2.0), v, torch.full((4,), 0.2, dtype=torch.double))

    def objective(y: Tensor) -> Tensor:
        w, sharpness = y.abs().sum(1), 2.0 / v.abs().sum(1).mean()
        return (y - v).square().sum(1) / 2 + 0.2 * w / (1 + sharpness * w)

    assert bool((objective(x) < objective(v)).all())


@pytest.mark.parametrize("bias", ["hyperbolic", "exponential"])
def test_biased_decay_shrinks_small_units_however_many_inputs_they_have(bias: str) -> None:
    """The sum of 784 magnitudes is some tens, and exp(-sum) is nothing: exponential decay used to do nothing there."""
    v = torch.cat([torch.full((1, 784), 0.04 * scale, dtype=torch.double) for scale in (0.1, 0.5, 1, 2)])
    lost = (v - after(Biased(bias, 1.0), v, torch.full((4,), 1e-3, dtype=torch.double))).amax(1)
    assert float(lost[0]) > 5e-4 and float(lost[0]) > 2 * float(lost[3])


def test_means_are_those_of_a_layer_and_of_what_is_alive() -> None:
    found = layer_means(torch.tensor([1.0, 0.0, 3.0, 10.0, 0.0]), ["a", "a", "a", "b", "c"])
    assert found[:4].tolist() == [2, 2, 2, 10] and bool(found[4] > 0)


def test_growing_decay_touches_chosen_groups_only_and_the_smallest_most() -> None:
    v = torch.cat([weights()[:1] * scale for scale in (1, 2, 3, 4)])
    chosen = torch.tensor([True, True, False, True])
    kept = after(Growing(16.0), v, torch.full((4,), 0.01, dtype=torch.double), chosen=chosen) / v
    assert bool((kept[2] == 1).all())
    assert float(kept[0, 0]) < float(kept[1, 0]) < float(kept[3, 0]) == pytest.approx(0.99)


def test_a_group_is_projected_when_it_leaves_the_half_space_of_its_last_values() -> None:
    last = weights()
    now = last * torch.tensor([1.0, 0.05, -0.1, 0.05], dtype=torch.double)[:, None]
    chosen = torch.tensor([True, True, True, False])
    t = torch.full((4,), 0.01, dtype=torch.double)
    x = after(HalfSpace(0.0), now, t, chosen=chosen, previous=last)
    assert [bool(row.any()) for row in x] == [True, True, False, True]
    x = after(HalfSpace(0.1), now, t, chosen=chosen, previous=last)
    assert [bool(row.any()) for row in x] == [True, False, False, True]
    assert torch.equal(x[3], now[3])
