"""Training into a file of a given size: what integers cost, the grid with a price, the whole method on real digits."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nets import task, tiny
from torch import Tensor, nn

import gossamer
from gossamer.compact.writing import save
from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.grid import Grid
from gossamer.constraints.mask import Mask
from gossamer.constraints.serialization import constraint_spec, restore_constraints
from gossamer.constraints.weights import effective_weight
from gossamer.errors import BadInput
from gossamer.methods.quantize.rate import RateConstrainedQuantization, file_bytes, least_bytes, shortened, trimmed
from gossamer.modules.cost import dense_bytes
from gossamer.train.length_price import RateGrid, code_lengths, total_length

codes = hnp.arrays("int64", hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-4, 4))


def slow_lengths(q: list[list[int]]) -> float:
    """Weight by weight, as the docstring says."""
    rows, columns = len(q), len(q[0])
    there = [[int(x != 0) for x in row] for row in q]
    count = sum(map(sum, there))
    mean = (count + 0.5) / (rows * columns + 1)
    beyond = (sum(abs(x) for row in q for x in row) - count + 0.5) / (count + 1)
    total = 0.0
    for r in range(rows):
        for c in range(columns):
            row = (sum(there[r]) + mean) / (columns + 1)
            column = (sum(line[c] for line in there) + mean) / (rows + 1)
            density = row * column / mean if rows > 1 and columns > 1 else mean
            density = min(max(density, 1e-4), 1 - 1e-4)
            size = abs(q[r][c])
            total += (
                -math.log(1 - density)
                if not size
                else -math.log(density) + math.log(2 + 2 * beyond) + (size - 1) * math.log(1 + 1 / beyond)
            )
    return total


@given(q=codes)
def test_lengths_are_those_of_the_slow_loop(q: object) -> None:
    matrix = torch.as_tensor(q).float()
    got = float(total_length(matrix, *code_lengths(matrix)))
    assert got == pytest.approx(slow_lengths(matrix.int().tolist()), rel=1e-4)


def test_the_probabilities_of_all_integers_of_a_weight_sum_to_one() -> None:
    matrix = torch.tensor([[0.0, 1, -2], [3, 0, 0]])
    zero, one, further = code_lengths(matrix)
    sizes = torch.arange(400).view(-1, 1, 1)
    beyond_zero = 2 * torch.exp(-(one + sizes * further)).sum(0)  # both signs; `one` holds the length of a sign
    torch.testing.assert_close(torch.exp(-zero) + beyond_zero, torch.ones(2, 3), rtol=1e-4, atol=1e-4)


def test_a_grid_gives_multiples_of_its_step_and_the_gradient_passes_straight_through() -> None:
    weight = torch.randn(5, 4, requires_grad=True)
    grid = RateGrid(weight, 0.25)
    value = grid(weight)
    torch.testing.assert_close(value, 0.25 * (weight / 0.25).round())
    value.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones(5, 4))
    expected = grid.pace * (value - weight).sum()  # d value / d log step = step (round(v) - v)
    torch.testing.assert_close(grid.moved.grad, expected.detach())


def test_the_price_pulls_towards_zero_by_the_slope_of_the_length() -> None:
    weight = torch.tensor([[0.1, -0.9, 2.6], [0.0, 0.3, -1.4]], requires_grad=True)
    grid = RateGrid(weight, 0.5)
    grid.reprice(weight.detach())
    grid.price(weight).backward()
    zero, one, further = code_lengths((weight.detach() / 0.5).round())
    slope = (
        torch.where((weight.detach() / 0.5).abs() < 1, (one - zero).clamp_min(0), further)
        / 0.5
        * weight.detach().sign()
    )
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, slope)


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(8 * 64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, gossamer.Task]:
    data = gossamer.load_task("digits")
    model = Digits()
    gossamer.fit(model, data, gossamer.Training(epochs=6, lr=0.05), gossamer.Context())
    return model, data


def accuracy_of(model: nn.Module, data: gossamer.Task) -> float:
    return float(data.metric.score(model.eval(), data.validation))


@pytest.mark.slow
def test_real_data_into_a_twentieth_of_the_bytes(digits: tuple[nn.Module, gossamer.Task], tmp_path: Path) -> None:
    model, data = digits
    wanted = dense_bytes(model) / 20
    context = gossamer.Context(original=model)
    made = RateConstrainedQuantization(compression_ratio=20, epochs=20).apply(model, data, context)
    plain = materialize(made).eval()
    size = save(plain, tmp_path / "m.gsr", data.example_inputs).stat().st_size
    assert 0.8 * wanted < size <= wanted
    assert accuracy_of(plain, data) > accuracy_of(model, data) - 0.05
    again = gossamer.load(tmp_path / "m.gsr")
    torch.testing.assert_close(again(*data.example_inputs), plain(*data.example_inputs), rtol=1e-4, atol=1e-4)
    assert all(isinstance(stack[-1], Grid) for stack in constraints(made).values())


@pytest.mark.slow
def test_a_file_that_came_out_too_large_is_trimmed_by_the_weights_nearest_to_zero() -> None:
    model, data, steps = tiny(), task(), {"stem.weight": 0.1, "body.0.conv1.weight": 0.02}
    held = constrain(model, {name: Grid(step, -999, 999) for name, step in steps.items()})
    wanted = file_bytes(held, data) - 40
    less = trimmed(held, list(steps), wanted, data)
    assert wanted - 20 < file_bytes(less, data) <= wanted
    gone, kept = [], []
    for name, step in steps.items():
        before, after = effective_weight(held, name), effective_weight(less, name)
        distance = model.get_parameter(name).detach().abs() / step
        gone += distance[(before != 0) & (after == 0)].tolist()
        kept += distance[after != 0].tolist()
        assert torch.equal(before[after != 0], after[after != 0])
    assert gone and max(gone) <= min(kept)
    assert file_bytes(trimmed(held, list(steps), 1e9, data)) == file_bytes(held)


def test_a_size_that_the_rest_of_the_file_already_has_is_refused() -> None:
    with pytest.raises(BadInput, match="without the weights"):
        RateConstrainedQuantization(compression_ratio=100, epochs=1)(tiny(), task(), gossamer.Context())


class Reader(nn.Module):
    """Reads the rows of an image: layers whose weights are not called `weight`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Parameter(torch.randn(6, 16))
        self.first = nn.Linear(6, 16)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.recurrent = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.first(x.flatten(1, 2)) + self.place)
        out: Tensor = self.head(self.recurrent(y)[0][:, -1])
        return out


@pytest.mark.slow
def test_attention_recurrent_layers_and_free_parameters_are_trained_into_the_file() -> None:
    model, data = Reader(), task()
    least, dense = least_bytes(model, data), dense_bytes(model)
    assert least < dense / 7
    made = RateConstrainedQuantization(compression_ratio=6, epochs=2)(model, data, gossamer.Context()).model
    assert least < file_bytes(made, data) <= dense / 6
    held = {"place", "recurrent.weight_hh_l0", "attention.self_attn.in_proj_weight"}
    assert held < set(constraints(made))
    assert all(float((materialize(made).get_parameter(name) == 0).float().mean()) > 0.1 for name in held)


class Moody(nn.Module):
    """Another result each time: its graph would not compute what the network does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        return out.sort(dim=1, stable=True).values if float(out.detach().sum()) > 1e9 else out


def test_a_network_without_a_graph_is_as_large_as_its_weights() -> None:
    model = Moody()
    assert file_bytes(model, task()) == file_bytes(model)


@pytest.mark.slow
def test_masked_weights_stay_zero() -> None:
    model = tiny()
    mask = torch.zeros_like(model.get_parameter("stem.weight"), dtype=torch.bool)
    mask[0] = True
    held = constrain(model, {"stem.weight": Mask(mask)})
    made = RateConstrainedQuantization(compression_ratio=2.5, epochs=1)(held, task(), gossamer.Context()).model
    assert not materialize(made).get_parameter("stem.weight")[~mask].any()


def test_shortening_changes_outputs_little_and_makes_the_file_smaller(tmp_path: Path) -> None:
    model, x = tiny(), task().example_inputs[0]
    short = shortened(model)
    whole = save(model, tmp_path / "whole.gsr").stat().st_size
    assert file_bytes(model) == save(short, tmp_path / "short.gsr").stat().st_size < whole - 100
    torch.testing.assert_close(short.eval()(x), model(x), rtol=0.1, atol=0.1)


def test_a_held_network_comes_back_from_plain_values_and_tensors() -> None:
    model = tiny()
    weight = model.get_parameter("stem.weight")
    held = constrain(model, {"stem.weight": Mask(weight.detach() > 0), "head.weight": Grid(0.1, -7, 7, learned=True)})
    held = constrain(held, {"stem.weight": Grid(0.05, -100, 100)})
    again = restore_constraints(tiny(), constraint_spec(held), {k: v.clone() for k, v in held.state_dict().items()})
    assert constraint_spec(again) == constraint_spec(held)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in held.state_dict().items())
    x = task().example_inputs[0]
    assert torch.equal(again.eval()(x), held.eval()(x))
