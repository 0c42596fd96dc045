"""The tensors of a compact file beside those of the original: rows of the job document."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer
from gossamer.compact.size_rows import BINS, DETAILED, MOST_VALUES, stored_rows
from gossamer.gsr.format.file import OWN_SECTION


def linear(outputs: int, inputs: int, levels: int, seed: int = 0) -> tuple[nn.Linear, nn.Linear]:
    """A random layer, and the same with weights on a grid."""
    generator = torch.Generator().manual_seed(seed)
    original, result = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
    with torch.no_grad():
        original.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        original.bias.copy_(torch.randn(outputs, generator=generator))
        result.weight.copy_((original.weight * levels / 4).round() / 8 + 0.0)
        result.bias.copy_(original.bias)
    return original, result


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), st.integers(0, 99))
@settings(max_examples=8)
@pytest.mark.slow
def test_rows_and_header_are_the_whole_file(tmp_path_factory, outputs, inputs, levels, seed):
    path = tmp_path_factory.mktemp("rows") / "net.gsr"
    original, result = linear(outputs, inputs, levels, seed)
    gossamer.save(result, path, (torch.zeros(1, inputs),))
    rows = stored_rows(original, path)
    size = path.stat().st_size
    assert sum(row.bytes for row in rows) + gossamer.inspect_file(path).header_bytes == pytest.approx(size)
    assert sum(row.dense_bytes for row in rows) == 4 * (outputs * inputs + outputs)
    for row in rows:
        assert row.bits_per_weight == pytest.approx(8 * row.bytes / row.weights)


def test_only_padding_is_in_no_row(tmp_path):
    model = nn.Linear(OWN_SECTION // 4, 2)  # raw: each at a multiple of 64 bytes
    gossamer.save(model, tmp_path / "net.gsr")
    rows = stored_rows(model, tmp_path / "net.gsr")
    header = gossamer.inspect_file(tmp_path / "net.gsr").header_bytes
    left = (tmp_path / "net.gsr").stat().st_size - sum(row.bytes for row in rows) - header
    assert -1e-6 <= left < 64


def test_values_counts_and_histogram_are_those_of_a_slow_loop(tmp_path):
    original, result = linear(20, 30, 3)
    gossamer.save(result, tmp_path / "net.gsr")
    row = next(row for row in stored_rows(original, tmp_path / "net.gsr") if row.name == "weight")
    seen: dict[float, int] = {}
    for value in result.weight.flatten().tolist():
        seen[value] = seen.get(value, 0) + 1
    assert dict(zip(row.values, row.counts, strict=True)) == seen
    assert row.values == sorted(row.values)
    assert 2 ** (row.code_bits - 1) < len(seen) <= 2**row.code_bits
    assert row.density == pytest.approx(1 - seen[0.0] / 600)
    before = original.weight.flatten().tolist()
    assert (row.low, row.high) == pytest.approx((min(before), max(before)), rel=1e-5)
    bins = [0] * BINS
    for value in before:
        bins[min(BINS - 1, int(BINS * (value - min(before)) / (max(before) - min(before))))] += 1
    assert np.abs(np.subtract(row.histogram, bins)).sum() <= 2  # one weight may lie on an edge
    assert sum(row.histogram) == 600


def test_what_has_no_counterpart_has_no_histogram(tmp_path):
    original, _ = linear(8, 30, 3)
    _, result = linear(20, 30, 3)
    gossamer.save(result, tmp_path / "net.gsr")
    row = next(row for row in stored_rows(original, tmp_path / "net.gsr") if row.name == "weight")
    assert (row.dense_bytes, row.histogram, bool(row.values)) == (4 * 8 * 30, [], True)
    rows = stored_rows(nn.Sequential(original), tmp_path / "net.gsr")
    assert [row.dense_bytes for row in rows] == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_listed(tmp_path, bad):
    original, result = linear(20, 30, 3)
    with torch.no_grad():
        original.weight[0, 0] = bad
    gossamer.save(result, tmp_path / "net.gsr")
    assert [row.histogram for row in stored_rows(original, tmp_path / "net.gsr")] == [[], []]
    gossamer.save(original, tmp_path / "net.gsr")
    assert [row.values for row in stored_rows(original, tmp_path / "net.gsr")] == [[], []]


def test_only_few_values_of_the_largest_weights_are_listed(tmp_path):
    layers = [linear(10 + i, 30, 3)[1] for i in range(DETAILED + 2)]
    many = nn.Linear(MOST_VALUES + 1, 30)
    gossamer.save(nn.Sequential(*layers, many), tmp_path / "net.gsr")
    rows = stored_rows(nn.Sequential(*layers, many), Path(tmp_path / "net.gsr"))
    listed = [row.name for row in rows if row.values]
    assert listed == [f"{i}.weight" for i in range(3, DETAILED + 2)]  # the largest has too many values


@pytest.mark.parametrize(("layer", "index"), [(nn.Linear(90, 8), 5), (nn.Conv2d(10, 8, 3), 8)])
@pytest.mark.parametrize("zeros", [True, False])
def test_the_paper_s_format_is_counted_as_by_a_slow_loop(tmp_path, layer, index, zeros):
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([-0.5, -0.2, 0.0, 0.3] if zeros else [-0.5, -0.2, 0.1])
    at = torch.randint(0, 100, layer.weight.shape, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(torch.where(at < 4, values[at % len(values)], values[2]))
    gossamer.save(layer, tmp_path / "net.gsr")
    found = next(row for row in stored_rows(layer, tmp_path / "net.gsr") if row.name == "weight").as_gaps
    stored, gap = 0, 0
    for weight in layer.weight.flatten().tolist():
        gap += 1
        if weight != 0:
            stored += (gap - 1) // 2**index + 1
            gap = 0
    assert (found["stored"], found["book"], found["index"]) == (stored, 3, index)
    assert found["code"] == 2 and (stored == 720) == (not zeros)
    assert found["density"] == pytest.approx(float((layer.weight != 0).float().mean()))
