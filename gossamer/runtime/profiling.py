"""Where the time goes: milliseconds per node of a deployed network, as the runtime itself measures them."""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.runtime.runners import OnnxRuntimeRunner, OpenVinoRunner

Times = list[dict[str, float]]
ELEMENTWISE = ("Relu", "Clip", "Add", "Mul", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish")


def layer_times(
    runtime: str,
    onnx_path: Path | str,
    inputs: tuple[Tensor, ...],
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
        inputs: one batch.
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
    path = Path(onnx_path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
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


def _onnxruntime(path: Path, inputs: tuple[Tensor, ...], threads: int, runs: int) -> Times:
    runner = OnnxRuntimeRunner(path, threads=threads, precision="float32", profile=True)
    prepared = runner.prepare(inputs)
    for _ in range(runs):
        runner.raw(prepared)
    log = Path(runner.session.end_profiling())
    try:
        events = json.loads(log.read_text())
    except json.JSONDecodeError as error:  # the runtime does not say so when the disk is full
        raise OSError(errno.ENOSPC, "the runtime's profile was cut short", str(log)) from error
    finally:
        log.unlink(missing_ok=True)
    times: Times = []
    current: dict[str, float] = {}
    for event in sorted(events, key=lambda e: e["ts"] + e.get("dur", 0)):
        if event.get("name") == "model_run":
            times.append(current)
            current = {}
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
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
