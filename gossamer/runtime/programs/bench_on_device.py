"""Times .onnx files on this device: python bench_on_device.py [--threads 2] [--batch 1] [--out profile.json] [FILE ...]

Needs onnxruntime and numpy alone. Bring the JSON back: `gossamer compress ... --device-profile profile.json` then plans
for this device.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

FORMAT = 2
PROFILED = 10  # runs whose nodes are timed
KINDS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


def device() -> dict[str, Any]:
    """What tells this device from another one."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        keys = ("model name", "Hardware", "Model")
        name = next((one.split(":", 1)[1].strip() for one in lines if one.split("\t")[0].strip() in keys), name)
    except OSError:
        pass
    return {"processor": name, "machine": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}


def opened(path: Path, threads: int, profile: bool, prepack: bool = True) -> Any:
    """A session. Without prepack its log has the shapes of weights, too."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, "bench_on_device"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(session: Any, batch: int) -> dict[str, Any]:
    """Random inputs; the first free size is the batch, all other free sizes are 1."""
    random, found = numpy.random.default_rng(0), dict[str, Any]()
    for one in session.get_inputs():
        known = [size if isinstance(size, int) and size > 0 else 0 for size in one.shape]
        shape = [size or (batch if i == 0 else 1) for i, size in enumerate(known)]
        found[one.name] = random.random(shape).astype(KINDS.get(one.type, "float32"))
    return found


def whole(path: Path, threads: int, batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of whole calls."""
    session = opened(path, threads, profile=False)
    inputs, times = inputs_of(session, batch), list[float]()
    for _ in range(repeats + 3):
        start = time.perf_counter()
        session.run(None, inputs)
        times.append(1000 * (time.perf_counter() - start))
    times = sorted(times[3:])
    quarter = len(times) // 4
    quartiles = {"q1_ms": times[quarter], "q3_ms": times[-1 - quarter]}
    return {"median_ms": statistics.median(times), **quartiles, "runs": len(times)}


def events_of(session: Any, inputs: dict[str, Any], runs: int) -> list[dict[str, Any]]:
    """The runtime's own log of so many runs: one entry for each run of a node."""
    for _ in range(runs):
        session.run(None, inputs)
    log = Path(session.end_profiling())
    events = json.loads(log.read_text(encoding="utf-8"))
    log.unlink()
    return [one for one in events if one.get("cat") == "Node" and one["name"].endswith("_kernel_time")]


def shapes_of(event: dict[str, Any], what: str) -> list[Any]:
    """Of the inputs or the outputs of a node."""
    return [next(iter(one.values())) for one in event["args"][f"{what}_type_shape"]]


def by_node(path: Path, threads: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Operator, shapes and median milliseconds of every node."""
    session = opened(path, threads, profile=True)
    inputs = inputs_of(session, batch)
    whole = events_of(opened(path, threads, profile=True, prepack=False), inputs, 1)
    weighted = {(one["name"], *map(str, shapes_of(one, "output"))): shapes_of(one, "input") for one in whole}
    nodes: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for event in events_of(session, inputs, repeats + 2):
        name, outputs, seen = event["name"], shapes_of(event, "output"), shapes_of(event, "input")
        more = weighted.get((name, *map(str, outputs)), [])
        known = more if len(more) > len(seen) else seen
        nodes[name] = {"op": event["args"]["op_name"], "inputs": known, "outputs": outputs}
        times.setdefault(name, []).append(event["dur"] / 1000)
    return [{**row, "ms": statistics.median(times[name][2:] or times[name])} for name, row in nodes.items()]


def measured(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One file: how long whole calls and its nodes take."""
    nodes = by_node(path, args.threads, args.batch, PROFILED)
    facts = {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return {**facts, **whole(path, args.threads, args.batch, args.repeats), "nodes": nodes}


def main() -> None:
    """Measure all files, those beside this script by default, and write the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("profile.json"))
    args = parser.parse_args()
    files = args.files or sorted(Path(__file__).parent.glob("*.onnx"))
    networks = [measured(path, args) for path in files]
    profile = {
        "format": FORMAT,
        "device": device(),
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "threads": args.threads,
        "batch": args.batch,
        "networks": networks,
    }
    args.out.write_text(json.dumps(profile, indent=1), encoding="utf-8")
    for one in networks:
        print(f"{one['file']}: {one['median_ms']:.3g} ms")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
