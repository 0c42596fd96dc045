"""Distortions of weights and activations: their laws, and what they do to a network."""

import pytest
import torch
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.signs import Signs
from gossamer.core.context import Context
from gossamer.core.progress import Quiet
from gossamer.errors import NoEffect
from gossamer.measure.robustness import (
    PROJECTIONS,
    Projection,
    distort,
    distort_weights,
    distorted_inputs,
    few_bits,
    multiplied_noise,
    robustness,
    signed_power,
    ternary_entropy,
)
from gossamer.train import recalibrate

NAMED = {projection.name: projection for projection in PROJECTIONS}
VALUES = torch.linspace(-1, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", [p.name for p in PROJECTIONS if not p.unbiased])
def test_what_is_not_random_keeps_signs_and_the_mean_size(name: str) -> None:
    values = 3 * VALUES[VALUES != 0]
    found = distort(values, NAMED[name])
    assert bool((found * values >= 0).all())
    assert float(found.abs().mean()) == pytest.approx(float(values.abs().mean()))


@pytest.mark.parametrize("name", [p.name for p in PROJECTIONS if p.unbiased])
def test_noise_is_right_on_average(name: str) -> None:
    torch.manual_seed(0)
    n = 100_000
    values = torch.cat([torch.full((n,), 0.8), torch.tensor([2.0])])  # the last one sets the scale
    drawn = distort(values, NAMED[name])[:n]
    assert abs(float(drawn.mean()) - 0.8) < 5 * float(drawn.std()) / n**0.5
    assert float(drawn.std()) > 0


def test_noise_that_multiplies_leaves_zeros() -> None:
    assert not multiplied_noise(torch.zeros(9), 0.5).any()


def test_powers_keep_the_sign() -> None:
    assert signed_power(torch.tensor([-0.5, 0.25]), 2.0).tolist() == [-0.25, 0.0625]


def test_ternary_values_have_the_entropy_that_is_asked_for() -> None:
    assert ternary_entropy(2 / 3) == pytest.approx(1.584962, abs=1e-5)
    assert ternary_entropy(0.0) == 0.0
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    codes = few_bits(x, 0.68)
    shares = [float((codes == value).double().mean()) for value in (-1, 0, 1)]
    assert -sum(s * float(torch.tensor(s).log2()) for s in shares) == pytest.approx(0.68, abs=0.002)
    assert float(x[codes != 0].abs().min()) >= float(x[codes == 0].abs().max())


def test_zeros_stay_under_every_projection() -> None:
    assert all(torch.equal(distort(torch.zeros(3), one), torch.zeros(3)) for one in PROJECTIONS)


def test_inputs_are_distorted_but_for_those_of_the_first_layer() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), list[Tensor]()
    nn.init.eye_(model[0].weight)
    for layer in model:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    x = torch.tensor([[1.0, -3.0]])
    with distorted_inputs(model, NAMED["sign"]):
        model(x)
    assert [rows.tolist() for rows in seen] == [[[1.0, -3.0]], [[2.0, -2.0]]]
    seen.clear()
    model(x)
    assert torch.equal(seen[1], x)


def test_weights_of_all_layers_are_distorted() -> None:
    model = tiny()
    distort_weights(model, NAMED["sign"])
    assert all(len(torch.unique(p.abs())) == 1 for p in model.parameters() if p.dim() > 1)


def test_rows_say_what_is_lost_and_the_network_is_left_alone() -> None:
    data, quiet = stripes(), Context(progress=Quiet())
    model = constrain(learned(), {"body.0.conv1.weight": Signs(0.1)})
    nothing = Projection("nothing", lambda x: x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = robustness(model, data, quiet, projections=[nothing, NAMED["uniform noise 1"]], split="test")
    assert [row.what for row in rows] == ["weights"] * 2 + ["activations"] * 2
    assert rows[1].drop > 5 > abs(rows[0].drop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = robustness(model, data, quiet, projections=[nothing, NAMED["uniform noise 1"]], split="test")
    assert again == rows


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(NoEffect):
        distort_weights(nn.Sequential(nn.ReLU()), NAMED["sign"])


def test_norms_follow_the_scale_of_distorted_weights() -> None:
    """Weights of a tenth give the same outputs behind a norm that is estimated again."""
    torch.manual_seed(0)
    data, model = stripes(), nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    recalibrate(model, data.calibration)
    tenth = Projection("tenth", lambda x: x / 10, unbiased=True)
    [weights, _] = robustness(model.eval(), data, Context(progress=Quiet()), projections=[tenth])
    assert abs(weights.drop) < 1
