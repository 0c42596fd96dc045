"""Bytes of activations by hand, and against a simulation that is told nothing of views."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.models import build
from gossamer.modules.activation_memory import activation_bytes


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Halves(nn.Module):
    """Both halves are views of the input, which lives until the second is read."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        small = first @ torch.ones(8, 2)
        return small + second @ torch.ones(8, 2)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ torch.ones(8, 8)
        y.relu_()
        return y @ torch.ones(8, 2)


class Weights(nn.Module):
    """What is made of parameters alone is no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(100, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.weight).sum(0, keepdim=True).T


@pytest.mark.parametrize(
    ("network", "inputs", "expected"),
    [
        (nn.Sequential(nn.Linear(100, 30), nn.ReLU(), nn.Linear(30, 10)), torch.ones(1, 100), 130),
        (nn.Sequential(nn.Linear(100, 30), nn.ReLU(), nn.Linear(30, 10)), torch.ones(7, 100), 130),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()), torch.ones(2, 1, 8, 8), 320),
        (Residual(), torch.ones(1, 4, 8, 8), 3 * 256),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 8)), torch.ones(1, 4, 8, 8), 264),
        (Halves(), torch.ones(3, 16), 16 + 2 + 2),
        (InPlace(), torch.ones(1, 8), 16),
        (Weights(), torch.ones(5, 8), 9),
        (nn.Identity(), torch.ones(1, 8), 0),
    ],
)
def test_bytes_by_hand(network: nn.Module, inputs: Tensor, expected: int) -> None:
    assert activation_bytes(network.eval(), inputs) == expected


def test_mobilenet() -> None:
    """The pointwise convolution from 32 to 64 channels at 112 x 112 is where most lives."""
    network = build("mobilenet_v1", classes=1000).eval()
    assert activation_bytes(network, torch.zeros(1, 3, 224, 224)) == 112 * 112 * (32 + 64)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(1, 3))
def test_a_chain_needs_its_widest_pair(widths: list[int], batch: int) -> None:
    chain = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Sigmoid()) for a, b in pairwise(widths)))
    assert activation_bytes(chain, torch.zeros(batch, widths[0])) == max(map(sum, pairwise(widths)))


def test_what_is_used_later_is_kept() -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = [x]
            for _ in range(3):
                rows.append(torch.cat(rows, 1).mean(1, keepdim=True))
            return torch.cat(rows, 1)

    # x, three means, and the concatenation of x and two means in front of the last mean; then that of all four.
    assert activation_bytes(Dense(), torch.zeros(1, 5)) == max(5 + 2 + 7 + 1, 5 + 3 + 8) == math.prod((2, 8))
