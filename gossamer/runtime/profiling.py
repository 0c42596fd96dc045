"""Where the time goes: milliseconds per node of a deployed network, as the runtime itself measures them."""

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from gossamer.core.batches import as_inputs
from gossamer.errors import BadInput, no_file
from gossamer.runtime.runners import OnnxRuntimeRunner, OpenVinoRunner

Times = list[dict[str, float]]
TIMED = "_kernel_time"  # at the end of the names of timed nodes in the log
ELEMENTWISE = ("Relu", "Clip", "Add", "Mul", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish")


def layer_times(
    runtime: str,
    onnx_path: Path | str,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 2,
    precision: str = "float32",
    repeats: int = 20,
    warmup: int = 5,
) -> dict[str, float]:
    """Median milliseconds of one batch by node name; export_onnx names weighted nodes after their torch modules.

    Runtimes fuse nodes: what was fused into a weighted node counts to it, what belongs to none (reorders, conversions)
    is under `other`. The sum is a little less than the latency, and more where profiling slows small nodes down.

    Args:
        runtime: "onnxruntime" or "openvino".
        onnx_path: of the network.
        inputs: one batch, a tensor or a tuple of them.
        threads: of one run.
        precision: as `open_runner`.
        repeats: runs that count.
        warmup: runs before them.

    Returns:
        Milliseconds, by node name.

    Raises:
        BadInput: there is no such file, or another runtime.

    Example:
        >>> import tempfile, gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx")
        ...     times = layer_times("onnxruntime", file, task.example_inputs, repeats=3)
        >>> all(ms >= 0 for ms in times.values())
        True
    """
    path, inputs = Path(onnx_path), as_inputs(inputs, "layer_times")
    if not path.is_file():
        raise no_file(path)
    if runtime == "onnxruntime":
        times = _onnxruntime(path, inputs, threads, repeats + warmup)
    elif runtime == "openvino":
        times = _openvino(path, inputs, threads, precision, repeats + warmup)
    else:
        raise BadInput(f"layer times are measured on onnxruntime or openvino, not on {runtime!r}")
    nodes = [node for node in onnx.load(path, load_external_data=False).graph.node if node.name]
    owners = owners_of(nodes)
    runs = [_by_node(run, owners) for run in times[warmup:]]
    names = dict.fromkeys(name for name in (*owners.values(), "other") if any(name in run for run in runs))
    return {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in names}


def owners_of(nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """The node that a name in a runtime's log stands for: its own, or that of the value that it makes.

    A convolution with an activation fused into it is named after the value behind the activation.
    """
    by_value: dict[str, str] = {}
    for node in nodes:
        fused = by_value.get(node.input[0]) if node.op_type in ELEMENTWISE else None
        by_value[node.output[0]] = fused or node.name
    return by_value | {node.name: node.name for node in nodes}


def _by_node(run: Mapping[str, float], owners: Mapping[str, str]) -> dict[str, float]:
    """Times of the runtime's nodes summed by the node of the file that they stem from."""
    total: dict[str, float] = {}
    for name, time_ms in run.items():
        owner = origin(name, owners)
        total[owner] = total.get(owner, 0.0) + time_ms
    return total


def origin(name: str, owners: Mapping[str, str]) -> str:
    """The node of the file that a runtime's node stems from: the runtimes append to names after `_` or `/`."""
    while name not in owners:
        cut = max(name.rfind(mark) for mark in "_/")
        if cut <= 0:
            return "other"
        name = name[:cut]
    return owners[name]


def node_rows(path: Path, inputs: tuple[Tensor, ...], *, threads: int) -> list[dict[str, Any]]:
    """The nodes that ONNX Runtime makes of a file: name, operator, shapes of inputs and outputs, as in its log.

    Args:
        path: of the file.
        inputs: one batch.
        threads: of the run.

    Returns:
        One row for each node.
    """
    rows = dict[str, dict[str, Any]]()
    for event in _node_events(_log(path, inputs, threads, 1, prepack=False)):
        known = event["args"]
        shapes = {
            kind: [next(iter(one.values())) for one in known[f"{kind[:-1]}_type_shape"]]
            for kind in ("inputs", "outputs")
        }
        name = event["name"].removesuffix(TIMED)
        rows[name] = {"name": name, "op": known["op_name"], **shapes}
    return list(rows.values())


def times_of_nodes(
    path: Path, inputs: tuple[Tensor, ...], node_ms: Callable[[Mapping[str, Any]], float], *, threads: int
) -> dict[str, float]:
    """As `layer_times`, with a time of every node that is known otherwise.

    Args:
        path: of the file.
        inputs: one batch.
        node_ms: milliseconds of a row of `node_rows`.
        threads: of the run.

    Returns:
        Milliseconds, by node name.
    """
    nodes = [node for node in onnx.load(path, load_external_data=False).graph.node if node.name]
    run = {row["name"]: node_ms(row) for row in node_rows(path, inputs, threads=threads)}
    return _by_node(run, owners_of(nodes))


def _log(
    path: Path, inputs: tuple[Tensor, ...], threads: int, runs: int, *, prepack: bool = True
) -> list[dict[str, Any]]:
    """The events of the runtime's log, in their order. prepack: else it has the shapes of weights, too."""
    runner = OnnxRuntimeRunner(path, threads=threads, precision="float32", profile=True, prepack=prepack)
    prepared = runner.prepare(inputs)
    for _ in range(runs):
        runner.raw(prepared)
    log = Path(runner.session.end_profiling())
    try:
        events: list[dict[str, Any]] = json.loads(log.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:  # the runtime does not say so when the disk is full
        raise OSError(errno.ENOSPC, "the runtime's profile was cut short", str(log)) from error
    finally:
        log.unlink(missing_ok=True)
    return sorted(events, key=lambda e: e["ts"] + e.get("dur", 0))


def _node_events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(TIMED)]


def _onnxruntime(path: Path, inputs: tuple[Tensor, ...], threads: int, runs: int) -> Times:
    times: Times = []
    current: dict[str, float] = {}
    for event in _log(path, inputs, threads, runs):
        if event.get("name") == "model_run":
            times.append(current)
            current = {}
        elif _node_events([event]):
            name = event["name"].removesuffix(TIMED)
            current[name] = current.get(name, 0.0) + event["dur"] / 1000
    return times


def _openvino(path: Path, inputs: tuple[Tensor, ...], threads: int, precision: str, runs: int) -> Times:
    runner = OpenVinoRunner(path, threads=threads, precision=precision, profile=True)
    prepared = runner.prepare(inputs)
    times: Times = []
    for _ in range(runs):
        runner.raw(prepared)
        current: dict[str, float] = {}
        for info in runner.request.get_profiling_info():
            milliseconds = info.real_time.total_seconds() * 1000
            if milliseconds > 0:
                current[info.node_name] = current.get(info.node_name, 0.0) + milliseconds
        times.append(current)
    return times
