"""Weights of 4 and 8 bits by groups: codes by hand and by brute force, and what ONNX Runtime makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.ptq.weight_only import GROUP, packed_codes, quantize_groups, quantize_weights
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.targets import compare_target, write_target


class Text(nn.Module):
    """An embedding, a transformer's layer and a head, with widths that no group divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(400, 44)
        self.layer = nn.TransformerEncoderLayer(44, 4, 70, batch_first=True)
        self.head = nn.Linear(44, 7)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.table(ids)).mean(1))
        return out


IDS = torch.randint(0, 400, (6, 9), generator=torch.Generator().manual_seed(0))


def restored(rows: np.ndarray, bits: int) -> np.ndarray:
    """The weights that the codes stand for, by a loop."""
    codes, scales, zeros = quantize_groups(rows, bits)
    found = np.zeros_like(rows)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            one = i, j // GROUP
            found[i, j] = (float(codes[(*one, j % GROUP)]) - float(zeros[one])) * scales[one]
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 70), st.sampled_from([4, 8]), st.integers(0, 99), st.floats(-2, 2))
def test_codes_are_near_and_zero_stays_zero(n: int, k: int, bits: int, seed: int, shift: float) -> None:
    rows = (np.random.default_rng(seed).normal(size=(n, k)) + shift).astype(np.float32)
    rows[:, ::3] = 0
    found = restored(rows, bits)
    for start in range(0, k, GROUP):
        part = rows[:, start : start + GROUP]
        step = (np.maximum(part.max(1), 0) - np.minimum(part.min(1), 0)) / (2**bits - 1)
        error = np.square(found[:, start : start + GROUP] - part).mean(1)
        assert bool((error <= np.square(step) + 1e-9).all())  # the whole range is at most half a step off, and its zero
    assert not found[:, ::3].any()


def test_a_range_is_never_worse_than_the_whole_one_and_often_better() -> None:
    rows = np.random.default_rng(0).normal(size=(50, GROUP)).astype(np.float32)
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    step = (high - low) / 15
    zero = np.rint(-low / step)
    whole = np.square((np.rint(rows / step + zero).clip(0, 15) - zero) * step - rows).sum(1)
    found = np.square(restored(rows, 4) - rows).sum(1)
    assert bool((found <= whole + 1e-6).all()) and float(found.mean()) < 0.95 * float(whole.mean())
    assert quantize_groups(np.zeros((2, 3), np.float32), 4)[1].tolist() == [[1.0], [1.0]]


def test_two_codes_of_four_bits_lie_in_a_byte() -> None:
    assert packed_codes(np.array([[1, 2, 15]], np.uint8), 4).tolist() == [[1 + 2 * 16, 15]]
    assert packed_codes(np.array([[1, 2, 15]], np.uint8), 8).tolist() == [[1, 2, 15]]


@pytest.mark.parametrize("bits", [4, 8])
def test_products_and_tables_are_those_of_the_codes(tmp_path: Path, bits: int) -> None:
    """ONNX Runtime gives what the network gives with restored weights, but for its 8 bits of activations."""
    model = Text().eval()
    exported = onnx.load(export_onnx(model, (IDS[:1],), tmp_path / "net.onnx"))
    small = quantize_weights(exported, bits)
    kinds = [node.op_type for node in small.graph.node if node.domain]
    assert kinds.count("GatherBlockQuantized") == 1 and kinds.count("MatMulNBits") == 5
    onnx.save(small, tmp_path / "small.onnx")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(restored(parameter.detach().numpy(), bits)))
        expected = model(IDS)
    found = open_runner("onnxruntime", tmp_path / "small.onnx", threads=1)(IDS)
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.03


def test_what_is_excluded_or_shared_stays(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    exported = onnx.load(export_onnx(model, (torch.ones(1, 64),), tmp_path / "net.onnx"))
    first = next(node.name for node in exported.graph.node if node.op_type == "Gemm")
    kinds = [node.op_type for node in quantize_weights(exported, 4, exclude=[first]).graph.node]
    assert kinds == ["Gemm", "Relu", "MatMulNBits"]


@pytest.mark.parametrize("name", ["onnx-w4", "onnx-w8"])
def test_the_target_is_small_and_near(tmp_path: Path, name: str) -> None:
    model, path = Text().eval(), tmp_path / "net.onnx"
    write_target(name, model, (IDS,), path)
    bits = int(name[-1])
    numbers = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < numbers * (bits + 3) / 8 + 12_000  # scale and zero point of a group; the graph
    found = compare_target(name, model, path, [IDS])
    assert found.cosine > {4: 0.97, 8: 0.999}[bits]


def test_a_network_without_products_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(BadInput, match="no product by a matrix and no table"):
        write_target("onnx-w4", model, (torch.ones(1, 3, 8, 8),), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
