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
from gossamer.ptq.isolated_layers import quantize_for_timing
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.profiling import node_rows
from gossamer.runtime.programs.bench_on_device import by_node
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostModel
from gossamer.search.device_profile import (
    _features,
    _key,
    _of_networks,
    _weight,
    predicted_ms,
    profile_of,
    read_profile,
)

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
    known = {"format": 2, "device": {"processor": "Pi"}, "runtime": "onnxruntime", "version": version("onnxruntime")}
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


def made_up(*networks: tuple[float, list[dict[str, Any]]]) -> dict[str, Any]:
    """A profile as it is read, of whole times and nodes."""
    rows = [{"file": f"{i}.onnx", "median_ms": ms, "nodes": nodes} for i, (ms, nodes) in enumerate(networks)]
    return {"device": {}, "version": "1", "threads": 1, "batch": 1, "networks": rows}


def node(op: str, numbers: int, ms: float, *weights: list[int]) -> dict[str, Any]:
    return {"op": op, "inputs": [[1, numbers], *weights], "outputs": [[1, numbers]], "ms": ms}


def test_what_timing_adds_to_each_node_is_taken_off() -> None:
    """Two networks of 4 and of 8 nodes that take 1 ms each; their log has 0.25 ms more of every node."""
    nodes = [node("Add", 1000 * (i + 1), 1.25) for i in range(8)]
    found = _of_networks(made_up((4.0, nodes[:4]), (8.0, nodes)))
    assert found.scale == pytest.approx(1)
    assert found.predict(nodes[:5]) == pytest.approx(5)


def test_one_small_node_says_nothing_of_how_large_ones_grow() -> None:
    """A node with next to nothing to do is its own cost; the slope is that of other small nodes."""
    adds = [node("Add", n, 0.002 + 1e-6 * 2 * n) for n in (100, 1000, 4000, 16_000)]
    found = _of_networks(made_up((sum(one["ms"] for one in adds) + 0.003, [*adds, node("ReorderOutput", 64, 0.003)])))
    assert found.node_ms(node("ReorderOutput", 16_384, 0)) == pytest.approx(0.003 + 2e-6 * (16_384 - 64), rel=0.1)
    assert found.node_ms(node("Flatten", 1000, 0)) == pytest.approx(0.004, rel=0.1)  # of a kind that it has not


def test_one_large_node_goes_by_its_size() -> None:
    adds = [node("Add", n, 0.002 + 1e-6 * 2 * n) for n in (100, 1000, 4000)]
    found = _of_networks(made_up((4.0, [*adds, node("Softmax", 10_000, 4.0)])))
    assert found.node_ms(node("Softmax", 5000, 0)) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "features"),
    [
        ("Conv", [[1, 16, 8, 8], [32, 16, 3, 3]], [[1, 32, 4, 4]], (1, 512 * 144, 1024 + 4608 + 512, 16)),
        ("QLinearConv", [[1, 8, 8, 16], [], [], [32, 16, 3, 3], [32]], [[1, 4, 4, 32]], (1, 73728, 6176, 16)),
        ("Gemm", [[2, 64], [64, 10], [10]], [[2, 10]], (1, 2 * 640, 128 + 640 + 10 + 20, 2)),
        ("GRU", [[5, 2, 4], [1, 9, 4], [1, 9, 3]], [[5, 1, 2, 3]], (1, 10 * 63, 40 + 36 + 27 + 30, 10)),
        ("QLinearAdd", [[1, 4, 4, 8], [], [], [1, 4, 4, 8]], [[1, 4, 4, 8]], (1, 0, 384, 0)),
    ],
)
def test_what_a_node_does(op: str, inputs: Any, outputs: Any, features: tuple[float, ...]) -> None:
    assert _features({"op": op, "inputs": inputs, "outputs": outputs}) == features


@pytest.mark.slow
def test_the_program_for_devices_and_the_planner_name_nodes_alike(tmp_path: Path) -> None:
    """Weights that kernels keep in their own order have shapes in both: a profile knows each node of its networks."""
    pairs = export_onnx(network(16, 32), X, tmp_path / "net.onnx"), tmp_path / "net.int8.onnx"
    quantize_for_timing(*pairs, X, threads=1)
    for path in pairs:
        there = by_node(path, 1, 2, 1)
        assert sorted(map(_key, there)) == sorted(map(_key, node_rows(path, X, threads=1)))
        weights = [_weight(one) for one in there if _weight(one) is not None]
        assert [16, 1, 3, 3] in weights and [32, 16, 3, 3] in weights


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
        ({"format": 1}, "format 2"),
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
