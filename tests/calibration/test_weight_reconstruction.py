"""Layers behind a cut: which these are, and that least squares brings them back as far as anything linear can."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import learned, stripes
from torch import Tensor, nn

from gossamer import Context
from gossamer.calibration.weight_reconstruction import DAMPENING, layers_of, reading_layers, reconstruct_weights
from gossamer.graph.groups import find_groups
from gossamer.graph.tracer import trace
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.models import build
from gossamer.modules.blocks import find_layers, pixelwise, remove_blocks

IMAGES = torch.rand(2, 1, 28, 28)


def batches(channels: int, count: int = 4, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, channels, size, size, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_readers_are_behind_shortcuts_too_and_not_behind_other_weights() -> None:
    model = build("resnet20", in_channels=1).eval()
    found = reading_layers(trace(model, (IMAGES,)), ["stage2.1"])
    # The stream goes on through additions until a shortcut has weights; no block's second convolution reads it.
    assert found == ["stage2.2.conv1", "stage3.0.conv1", "stage3.0.shortcut.0"]


def test_readers_of_several_layers_in_a_row_are_behind_the_last() -> None:
    model = build("vgg16_small", in_channels=1).eval()
    assert reading_layers(trace(model, (IMAGES,)), ["features.17", "features.20", "features.40"]) == [
        "features.24",
        "fc1",
    ]


def test_layers_of_are_in_the_order_of_the_run() -> None:
    assert layers_of(trace(build("lenet300", in_channels=1), (IMAGES,)))[-1] == "fc3"


class Chain(nn.Module):
    """Its second layer is linear and pixelwise: the third can take it over."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 6, 3)
        self.two = nn.Conv2d(6, 6, 1)
        self.three = nn.Conv2d(6, 4, 3, bias=bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.three(self.two(torch.relu(self.one(x_NCHW))))  # type: ignore[no-any-return]


def test_what_is_linear_in_a_removed_layer_is_taken_over_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.calibration.weight_reconstruction.DAMPENING", 1e-10)
    torch.manual_seed(0)
    model = Chain().double().eval()
    data = batches(2)
    small = remove_blocks(model, find_layers(model, (data[0],)))
    before = float((small(data[0]) - model(data[0])).detach().norm())
    assert reconstruct_weights(small, model, reading_layers(trace(model, (data[0],)), ["two"]), data) == ["three"]
    after = float((small(data[0]) - model(data[0])).detach().norm())
    assert after < 1e-7 * before


def held_fit(rows: Any, wanted: Any, start: Any) -> Any:
    """The weights nearest to what is wanted, and to those at the start by as many more rows as there are weights."""
    hold = np.sqrt(DAMPENING * (rows**2).sum(0).mean()) * np.eye(rows.shape[1])
    return np.linalg.lstsq(np.vstack([rows, hold]), np.vstack([wanted, hold @ start]), rcond=None)[0]


@torch.no_grad()
def test_the_weights_are_those_of_a_plain_least_squares_solver() -> None:
    torch.manual_seed(0)
    model = Chain().double().eval()
    small = remove_blocks(model, find_layers(model, (batches(2)[0],)))
    model.two.weight.data[0] = 0  # so that what is asked for is not what is there
    three: Any = small.get_submodule("three")
    start = np.vstack([three.weight.flatten(1).numpy().T, three.bias.numpy()[None]])
    rows, wanted = [], []
    for x in batches(2):
        seen, given = torch.relu(model.one(x)).numpy(), model(x).numpy()
        for n, i, j in np.ndindex(len(x), 2, 2):
            rows.append([*seen[n, :, i : i + 3, j : j + 3].ravel(), 1.0])
            wanted.append(given[n, :, i, j])
    best = held_fit(np.array(rows), np.array(wanted), start)
    assert np.abs(best - start).max() > 0.1
    reconstruct_weights(small, model, ["three"], batches(2))
    np.testing.assert_allclose(three.weight.flatten(1).numpy(), best[:-1].T, atol=1e-9)
    np.testing.assert_allclose(three.bias.numpy(), best[-1], atol=1e-9)


def test_a_layer_without_a_bias_gets_none() -> None:
    model = Chain(bias=False).double().eval()
    small = remove_blocks(model, find_layers(model, (batches(2)[0],)))
    reconstruct_weights(small, model, ["three"], batches(2))
    assert small.get_submodule("three").bias is None


class Twins(nn.Module):
    """Every channel of the first layer is there twice: half of them can go without any loss."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 8, 3)
        self.two = nn.Conv2d(8, 5, 3)
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            self.one.weight[4:], self.one.bias[4:] = self.one.weight[:4], self.one.bias[:4]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x_NCHW)))).mean((2, 3)))  # type: ignore[no-any-return]


def test_cutting_twins_loses_nothing() -> None:
    torch.manual_seed(0)
    model, data = Twins().double().eval(), batches(2)
    [group] = [g.name for g in find_groups(model, (data[0],)).groups if "one" in g.layers]
    task = replace(stripes(), example_inputs=(data[0],), train=data)
    # The same scores for both of a pair: whichever are kept, one of every pair must be.
    with torch.no_grad():
        model.one.weight[4:] *= 0.5
        model.one.bias[4:] *= 0.5
    cut = ChannelPruning(widths={group: 4})(model, task, Context()).model
    rough = ChannelPruning(widths={group: 4}).shape_only()(model, task, Context()).model
    assert torch.allclose(cut(data[0]), model(data[0]), atol=1e-3)
    assert not torch.allclose(rough(data[0]), model(data[0]), atol=1e-2)


class Odd(nn.Module):
    """A shared weight, a layer that runs twice, one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice, self.never = (nn.Linear(4, 4) for _ in range(4))
        self.b.weight = self.a.weight

    def forward(self, x_NC: Tensor) -> Tensor:
        return self.twice(self.twice(self.b(self.a(x_NC))))  # type: ignore[no-any-return]


def test_shared_repeated_and_unused_layers_stay_as_they_are() -> None:
    model, other = Odd(), Odd()
    before = [p.clone() for p in model.parameters()]
    assert reconstruct_weights(model, other, ["a", "b", "twice", "never"], [torch.randn(32, 4)] * 4) == []
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters()))


def test_no_data_changes_nothing() -> None:
    model, other = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3))
    assert reconstruct_weights(model, other, ["0"], []) == []


@pytest.mark.slow
def test_fitting_brings_a_trained_network_nearer_to_what_it_was() -> None:
    model, data, step = learned(), stripes(), ChannelPruning(sparsity=0.5)
    x = next(iter(data.validation))[0]
    with torch.no_grad():
        wanted = model.eval()(x)
        errors = [
            float((one(model, data, Context()).model.eval()(x) - wanted).norm()) for one in (step.shape_only(), step)
        ]
    assert errors[1] < 0.8 * errors[0]


def test_what_is_behind_a_plain_layer_is_fitted_when_it_goes() -> None:
    torch.manual_seed(0)
    model, data, context = Chain().double().eval(), batches(2), Context()
    task = replace(stripes(), example_inputs=(data[0],), train=data)
    step = BlockRemoval(names=("two",))
    with torch.no_grad():
        wanted = model(data[0])
        errors = [
            float((one.apply(model, task, context)(data[0]) - wanted).norm()) for one in (step.shape_only(), step)
        ]
    assert errors[1] < 0.01 * errors[0]
    assert [(edit.proof, edit.note) for edit in context.log.edits] == [
        (0.0, ""),
        (None, "weights reconstructed: three"),
    ]


def test_what_is_behind_a_residual_block_stays_as_it_is() -> None:
    model, context = learned(), Context()
    smaller = BlockRemoval(names=("body.1",)).apply(model, stripes(), context)
    before = model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in smaller.state_dict().items())
    assert [(edit.proof, edit.note) for edit in context.log.edits] == [(0.0, "")]


def test_the_pixelwise_map_of_a_linear_pixelwise_layer_is_that_layer() -> None:
    torch.manual_seed(0)
    model = Chain().double().eval()
    layers = find_layers(model, (batches(2)[0],))
    one = pixelwise(model, layers, batches(2))["two"]
    assert torch.allclose(one.weight, model.two.weight, atol=1e-3)
    assert torch.allclose(one.bias, model.two.bias, atol=1e-3)
