"""int8 without labels: gossamer and NNCF quantize the same networks with the same pictures.

    python -m benchmarks.real.int8_of_peers pictures --seeds 0 1 2

Each seed splits the photographs anew. Both calibrate on the same images; agreement with the float network counts on
images that neither has seen. gossamer chooses among its settings on a third part. Times are those of the first seed.
Needs the package `nncf` beside gossamer (a virtual environment of its own).
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.networks import IMAGENET
from gossamer.cli.loading import Request, Source, load_model
from gossamer.core.batches import inputs_and_target
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.measure import evaluate, judged_by, steady_latency
from gossamer.search.cost_model import first_samples

BATCH = 8  # samples of a call that is timed
RUNTIMES = ("onnxruntime", "openvino")


def by_nncf(path: Path, task: Task, target: Path) -> Path:
    """NNCF's quantization after training, with its defaults, for ONNX."""
    import nncf

    one_by_one = [x[i : i + 1].numpy() for x in task.calibration for i in range(len(x))]
    network = onnx.load(path)
    name = network.graph.input[0].name
    data = nncf.Dataset(one_by_one, lambda x: {name: x})
    onnx.save(nncf.quantize(network, data, subset_size=len(one_by_one)), target)
    return target


def split(task: Task, images: Tensor, seed: int, calibration: int) -> Task:
    """The task with its images in another order: a quarter for test, one for validation, the rest for calibration."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    quarter = len(images) // 4
    parts = torch.split(order, [quarter, quarter, len(images) - 2 * quarter])
    test, validation, rest = (torch.split(images[part], BATCH) for part in parts)
    return replace(task, train=rest, calibration=rest[: calibration // BATCH], validation=validation, test=test)


def agreements(files: dict[str, Path], task: Task, *, threads: int, timed: bool) -> dict[str, dict[str, Any]]:
    """By file and runtime: agreement on test samples, and milliseconds of a batch where they are asked for."""
    rows = {}
    for runtime in RUNTIMES:
        runners = {
            name: gossamer.open_runner(
                runtime, path, threads=threads, precision="int8" if "int8" in path.name else "float32"
            )
            for name, path in files.items()
        }
        inputs = first_samples(task.validation, BATCH)
        times = steady_latency(runners, inputs, tries=2, repeats=20, seconds=15) if timed else {}
        for name, runner in runners.items():
            row: dict[str, Any] = {"agreement": 100 * evaluate(runner, task, "test").value}
            if name in times:
                row["latency_ms"] = [times[name].median_ms, times[name].q1_ms, times[name].q3_ms]
            rows[f"{name} on {runtime}"] = row
    return rows


def of_one_seed(source: Source, task: Task, args: argparse.Namespace, *, timed: bool) -> dict[str, dict[str, Any]]:
    """Quantize by both, judge, and time."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {"float32": gossamer.export_onnx(source.model, source.example_inputs, folder / "net.onnx")}
        files["NNCF"] = by_nncf(files["float32"], task, folder / "nncf.int8.onnx")
        goal = gossamer.Goal(max_drop=args.max_drop, threads=args.threads)
        reference = evaluate(source.model, task)
        ours = gossamer.quantize_int8(files["float32"], task, folder, goal=goal, reference=reference)
        files["gossamer"] = ours.path
        rows = agreements(files, task, threads=args.threads, timed=timed)
        for name, row in rows.items():
            row["bytes"] = files[name.split(" on ")[0]].stat().st_size
            if name.startswith("gossamer"):
                row["setting"] = f"{ours.chosen} {next(s.note for s in ours.steps if s.name == ours.chosen)}"
    return rows


def together(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The rows of all seeds so far as one: mean and standard deviation of agreement, the rest of the first seed."""
    rows = {}
    for name, first in seeds[0].items():
        found = [one[name]["agreement"] for one in seeds]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        rows[name] = {**first, "agreement": found, "mean": statistics.mean(found), "deviation": spread}
    return rows


def main() -> None:
    """Quantize, judge and time; write the JSON after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("models", nargs="*", default=list(IMAGENET))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration", type=int, default=96)
    parser.add_argument("--max-drop", type=float, default=15.0)
    args = parser.parse_args()
    task = gossamer.load_task(args.photos, preprocessing=imagenet(), augment=False)
    assert task.test is not None
    parts = (task.calibration, task.validation, task.test)
    images = torch.cat([inputs_and_target(batch)[0][0] for part in parts for batch in part])
    networks: dict[str, Any] = {}
    document = {
        "measured": [run_conditions(args.seeds, args.threads, {"nncf": version("nncf")})],
        "images": len(images),
        "calibration": args.calibration,
        "test": len(images) // 4,
        "batch": BATCH,
        "max_drop": args.max_drop,
        "networks": networks,
    }
    for model in args.models:
        source = load_model(Request(model=model, task=task))
        seeds: list[dict[str, dict[str, Any]]] = []
        for seed in args.seeds:
            judged = judged_by(split(task, images, seed, args.calibration), source.model)
            seeds.append(of_one_seed(source, judged, args, timed=not seeds))
            networks[model] = together(seeds)
            print(model, seed, seeds[-1], flush=True)
            (paths.RESULTS / "int8-of-peers.json").write_text(json.dumps(document, indent=1))


def imagenet() -> Preprocessing:
    """What ImageNet networks expect of a photograph."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(size=224, channels=3, crop=224 / 256, mean=mean, std=std)


if __name__ == "__main__":
    main()
