"""Methods that binarize weights: ranges, curvature, powers of two, and which layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.signs import LossAware, Signs
from gossamer.core.context import Context
from gossamer.core.progress import Quiet
from gossamer.errors import NoEffect
from gossamer.measure.accuracy import evaluate
from gossamer.methods.binarize._weights import after_binary_step, glorot_limit
from gossamer.methods.binarize.binary_connect import BinaryConnect
from gossamer.methods.binarize.bwn import BinaryWeightNetwork
from gossamer.methods.binarize.few_multiplications import FewMultiplications, power_of_two, quantized_backward
from gossamer.methods.binarize.loss_aware import LossAwareBinarization
from gossamer.methods.binarize.ternary import TernaryNetwork, first_values
from gossamer.modules.binary import binary_weight
from gossamer.train.loop import TrainingStep


@given(x=st.floats(1e-6, 1e6), negative=st.booleans())
def test_a_power_of_two_is_within_a_factor_of_root_two(x: float, negative: bool) -> None:
    value = float(power_of_two(torch.tensor([-x if negative else x], dtype=torch.float64), 8))
    assert (value < 0) is negative
    assert 2**-0.5 * (1 - 1e-9) <= abs(value) / x <= 2**0.5 * (1 + 1e-9)
    assert torch.frexp(torch.tensor(abs(value))).mantissa == 0.5


def test_powers_of_two_have_so_many_exponents() -> None:
    x = torch.tensor([4.0, 1.0, 0.6, 0.3, 0.2, 0.0, -5.0])
    assert power_of_two(x, 4).tolist() == [4.0, 1.0, 0.5, 0.5, 0.0, 0.0, -4.0]


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_gradients_of_weights_come_from_shifted_inputs_and_those_of_inputs_do_not(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer), torch.randn(4, 3, 1, 1)
    x = x.flatten(1) if isinstance(layer, nn.Linear) else x
    x.requires_grad_()
    with quantized_backward(model, ["0"], 6):
        y = model(x)
    delta = torch.randn_like(y)
    to_x, to_weight = torch.autograd.grad((y * delta).sum(), [x, layer.weight])
    rows, deltas, weight = x.detach().flatten(1), delta.flatten(1), layer.weight.detach().flatten(1)
    torch.testing.assert_close(to_weight.flatten(1), deltas.T @ power_of_two(rows, 6))
    torch.testing.assert_close(to_x.flatten(1), deltas @ weight)
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def step_of(model: nn.Module) -> TrainingStep:
    optimizer = torch.optim.AdamW(model.parameters(), 0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingStep(model=model, optimizer=optimizer, number=1, steps=1)


def test_real_weights_stay_in_their_range() -> None:
    model = constrain(nn.Linear(2, 2), {"weight": Signs(0.125, limit=0.125)})
    step = step_of(model)
    raw: Tensor = model.parametrizations.weight.original
    assert float(raw.detach().abs().max()) > 0.125
    after_binary_step(step)
    assert float(raw.detach().abs().max()) <= 0.125


def test_the_curvature_follows_the_second_moment() -> None:
    model = constrain(nn.Linear(2, 1), {"weight": LossAware((1, 2))})
    step = step_of(model)
    raw: Tensor = model.parametrizations.weight.original
    step.optimizer.state[raw]["exp_avg_sq"].copy_(torch.tensor([[9.0, 1.0]]))
    after_binary_step(step)
    scale = float((3 * raw[0, 0].abs() + raw[0, 1].abs()).detach() / 4)
    assert float(model.weight.detach().abs().max()) == pytest.approx(scale, rel=1e-5)


def test_the_range_counts_the_places_of_the_kernel() -> None:
    assert glorot_limit(torch.zeros(4, 2)) == pytest.approx(0.5)
    assert glorot_limit(torch.zeros(4, 2, 1, 4)) == pytest.approx(0.25)


def test_first_values_of_trained_ternary_weights() -> None:
    assert first_values(torch.tensor([-4.0, -2.0, 0.1, 1.0, 3.0]), 0.1) == (2.0, 3.0)
    assert first_values(torch.tensor([0.0, 1.0]), 0.1) == (1.0, 1.0)


METHODS = [
    BinaryConnect(epochs=2, lr=0.003),
    BinaryConnect(epochs=2, lr=0.003, stochastic=True),
    BinaryWeightNetwork(epochs=2, lr=0.003, ends=True),
    LossAwareBinarization(epochs=2, lr=0.003),
    LossAwareBinarization(epochs=2, lr=0.003, bits=3),
    TernaryNetwork(epochs=2, lr=0.003, ends=True),
    TernaryNetwork(epochs=2, lr=0.003, ends=True, values="trained"),
    FewMultiplications(epochs=2, lr=0.003),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_trained_network_learns_under_them(method: BinaryConnect) -> None:
    data = stripes()
    model, _ = method(learned(), data, Context(progress=Quiet()))
    assert len(constraints(model)) == 8
    assert evaluate(materialize(model), data, "test").value > 0.7


def test_binary_methods_leave_binary_rows() -> None:
    for method in METHODS[:4]:
        plain = materialize(method(tiny(), task(), Context(progress=Quiet())).model)
        assert all(binary_weight(p) is not None for n, p in plain.named_parameters() if p.dim() > 1)


def test_the_first_and_the_last_layer_are_left_unless_they_are_named() -> None:
    quiet = Context(progress=Quiet())
    model, _ = BinaryWeightNetwork(epochs=1, lr=0.001)(tiny(), task(), quiet)
    assert "stem.weight" not in constraints(model) and "head.weight" not in constraints(model)
    model, _ = BinaryWeightNetwork(epochs=1, lr=0.001, layers=("stem", "body.0.*"))(tiny(), task(), quiet)
    assert list(constraints(model)) == ["stem.weight", "body.0.conv1.weight", "body.0.conv2.weight"]
    with pytest.raises(NoEffect, match=r"stem.*the first and the last layer"):
        BinaryWeightNetwork(layers=("ste*",))(tiny(), task(), quiet)


def test_the_real_weights_are_what_the_source_tests_with() -> None:
    method = FewMultiplications(epochs=1, lr=0.001, weights="real", layers=("head",))
    model, _ = method(tiny(), task(), Context(progress=Quiet()))
    assert len(torch.unique(materialize(model).head.weight)) > 3
