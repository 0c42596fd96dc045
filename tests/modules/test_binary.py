"""Binary layers: every step of their arithmetic against loops, gradients against the papers, and storage."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.modules.binary import (
    BinaryConv2d,
    BinaryLinear,
    ShiftedPReLU,
    Sign,
    binary_weight,
    sign_gradient,
    sign_of,
)
from gossamer.modules.replay import restore, structure_of


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def slow_binary_convolution(layer: BinaryConv2d, x: Tensor) -> Tensor:
    """One output at a time, for float64: signs, +1 outside of the image, K with 0 outside, then the bias."""
    n, _, height, width = x.shape
    padding: Any = layer.padding
    pad, stride, dilation = int(padding[0]), layer.stride[0], layer.dilation[0]
    rows, columns = layer.kernel_size
    out_h = (height + 2 * pad - dilation * (rows - 1) - 1) // stride + 1
    out_w = (width + 2 * pad - dilation * (columns - 1) - 1) // stride + 1
    per_group, per_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    y = torch.zeros(n, layer.out_channels, out_h, out_w, dtype=x.dtype)
    for b, o, i, j in itertools.product(range(n), range(layer.out_channels), range(out_h), range(out_w)):
        total, size = 0.0, 0.0
        for c, p, q in itertools.product(range(per_group), range(rows), range(columns)):
            r, s = i * stride + p * dilation - pad, j * stride + q * dilation - pad
            inside = 0 <= r < height and 0 <= s < width
            value = float(x[b, o // per_out * per_group + c, r, s]) if inside else 0.0
            total += float(weight[o, c, p, q]) * (1.0 if value >= 0 else -1.0)
            size += abs(value)
        mean = size / (per_group * rows * columns) if layer.input_scale else 1.0
        y[b, o, i, j] = total * mean + (0.0 if bias is None else float(bias[o]))
    return y


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("pad", "stride", "dilation", "groups"), [(1, 1, 1, 1), (2, 2, 1, 2), (1, 1, 2, 1)])
def test_a_convolution_is_what_its_page_says(pad: int, stride: int, dilation: int, groups: int, scale: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"padding": pad, "stride": stride, "dilation": dilation, "groups": groups}
    layer = BinaryConv2d(4, 2, (3, 2), input_scale=scale, **sizes).double()
    x = seeded(2, 4, 5, 6).double()
    x[0, 0, 0, 0] = 0.0
    torch.testing.assert_close(layer(x).detach(), slow_binary_convolution(layer, x).detach())


def test_a_linear_layer_is_what_its_page_says() -> None:
    torch.manual_seed(0)
    layer, x = BinaryLinear(5, 3, input_scale=True), seeded(2, 5)
    signs = torch.tensor([[1.0 if float(v) >= 0 else -1.0 for v in row] for row in x])
    assert layer.bias is not None
    expected = signs @ layer.weight.T * torch.stack([x[0].abs().mean(), x[1].abs().mean()])[:, None] + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_the_norm_and_the_shift_stand_before_the_sign() -> None:
    layer = BinaryConv2d(2, 1, 1, bias=False, norm="batch", shift=True).eval()
    assert isinstance(layer.norm, nn.BatchNorm2d) and layer.sign.shift is not None
    assert layer.norm.running_mean is not None
    layer.norm.running_mean.fill_(2.0)  # z = x - 2
    with torch.no_grad():
        layer.sign.shift.copy_(torch.tensor([1.0, -1.0]))  # sign(x - 3), sign(x - 1)
        layer.weight.copy_(torch.tensor([10.0, 1.0]).view(1, 2, 1, 1))
    x = torch.tensor([0.0, 2.0, 4.0]).expand(1, 2, 1, 3)
    assert layer(x).flatten().tolist() == [-11.0, -9.0, 11.0]


def test_the_sign_of_zero_is_one() -> None:
    for x in (torch.tensor([0.0, -0.0]), torch.tensor([0.0, -0.0]).double().requires_grad_()):
        assert Sign()(x).tolist() == [1.0, 1.0] == sign_of(x.detach()).tolist()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("hard_tanh", [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]), ("polynomial", [0.0, 0.0, 1.0, 2.0, 0.5, 0.0])],
)
def test_gradients_of_the_sign_are_those_of_the_papers(estimator: Any, expected: list[float]) -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.75, 2.0], requires_grad=True)
    weights = torch.arange(1.0, 7.0)
    sign = Sign(estimator=estimator)
    [found] = torch.autograd.grad((sign(x) * weights).sum(), x)
    torch.testing.assert_close(found, weights * torch.tensor(expected))


def test_the_polynomial_is_the_derivative_of_its_piecewise_quadratic() -> None:
    """F(x) = 2x + x^2 below 0 and 2x - x^2 above, within (-1, 1): Liu et al. 2018, equation 5."""
    x = torch.linspace(-0.99, 0.99, 9, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(torch.where(x < 0, 2 * x + x * x, 2 * x - x * x).sum(), x)
    torch.testing.assert_close(slope, sign_gradient(x.detach(), "polynomial"))


def test_a_shifted_prelu_has_its_corner_where_it_says() -> None:
    layer = ShiftedPReLU(1, slope=0.5)
    nn.init.constant_(layer.before, 1.0)
    nn.init.constant_(layer.after, 10.0)
    assert layer(torch.tensor([[-1.0], [0.5], [3.0]])).flatten().tolist() == [9.0, 9.75, 12.0]


def test_signs_and_scales_give_the_weight_back() -> None:
    scales = torch.tensor([0.3, 1.7])
    weight = scales.view(2, 1, 1) * sign_of(seeded(2, 3, 4))
    found = binary_weight(weight)
    assert found is not None
    assert torch.equal(found[1], scales) and torch.equal(found[1].view(2, 1, 1) * (2 * found[0].float() - 1), weight)


@pytest.mark.parametrize("rows", [[[1.0, -2.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0], [float("nan"), 1.0]]])
def test_what_is_not_binary_is_told(rows: list[list[float]]) -> None:
    assert binary_weight(torch.tensor(rows)) is None


def test_binary_layers_come_back_into_a_network_of_plain_layers() -> None:
    def plain() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))

    changed, x = plain().eval(), (seeded(2, 1, 4, 4),)
    changed[0] = BinaryConv2d(1, 2, 3, norm="batch", shift=True, input_scale=True)
    changed[2] = BinaryLinear(8, 2, norm="batch", estimator="polynomial")
    changed.eval()
    again = plain().eval()
    restore(again, changed.state_dict(), structure_of(again, changed, x), "a file")
    assert repr(again) == repr(changed) and torch.equal(again(*x), changed(*x))
