"""Times of another device: known nodes exactly, others by a fit that finds the law behind them; refusals by name."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.core.goal import Goal
from gossamer.data.example import tiny_task
from gossamer.errors import BadInput
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.profiling import node_rows
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostModel
from gossamer.search.device_profile import predicted_ms, profile_of, read_profile

X = (torch.rand(2, 1, 8, 8),)


def network(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers, before = list[nn.Module](), 1
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * 64, 3)).eval()


def device_ms(node: dict[str, Any]) -> float:
    """A made-up device: 0.01 ms for a node, 1 ms for a million multiply-adds of a convolution."""
    if "Conv" not in node["op"]:
        return 0.01
    _, width, height, side = node["outputs"][0]
    macs = node["outputs"][0][0] * width * height * side * node["inputs"][1][1] * 9
    return 0.01 + macs * 1e-6


def profile(folder: Path, *nets: nn.Module, **other: Any) -> Path:
    networks = []
    for number, net in enumerate(nets):
        path = export_onnx(net, X, folder / f"{number}.onnx")
        nodes = [row | {"ms": device_ms(row)} for row in node_rows(path, X, threads=1)]
        networks.append({"file": path.name, "median_ms": 1.25 * sum(row["ms"] for row in nodes), "nodes": nodes})
    known = {"format": 1, "device": {"processor": "Pi"}, "runtime": "onnxruntime", "version": version("onnxruntime")}
    (folder / "pi.json").write_text(json.dumps(known | {"threads": 1, "batch": 2, "networks": networks} | other))
    return folder / "pi.json"


@pytest.mark.slow
def test_a_network_of_the_profile_takes_what_it_took_there(tmp_path: Path) -> None:
    found = read_profile(profile(tmp_path, network(16, 32)))
    rows = node_rows(tmp_path / "0.onnx", X, threads=1)
    assert predicted_ms(found, tmp_path / "0.onnx", X, threads=1) == pytest.approx(1.25 * sum(map(device_ms, rows)))


@pytest.mark.slow
def test_other_widths_follow_the_law_of_the_device(tmp_path: Path) -> None:
    found = read_profile(profile(tmp_path, network(16, 48, 64, 32)))
    path = export_onnx(network(32, 40), X, tmp_path / "small.onnx")
    right = 1.25 * sum(map(device_ms, node_rows(path, X, threads=1)))
    assert predicted_ms(found, path, X, threads=1) == pytest.approx(right, rel=0.1)


@pytest.mark.slow
def test_the_cost_model_of_a_goal_goes_by_the_profile(tmp_path: Path) -> None:
    task, original = tiny_task(), network(48, 64)
    goal = Goal(speedup=2, threads=1, batch=2, device_profile=str(profile(tmp_path, original)))
    assert goal.timed_on != "onnxruntime"
    found = CostModel(original, task, goal, CheckpointStore(None, ""), tmp_path, int8=False)
    assert found("original", lambda: original).speedup == pytest.approx(1)
    narrow = found("narrow", lambda: network(12, 16))
    assert narrow.speedup is not None and narrow.speedup > 4
    assert narrow.latency_ms == pytest.approx(found("narrow", lambda: original).latency_ms)
    assert found.layer_costs()["2"] > 5 * found.layer_costs()["0"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "1.2.3"}, "onnxruntime==1.2.3"),
        ({"format": 2}, "format 1"),
        ({"runtime": "ncnn"}, "of onnxruntime is expected"),
        ({"networks": []}, "no network"),
        ({"networks": [{"nodes": 3}]}, "is no profile"),
    ],
)
def test_what_is_no_profile_of_this_runtime_is_refused(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_profile(profile(tmp_path, network(8), **other))
    with pytest.raises(BadInput, match="no such profile"):
        read_profile(tmp_path / "nowhere.json")


@pytest.mark.slow
def test_nodes_that_do_not_explain_their_network_are_refused(tmp_path: Path) -> None:
    path = profile(tmp_path, network(8), network(16), network(24))
    raw = json.loads(path.read_text())
    raw["networks"][1]["median_ms"] *= 3
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=r"the nodes of 1\.onnx make"):
        read_profile(path)


@pytest.mark.slow
def test_nodes_that_nothing_in_the_profile_is_like_are_refused(tmp_path: Path) -> None:
    found = read_profile(profile(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()))
    path = export_onnx(network(8), X, tmp_path / "conv.onnx")
    with pytest.raises(BadInput, match=r"no node like .*Conv"):
        predicted_ms(found, path, X, threads=1)


def test_a_goal_measured_in_another_way_is_refused(tmp_path: Path) -> None:
    path = str(profile(tmp_path, network(8)))
    with pytest.raises(BadInput, match="batch 2"):
        profile_of(Goal(speedup=2, threads=1, batch=1, device_profile=path))
    with pytest.raises(BadInput, match="profiles of devices"):
        Goal(speedup=2, runtime="torch", device_profile=path)
    assert profile_of(Goal(speedup=2)) is None
