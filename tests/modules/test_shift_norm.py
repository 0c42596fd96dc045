"""Batch norms of powers of two: against a slow double, and as the ordinary norms that they become."""

import math

import pytest
import torch
from torch import Tensor, nn

from gossamer.modules.shift_norm import ShiftNorm1d, ShiftNorm2d, nearest_power_of_two, plain_norm, with_plain_norms

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def power(x: float) -> float:
    return 0.0 if x == 0 else math.copysign(2.0 ** round(math.log2(abs(x))), x)


def slow(norm: ShiftNorm1d, x: Tensor) -> Tensor:
    """The published algorithm, one number after the other."""
    result = torch.empty_like(x)
    for channel in range(x.shape[1]):
        values = x[:, channel].tolist()
        mean = sum(values) / len(values)
        centred = [value - mean for value in values]
        variance = sum(c * power(c) for c in centred) / len(values)
        weight, bias = norm.weight[channel].item(), norm.bias[channel].item()
        for sample, c in enumerate(centred):
            result[sample, channel] = power(weight) * (c * power(1 / math.sqrt(variance + norm.eps))) + bias
    return result


def test_powers_of_two_are_the_nearest_by_their_logarithm() -> None:
    given = torch.tensor([0.0, 1.0, 1.4, 1.42, -3.0, 1e-38, -0.3], dtype=torch.float64)
    assert nearest_power_of_two(given).tolist() == [power(x) for x in given.tolist()]


@DTYPES
def test_outputs_of_a_training_batch_are_those_of_the_algorithm(dtype: torch.dtype) -> None:
    norm = ShiftNorm1d(3).to(dtype)
    nn.init.uniform_(norm.weight, -2, 2), nn.init.uniform_(norm.bias, -1, 1)
    x = 3 * torch.randn(17, 3, dtype=dtype) + 1
    torch.testing.assert_close(norm(x), slow(norm, x))


@DTYPES
def test_it_keeps_statistics_as_torch_does_where_values_are_powers_of_two(dtype: torch.dtype) -> None:
    x = torch.tensor([-2.0, 2.0, -2.0, 2.0], dtype=dtype).view(1, 1, 2, 2)
    ours, theirs = ShiftNorm2d(1).to(dtype), nn.BatchNorm2d(1).to(dtype)
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_it_learns() -> None:
    norm, x = ShiftNorm1d(2), torch.randn(32, 2)
    norm(x).square().sum().backward()
    assert norm.weight.grad is not None and bool(norm.weight.grad.abs().min() > 0)


@DTYPES
@pytest.mark.parametrize(("kind", "shape"), [(ShiftNorm1d, (9, 4)), (ShiftNorm2d, (5, 4, 3, 3))])
def test_the_ordinary_norm_gives_the_same_outputs(
    kind: type[ShiftNorm1d | ShiftNorm2d], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    norm = kind(4).to(dtype)
    nn.init.uniform_(norm.weight, -2, 2), nn.init.uniform_(norm.bias, -1, 1)
    for _ in range(4):
        norm(3 * torch.randn(shape, dtype=dtype) + 1)
    x = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(plain_norm(norm.eval())(x), norm(x), rtol=1e-5, atol=1e-5)


def test_none_is_left_in_a_model() -> None:
    model = with_plain_norms(nn.Sequential(nn.Linear(2, 3), nn.Sequential(ShiftNorm1d(3))))
    assert [type(module) for module in model.modules()].count(nn.BatchNorm1d) == 1
    assert not any(isinstance(module, ShiftNorm1d) for module in model.modules())


def test_under_autocast_statistics_stay_in_single_precision() -> None:
    norm, x = ShiftNorm2d(3), torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    same = ShiftNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16):
        norm(x.bfloat16())
    same(x.bfloat16().float())
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, same.running_mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(norm.running_var, same.running_var, atol=2e-3, rtol=2e-2)
