"""Hard concrete gates: the paper's distribution, gates in a network, and what becomes of them."""

import math

import pytest
import torch
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.methods.prune.l0 import (
    BETA,
    GAIN,
    GAMMA,
    SHUT,
    ZETA,
    GatePenalty,
    L0Gates,
    first_locations,
    fold_gates,
    gate_groups,
    gates_of,
    hard_concrete,
    open_probability,
    settled_gates,
)
from gossamer.modules.element_groups import channel_groups
from gossamer.train.sparsity import Shrinking

TASK = stripes()


def gated() -> nn.Module:
    """`tiny` with a gate on every channel."""
    model = tiny()
    groups = channel_groups(model, TASK.example_inputs)
    gate_groups(model, groups, torch.ones(len(groups)))
    return model


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_open_as_often_as_the_closed_form_says(log_alpha: float) -> None:
    """Within five standard deviations of 100,000 draws; and what lies between 0 and 1 has the paper's distribution."""
    location = torch.full((100_000,), log_alpha, dtype=torch.double)
    uniform = torch.rand(len(location), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    drawn = hard_concrete(location, uniform)
    for level in (0.0, 0.3, 0.9):
        at = (level - GAMMA) / (ZETA - GAMMA)  # Q(s <= x) = sigmoid(beta (log x - log(1 - x)) - log alpha): equation 5
        above = 1 / (1 + math.exp(BETA * math.log(at / (1 - at)) - log_alpha))
        found = float((drawn > level).double().mean())
        assert abs(found - above) < 5 * math.sqrt(above * (1 - above) / len(location))
        if not level:
            assert float(open_probability(location[0])) == pytest.approx(above, abs=1e-12)
    assert drawn.min() >= 0 and drawn.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_without_randomness_is_shut_from_the_limit_on(dtype: torch.dtype) -> None:
    location = torch.tensor([SHUT - 1, SHUT - 1e-3, SHUT + 1e-3, 0.0, -SHUT + 1e-3], dtype=dtype)
    assert [float(gate) for gate in settled_gates(location)] == [
        0,
        0,
        pytest.approx(9.17e-5, rel=0.01),
        pytest.approx(0.5),
        1,
    ]


def test_all_that_makes_a_channel_has_the_same_gate_and_only_while_training() -> None:
    model, plain = gated(), tiny()
    gates = gates_of(model)
    with torch.no_grad():
        gates.uniform.copy_(torch.linspace(0.05, 0.95, len(gates.uniform)))
    norm, before = (net.get_submodule("body.1.bn1") for net in (model.train(), plain))
    ratios = [norm.weight / before.weight, norm.bias / before.bias]
    torch.testing.assert_close(*ratios)
    assert float(ratios[0].detach().std()) > 0.01
    drawn = hard_concrete(torch.ones(1), gates.uniform)
    assert all(float((drawn - ratio).abs().min()) < 1e-6 for ratio in ratios[0].detach())
    model.eval()
    torch.testing.assert_close(norm.weight / before.weight, settled_gates(torch.ones(8)))


def test_the_gradient_of_a_gate_is_that_of_all_it_multiplies() -> None:
    model, inputs = gated().double().train(), TASK.train[0][0].double()
    gates = gates_of(model)
    model(inputs).square().sum().backward()
    group = channel_groups(tiny(), TASK.example_inputs).names.index("body.0.conv1")
    assert gates.opening.grad is not None

    def loss(value: float) -> Tensor:
        with torch.no_grad():
            gates.opening[group] = value
            return model(inputs).square().sum()

    at = 1.0 - SHUT
    slope = (loss(at + 1e-4) - loss(at - 1e-4)) / 2e-4
    torch.testing.assert_close(gates.opening.grad[group] / GAIN, slope, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_a_step_along_the_slope_of_the_expected_count() -> None:
    model = tiny()
    groups = channel_groups(model, TASK.example_inputs)
    groups = gate_groups(model, groups, torch.ones(len(groups)))
    [name] = groups.carried
    opening = dict(model.named_parameters())[name].detach().double()
    opening[:3] = torch.tensor([0.01, 0.5, 4.0], dtype=torch.double)
    before, location = opening.clone(), (opening + SHUT).requires_grad_()
    sizes = torch.linspace(0.5, 1.5, len(groups), dtype=torch.double)
    (sizes * open_probability(location)).sum().backward()
    assert location.grad is not None
    expected = (opening - location.grad).clamp_min(0)
    chosen, amounts = torch.arange(len(groups)) < 5, torch.ones(len(groups), dtype=torch.double)
    step = Shrinking(groups=groups, parameters={name: opening}, amounts=amounts, chosen=chosen, previous={})
    GatePenalty(tuple(sizes.tolist()))(step)
    torch.testing.assert_close(opening, expected.where(chosen, before))
    assert float(opening[0]) == 0 < float(opening[1])


def test_a_trained_network_begins_with_what_its_norms_say() -> None:
    groups = channel_groups(tiny(), TASK.example_inputs)
    norms = torch.rand(len(groups), generator=torch.Generator().manual_seed(0)) + 0.1
    found = first_locations(groups, norms, 0.2).exp()
    for layer in set(groups.names):
        own = torch.tensor([name == layer for name in groups.names])
        torch.testing.assert_close(found[own] / norms[own], (4 / norms[own].mean()).expand(int(own.sum())))


def test_gates_that_are_folded_change_no_output() -> None:
    model = gated()
    with torch.no_grad():
        gates_of(model).opening.copy_(torch.linspace(0, 5, len(gates_of(model).opening)))
    before = model(TASK.train[0][0])
    fold_gates(model)
    torch.testing.assert_close(model(TASK.train[0][0]), before)
    torch.testing.assert_close(model.train().get_submodule("stem").weight, model.eval().get_submodule("stem").weight)
    assert list(materialize(model).state_dict()) == list(tiny().state_dict())


@pytest.mark.slow
def test_channels_that_give_nothing_go_first() -> None:
    model = learned()
    with torch.no_grad():
        model.get_submodule("body.1.bn1").weight[:4] = 1e-4
        model.get_submodule("body.1.bn1").bias[:4] = 0
    smaller, _ = L0Gates(speedup=1.1, layers=("body.1.conv1",), epochs=4, lr=0.02)(model, TASK)
    left = smaller.get_submodule("body.1.bn1").weight
    assert len(left) < 8 and int((left > 0.5).sum()) == 4
