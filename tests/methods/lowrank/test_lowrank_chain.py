"""What becomes of factored networks in later steps: pruned, quantized, coded, loaded again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import learned, stripes
from torch import nn

import gossamer
from gossamer.compact.writing import save
from gossamer.constraints.apply import materialize
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.cp import CP
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.modules.cost import total_macs
from gossamer.ptq.fallback import float32_scores, quantize_int8
from gossamer.runtime.runners import open_runner

SCHEMES = [
    SpatialDecomposition(macs=0.6, norm=True, data="accumulated"),
    ChannelDecomposition(macs=0.6, data="inputs"),
    CP(ranks={"body.*": 4}, sweeps=20),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name())
@pytest.mark.slow
def test_low_rank_then_pruned_then_int8_then_coded(scheme: LowRank, tmp_path: Path) -> None:
    model, data, context = learned().eval(), stripes(), Context(original=learned())
    small = scheme.apply(model, data, context)
    narrow = ChannelPruning(sparsity=0.25).apply(small, data, context)
    inputs = data.example_inputs
    assert total_macs(narrow, inputs) < total_macs(small, inputs) < total_macs(model, inputs)
    plain = materialize(Magnitude(sparsity=0.5).apply(narrow, data, context)).eval()
    weights = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(int((w == 0).sum()) for w in weights) >= 0.45 * sum(w.numel() for w in weights)

    right = float32_scores(plain, data)
    found = quantize_int8(plain, data, tmp_path, goal=Goal(max_drop=5, threads=1), reference=right)
    assert found.met
    assert open_runner("onnxruntime", found.path, threads=1, precision="int8")(*inputs).shape == (len(inputs[0]), 3)

    for name, one in (("dense", model), ("small", plain)):
        save(one, tmp_path / f"{name}.gsr", inputs)
    with torch.no_grad():
        wanted = plain(*inputs)
    torch.testing.assert_close(gossamer.load(tmp_path / "small.gsr")(*inputs), wanted, rtol=1e-4, atol=1e-4)
    sizes = [(tmp_path / f"{name}.gsr").stat().st_size for name in ("small", "dense")]
    assert sizes[0] < 0.7 * sizes[1]


@torch.no_grad()
@pytest.mark.slow
def test_the_final_layer_alone() -> None:
    """Sainath's: 1,024 to 9,300 at rank 128 takes 7.2 times fewer weights; no other layer changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 9300, bias=False))
    data = replace(stripes(), example_inputs=(torch.randn(4, 8),))
    small = SVD(ranks={"2": 128})(model, data, Context()).model
    counts = [sum(p.numel() for p in m[2].parameters()) for m in (model, small)]  # type: ignore[index]
    assert counts == [9_523_200, 1_321_472]
    assert torch.equal(small[0].weight, model[0].weight)  # type: ignore[index]
