"""Parameters and multiply-adds against counts by hand and from the papers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patterns import Function, TorchAttention, Transformer, pattern
from torch import Tensor, nn

from gossamer.models import build
from gossamer.modules.cost import analyze, layer_costs, total_macs, total_params


@pytest.mark.parametrize(
    ("name", "size", "channels", "params", "macs"),
    [
        ("lenet300", 28, 1, 266_610, 266_200),
        ("lenet5", 28, 1, 431_080, 2_293_000),
        ("resnet20", 32, 3, 272_474, 40_813_184),
        ("resnet20a", 32, 3, 269_722, 40_551_040),
        ("wrn16_1", 32, 3, 175_066, 26_657_408),
    ],
)
def test_published_counts(name: str, size: int, channels: int, params: int, macs: int) -> None:
    model, inputs = build(name), torch.zeros(2, channels, size, size)
    rows = layer_costs(model, inputs)
    assert sum(row.params for row in rows) == total_params(model) == params
    assert sum(row.macs for row in rows) == total_macs(model, inputs) == macs
    assert sum(row.bytes for row in rows) == 4 * params


def test_convolutions_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(5, 5, 1, groups=5))
    rows = layer_costs(model, torch.zeros(3, 4, 8, 8))
    assert [row.macs for row in rows] == [6 * 36 * 2 * 9, 36 * 6 * 5 * 4, 5 * 144]
    assert [(row.in_channels, row.out_channels) for row in rows] == [(4, 6), (6, 5), (5, 5)]


def test_attention_by_hand() -> None:
    model = Transformer(TorchAttention)
    rows = {row.name: row for row in layer_costs(model, torch.zeros(2, 3, 6, 6))}
    assert rows["patch"].macs == 4 * 32 * 27
    assert rows["attention.0.inner"].macs == 5 * 32 * 96 + 2 * 5 * 5 * 32
    assert rows["attention.0.inner.out_proj"].macs == 5 * 32 * 32
    assert rows["mlp.0.0"].macs == 5 * 32 * 64
    assert sum(row.params for row in rows.values()) == total_params(model)


def test_a_layer_that_runs_twice_costs_twice_and_weighs_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(F.relu(m.a(x)))

    model = Function(forward, a=nn.Linear(7, 7))
    (row,) = layer_costs(model, torch.zeros(1, 7))
    assert (row.macs, row.params, row.kind) == (98, 56, "Linear")


def test_analyze_has_times_and_groups() -> None:
    model, inputs = pattern("squeeze_excite")
    analysis = analyze(model, inputs)
    times = {row.name: row.time_ms for row in analysis.layers}
    assert all(time is not None and time > 0 for time in times.values())
    assert [group.name for group in analysis.groups] == ["a.0", "down", "head"]
    assert analysis.params == total_params(model)
    assert analysis.macs == sum(row.macs for row in analysis.layers)
