"""GPTQ: against a slow double, and what it changes of the outputs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from gossamer.core.progress import Silent
from gossamer.ptq.rounding import round_rows, round_weights, unfolded
from gossamer.ptq.weights import as_rows, from_rows, step_sizes
from gossamer.runtime.onnx_export import export_onnx


def covariance(size, groups=1):
    mix = torch.randn(groups, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mix @ mix.mT


def by_hand(row, step, h):
    """One row: round a weight, and move all that follow to the minimum of the quadratic error, by solving for them."""
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    left, codes = row.clone(), []
    for k in range(len(row)):
        codes.append(float((left[k] / step).round()))
        fixed, free = slice(0, k + 1), slice(k + 1, None)
        change = torch.tensor(codes, dtype=row.dtype) * step - row[fixed]
        left[free] = row[free] - torch.linalg.solve(h[free, free], h[free, fixed] @ change)
    return codes


def test_each_column_is_made_up_for_by_those_that_follow():
    """100 columns are more than one block."""
    rows = 30 * torch.randn(1, 3, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step, h = torch.full((1, 3), 1.5, dtype=torch.float64), covariance(100)
    codes = round_rows(rows * 0.1, step, h)
    for row, found in zip(rows[0] * 0.1, codes[0], strict=True):
        assert found.tolist() == by_hand(row, 1.5, h[0])


def test_the_error_that_counts_is_far_below_that_of_the_nearest_codes():
    rows = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step, h = torch.full((4, 5), 0.3, dtype=torch.float64), covariance(24, 4)

    def error(codes):
        change = codes * step[..., None] - rows
        return float((change @ h * change).sum())

    assert error(round_rows(rows, step, h)) < 0.6 * error((rows / step[..., None]).round())


def test_neighbours_of_one_sign_stay_within_sixteen_bits_and_the_steps_are_no_larger_than_that_needs():
    rows = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.3
    step = torch.from_numpy(step_sizes(rows.float().numpy())).double()
    for codes in (round_rows(rows, step, covariance(40, 2)), (rows / step[..., None]).round()):
        assert codes.abs().max() <= 127
        pairs = codes[..., 1:] + codes[..., :-1]
        assert pairs[codes[..., 1:].sign() == codes[..., :-1].sign()].abs().max() <= 128
    assert step_sizes(np.array([[[0.0, 127.0, -127.0, 0.0]]], np.float32)).item() == 1
    assert step_sizes(np.array([[[127.0, 127.0, 0.0]]], np.float32)).item() == 2
    assert step_sizes(np.zeros((1, 1, 3), np.float32)).item() == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_made_up_for_stays_within_sixteen_bits(sign):
    """The second weight would become 26.5 + 0.4 * 9 = 30.1 without the bound, and both together more than 128."""
    rows, h = torch.tensor([[[100.4, 26.5]]], dtype=torch.float64), torch.tensor([[[100.0, 9.0], [9.0, 1.0]]])
    assert round_rows(sign * rows, torch.ones(1, 1, dtype=torch.float64), h).tolist() == [[[sign * 100, sign * 28]]]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 8, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2, bias=False),
        nn.Conv1d(4, 4, 3, groups=4, bias=False),
        nn.Linear(4, 5, bias=False),
    ],
    ids=["conv", "dilated, grouped", "depthwise, 1-D", "linear"],
)
def test_rows_times_unfolded_inputs_are_the_layer(layer, tmp_path):
    x = torch.randn(3, 4) if isinstance(layer, nn.Linear) else torch.randn(3, 4, *[5] * (layer.weight.dim() - 2))
    network = onnx.load(export_onnx(layer, (x,), tmp_path / "net.onnx"))
    [node] = [node for node in network.graph.node if node.op_type in ("Conv", "Gemm")]
    weight = layer.weight.detach().numpy()
    rows = as_rows(node, weight)
    assert np.array_equal(from_rows(node, rows, weight.shape), weight)
    inputs = unfolded(node, x, weight.shape[2:])
    outputs = torch.from_numpy(rows) @ inputs.mT  # (groups, outputs of a group, samples and positions)
    wanted = layer(x).detach().transpose(0, 1).reshape(len(rows), -1, outputs.shape[2])
    torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)


def test_rounding_takes_the_mean_error_away_and_gives_steps_on_which_weights_lie(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    with torch.no_grad():
        model[0].weight[:, :, 0, 0] = 30.0  # so that steps are coarse for all other weights
        model[3].weight[:, 0] = 30.0
    x = torch.rand(200, 1, 8, 8)
    network = onnx.load(export_onnx(model, (x[:2],), tmp_path / "net.onnx"))
    data = [(x, None)]
    rounded, steps = round_weights(network, data, tmp_path, threads=1, samples=None, progress=Silent())
    made = {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in rounded.graph.initializer}
    with torch.no_grad():
        inner = model[2](model[1](model[0](x)))
        for name, given, layer in (("0", x, model[0]), ("3", inner, model[3])):
            weight, bias = made[f"{name}.weight"], made[f"{name}.bias"]
            codes = weight / torch.from_numpy(steps[f"{name}.weight"]).reshape(-1, *[1] * (weight.dim() - 1))
            torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
            exact = layer(given)
            layer.weight.copy_(weight)
            old = layer.bias.clone() if layer.bias is not None else torch.zeros(len(weight))
            error = (layer(given) - exact).transpose(0, 1).flatten(1).mean(1)
            assert error.abs().max() > 1e-3
            assert (error + bias - old).abs().max() < 0.2 * error.abs().max()


def test_inputs_that_hardly_vary_beside_their_mean_are_rounded_to_the_nearest():
    """Their second moments less the squares of the means are rounding errors, of either sign."""
    rows, step = torch.tensor([[[0.4, 1.6, -2.2]]]).double(), torch.ones(1, 1).double()
    noise = torch.tensor([[[1e-6, 3e-6, 0], [3e-6, -1e-6, 0], [0, 0, 0]]]).double()
    assert round_rows(rows, step, noise).tolist() == [[[0, 2, -2]]]
