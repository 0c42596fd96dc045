"""Batch norm and sign as one limit: equal to the float functions at every number, ties and rounding included."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.runtime.binary.products import ALWAYS, NEVER
from gossamer.runtime.binary.switches import IntegerCurve, falling, integer_curve, limits_of, switches_of

CHANNELS = 64


def norm_and_sign(seed: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], object]:
    generator = torch.Generator().manual_seed(seed)
    mean, gamma, beta = (torch.randn(CHANNELS, generator=generator, dtype=dtype) for _ in range(3))
    gamma[0], beta[1], mean[1] = 0, 0, 0  # a constant, and a tie at 0
    gamma[2], gamma[3] = abs(gamma[2]), -abs(gamma[3])
    variance = torch.rand(CHANNELS, generator=generator, dtype=dtype) + 0.1

    def function(x: Tensor) -> Tensor:
        z = F.batch_norm(x.to(dtype)[:, :, None, None], 10 * mean, variance, gamma, beta)[:, :, 0, 0]
        return torch.where(z >= 0, 1.0, -1.0)

    return [mean, gamma], function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_switches_are_exact_at_every_integer(seed: int, dtype: torch.dtype) -> None:
    _, function = norm_and_sign(seed, dtype)
    scales = torch.rand(CHANNELS, generator=torch.Generator().manual_seed(seed)) + 0.1
    found = switches_of(integer_curve(function, scales, 50))  # type: ignore[arg-type]
    assert found is not None
    c = torch.arange(-50, 51)
    bits = (c[:, None].numpy() >= found.least) ^ found.flips
    assert np.array_equal(np.where(bits, 1, -1), function(c[:, None] * scales).numpy())  # type: ignore[operator]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_limits_are_the_very_floats_at_which_a_function_switches(seed: int) -> None:
    _, function = norm_and_sign(seed)
    found = limits_of(function, CHANNELS)  # type: ignore[arg-type]
    assert found is not None
    at = torch.from_numpy(np.where(np.isfinite(found.limits), found.signs * found.limits, 0).astype(np.float32))
    below, above = (torch.nextafter(at, torch.tensor(end)) for end in (-torch.inf, torch.inf))
    for x in (at, below, above, -at, torch.zeros(CHANNELS)):
        bits = x.numpy() * found.signs >= found.limits
        assert np.array_equal(np.where(bits, 1, -1), function(x[None])[0].numpy())  # type: ignore[operator]


def test_constants_are_always_or_never() -> None:
    found = switches_of(IntegerCurve(2, torch.tensor([[1.0, -1.0]]).expand(5, 2)))
    assert found is not None and found.least.tolist() == [ALWAYS, NEVER] and not found.flips.any()


def test_what_switches_back_or_is_no_sign_has_no_switch() -> None:
    assert switches_of(IntegerCurve(1, torch.tensor([[1.0], [-1.0], [1.0]]))) is None
    assert switches_of(IntegerCurve(1, torch.tensor([[-1.0], [0.0], [1.0]]))) is None
    assert limits_of(torch.sign, 1) is None


def test_the_direction_of_a_sign_behind_a_pool() -> None:
    rising = torch.arange(-2.0, 3)[:, None].expand(5, 3)
    before = IntegerCurve(2, torch.cat([rising[:, :2], -rising[:, 2:]], 1))
    after = IntegerCurve(2, torch.tensor([[-1.0, 1, 1], [-1, 1, 1], [-1, 1, -1], [1, -1, -1], [1, -1, -1]]))
    found = falling(before, after)
    assert found is not None and found.tolist() == [False, True, False]
    both = torch.ones(5, 3)
    both[1, 0] = -1
    assert falling(before, IntegerCurve(2, both)) is None
