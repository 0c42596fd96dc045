"""Even ranges across channels: the function stays, as far as the data show, and ranges become even."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from gossamer.ptq.activation_ranges import channel_ranges
from gossamer.ptq.equalization import channel_values, equalize
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.runners import open_runner


def run(model, folder, x):
    path = folder / "run.onnx"
    write_onnx(model, path)
    return open_runner("onnxruntime", path, threads=1)(x)


def equalized(model, x, folder):
    """The network as ONNX before and after, and the values whose channels were scaled."""
    before = onnx.load(export_onnx(model.eval(), (x,), folder / "net.onnx"))
    names = channel_values(before)
    largest = channel_ranges(before, names, [(x, None)], folder, threads=1) if names else {}
    return before, equalize(before, largest), names


def spread(network, names, x, folder):
    """Of each value, the largest range of a channel over the smallest one."""
    ranges = channel_ranges(network, names, [(x, None)], folder, threads=1)
    return [float(one.max() / one.min()) for one in ranges.values()]


def changed(before, after):
    pairs = zip(before.graph.initializer, after.graph.initializer, strict=True)
    return {a.name for a, b in pairs if not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 8, 3, groups=2)
        self.e, self.f = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.max_pool2d(self.d(torch.relu(self.c(x))), 2)
        return self.f(torch.relu(self.e(x.mean((2, 3)))))


def test_it_follows_depthwise_grouped_pooled_and_linear_layers(tmp_path):
    model, x = Layers(), torch.randn(4, 1, 12, 12)
    before, after, _ = equalized(model, x, tmp_path)
    torch.testing.assert_close(run(after, tmp_path, x), model(x), rtol=1e-4, atol=1e-6)
    assert changed(before, after) == {f"{name}.weight" for name in "abcdef"} | {f"{name}.bias" for name in "abcde"}


class Separable(nn.Module):
    """A layer whose channels have ranges of 1 to 60, bounded by ReLU6, in front of a depthwise one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.depth = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
        self.leave = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.enter.weight.abs_()
            self.enter.weight *= torch.tensor([0.1, 0.2, 1.0, 10.0])[:, None, None, None]
            self.enter.bias.zero_()

    def forward(self, x):
        return self.leave(self.depth(nn.functional.relu6(self.enter(x))))


def test_ranges_in_front_of_depthwise_layers_become_even_and_no_bound_is_crossed(tmp_path):
    model, x = Separable(), torch.rand(8, 2, 6, 6)
    before, after, names = equalized(model, x, tmp_path)
    assert min(spread(before, names[:1], x, tmp_path)) > 20
    assert max(spread(after, names[:1], x, tmp_path)) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(run(after, tmp_path, x), model(x), rtol=1e-4, atol=1e-6)


class Residual(nn.Module):
    """Two layers whose sum a third one reads; where `shown`, the sum is an output as well."""

    def __init__(self, shown):
        super().__init__()
        torch.manual_seed(0)
        self.shown = shown
        self.enter, self.branch, self.leave = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            for layer in (self.enter, self.branch, self.leave):
                layer.weight.fill_(1)
                layer.bias.zero_()
            for layer in (self.enter, self.branch):
                layer.weight *= torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None, None]

    def forward(self, x):
        x = self.enter(x)
        x = x + self.branch(x)
        return (self.leave(x), x) if self.shown else self.leave(x)


def test_all_layers_of_a_residual_stream_are_scaled_alike_by_the_root_of_the_factor(tmp_path):
    """A strength of 0.5, where all channels are read with the same weight; ranges below 1 / 256 count as that."""
    model, x = Residual(shown=False), torch.rand(8, 1, 4, 4)
    before, after, names = equalized(model, x, tmp_path)
    torch.testing.assert_close(run(after, tmp_path, x), model(x), rtol=1e-4, atol=1e-3)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    factors = weights["enter.weight"].ravel() / model.enter.weight.detach().numpy().ravel()
    assert factors == pytest.approx([16, 10, 10**0.5, 1], rel=1e-3)
    assert weights["leave.weight"][0].ravel() == pytest.approx(1 / factors, rel=1e-3)
    for old, new in zip(spread(before, names, x, tmp_path), spread(after, names, x, tmp_path), strict=True):
        assert old == pytest.approx(1000, rel=1e-3) and new == pytest.approx(1000 / 16, rel=1e-3)


def test_channels_that_are_read_with_small_weights_are_made_smaller(tmp_path):
    """What is 200 times as large and is read with a weight 200 times as small: 200 * sqrt(16 / 200) / sqrt(200) = 4."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 200.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([1.0, 1 / 200]).view(1, 2, 1, 1))
    x = torch.rand(8, 1, 4, 4)
    before, after, names = equalized(model, x, tmp_path)
    assert spread(before, names, x, tmp_path) == pytest.approx([200], rel=1e-3)
    assert spread(after, names, x, tmp_path) == pytest.approx([4], rel=1e-3)
    torch.testing.assert_close(run(after, tmp_path, x), model(x), rtol=1e-4, atol=1e-5)


def test_channels_that_reach_a_bound_are_not_made_smaller(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 20.0]).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([1.0, 1e-3]).view(1, 2, 1, 1))
    x = torch.rand(8, 1, 4, 4)
    before, after, _ = equalized(model, x, tmp_path)
    assert "0.weight" in changed(before, after)
    torch.testing.assert_close(run(after, tmp_path, x), model(x), rtol=1e-5, atol=1e-6)


def test_what_the_user_sees_is_not_scaled(tmp_path):
    before, after, names = equalized(Residual(shown=True), torch.rand(8, 1, 4, 4), tmp_path)
    assert names == [] and changed(before, after) == set()


def test_channels_that_no_sample_uses_stay(tmp_path):
    model = Separable()
    with torch.no_grad():
        model.enter.weight[0], model.enter.bias[0] = 0, -1
    x = torch.rand(8, 2, 6, 6)
    _, after, _ = equalized(model, x, tmp_path)
    bias = numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "enter.bias"))
    assert bias[0] == -1
