"""Hyper-parameters, the learning rate, the optimizer."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import BadInput, NoEffect
from gossamer.train.hyperparameters import Training, learning_rate, make_optimizer

CPU = torch.device("cpu")


def test_cosine_rises_linearly_then_falls_to_zero() -> None:
    training = Training(lr=1.0, warmup=0.25, epochs=1)
    rates = [learning_rate(training, step, 8) for step in range(8)]
    expected = [1 / 3, 2 / 3, 1.0, 0.933012701892, 0.75, 0.5, 0.25, 0.066987298108]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_constant_stays_at_the_peak() -> None:
    training = Training(lr=0.3, warmup=0.5, schedule="constant")
    assert [learning_rate(training, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("steps", [20, 137])
def test_one_cycle_is_that_of_torch(warmup: float, steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=warmup)
    training = Training(lr=0.2, schedule="one_cycle", warmup=warmup)
    for step in range(steps):
        assert learning_rate(training, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            reference.step()


@given(
    st.sampled_from(["cosine", "one_cycle", "constant"]),
    st.floats(0, 0.99),
    st.integers(1, 50),
)
def test_the_learning_rate_is_positive_and_at_most_the_peak(schedule: Any, warmup: float, steps: int) -> None:
    training = Training(lr=0.7, schedule=schedule, warmup=warmup)
    rates = [learning_rate(training, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.7 * (1 + 1e-12) for rate in rates)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": 101.0},
        {"weight_decay": -0.1},
        {"warmup": 1.0},
        {"clip": 0.0},
        {"ema": 1.0},
        {"label_smoothing": 1.0},
        {"patience": 0},
        {"evaluate_every": 0},
        {"lr": float("nan")},
    ],
)
def test_a_value_outside_its_range_is_named(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(BadInput, match=rf"training: {name} = {value} must be in [\[(]"):
        Training(**wrong)


def test_an_unknown_choice_gets_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown training optimizer 'adam'; did you mean 'adamw'"):
        Training(optimizer="adam")  # type: ignore[arg-type]


def test_weight_decay_leaves_biases_and_norms_alone() -> None:
    conv = nn.Conv2d(1, 2, 3)
    model = nn.Sequential(conv, nn.BatchNorm2d(2))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    make_optimizer(model.parameters(), Training(lr=0.5, weight_decay=0.1), CPU).step()
    decayed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before)]
    assert decayed == [True, False, False, False]
    # Nesterov's first step is (1 + momentum) times the gradient.
    torch.testing.assert_close(conv.weight.detach(), before[0] * (1 - 0.5 * 0.1 * 1.9))


def test_frozen_parameters_are_left_out_and_a_frozen_model_is_an_error() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = make_optimizer(model.parameters(), Training(optimizer="adamw"), CPU).param_groups
    assert [p is model.bias for group in groups for p in group["params"]] == [True]
    with pytest.raises(NoEffect, match="no parameter of the model requires gradients"):
        make_optimizer(model.requires_grad_(False).parameters(), Training(), CPU)
