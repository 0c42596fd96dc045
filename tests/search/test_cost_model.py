"""What a network costs, measured."""

from pathlib import Path
from typing import Any

import pytest
from nets import learned, stripes

from gossamer import Goal
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostEstimate, CostModel


def estimate(cost_ratio: float) -> CostEstimate:
    """A made-up one."""
    rest: Any = {"macs": 1, "params": 1, "latency_ms": 1.0, "speedup": 1.0, "precision": "int8"}
    return CostEstimate(**rest, cost_ratios={"speedup": cost_ratio})


@pytest.mark.parametrize(
    "times, planned, counted",
    [([1.9, 0.95], 0.97, 0.95), ([1.9, 2.3], 0.97, 1.9), ([1.1], 0.97, 1.1), ([1.9], 1.7, 1.9)],
)
def test_what_costs_far_more_than_planned_is_timed_twice(
    times: list[float], planned: float, counted: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The better of both counts; what costs about as much as planned is timed once."""
    model = learned()
    made = CostModel(model, stripes(), Goal(speedup=3), CheckpointStore(None, ""), tmp_path, int8=False)
    found = [estimate(ratio) for ratio in times]
    monkeypatch.setattr(CostModel, "_of", lambda *_, **__: found.pop(0))
    assert made.shipped(tmp_path / "net.onnx", model, "int8", planned=planned).worst_ratio == counted
    assert not found


def test_what_is_counted_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learned()
    made = CostModel(model, stripes(), Goal(macs=1000), CheckpointStore(None, ""), tmp_path, int8=False)
    found = [estimate(1.9)]
    monkeypatch.setattr(CostModel, "_of", lambda *_, **__: found.pop(0))
    assert made.shipped(tmp_path / "net.onnx", model, "float32", planned=0.97).worst_ratio == 1.9
