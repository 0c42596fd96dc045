"""int8 for phones and boards without labels: ExecuTorch and LiteRT beside their own float32, on photographs.

    python -m benchmarks.real.int8_of_targets pictures --seeds 0 1 2

Files are written by `gossamer export --target`. Each seed splits the photographs anew. Agreement of the largest output
with the float network counts on images that were not calibrated on. Times are of one image a call, one thread, in
rounds that call every file once, those of the first seed. Needs the extras `executorch` and `litert`.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.networks import IMAGENET
from benchmarks.real.int8_of_peers import BATCH, imagenet, split, together
from gossamer.cli.loading import Request, Source, load_model
from gossamer.core.batches import inputs_and_target
from gossamer.core.task import Task
from gossamer.targets import TARGETS, open_target, write_target

NAMES = ("executorch", "executorch-int8", "litert", "litert-int8")
ROUNDS = 30
RESULTS = paths.RESULTS / "int8-of-targets.json"


def of_one_seed(source: Source, task: Task, *, timed: bool) -> dict[str, dict[str, Any]]:
    """Write, run and compare with the network."""
    assert task.test is not None
    images = [x[None] for batch in task.test for x in inputs_and_target(batch)[0][0]]
    with torch.no_grad():
        expected = [int(source.model(x).argmax()) for x in images]
    with tempfile.TemporaryDirectory() as place:
        runs, rows = {}, {}
        for name in NAMES:
            path = Path(place) / f"{name}{TARGETS[name].suffix}"
            write_target(name, source.model, source.example_inputs, path, calibration=task.calibration)
            runs[name] = open_target(name, path)
            same = [int(runs[name](x)[0].argmax()) == truth for x, truth in zip(images, expected)]
            rows[name] = {"agreement": 100 * sum(same) / len(same), "bytes": path.stat().st_size}
        for name, values in (rounds(runs, images[0]) if timed else {}).items():
            rows[name]["latency_ms"] = [float(x) for x in np.percentile(values, (50, 25, 75))]
    return rows


def rounds(runs: dict[str, Any], image: Tensor) -> dict[str, list[float]]:
    """Milliseconds of each file in every round."""
    random, found = np.random.default_rng(0), {name: list[float]() for name in runs}
    for _ in range(ROUNDS):
        for name in random.permutation(list(runs)):
            began = time.perf_counter()
            runs[name](image)
            found[name].append(1000 * (time.perf_counter() - began))
    return found


def main() -> None:
    """Write the JSON after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("models", nargs="*", default=list(IMAGENET))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = gossamer.load_task(args.photos, preprocessing=imagenet(), augment=False)
    parts = (task.calibration, task.validation, task.test or ())
    images = torch.cat([inputs_and_target(batch)[0][0] for part in parts for batch in part])
    versions = {name: version(name) for name in ("executorch", "ai-edge-litert", "ai-edge-quantizer", "torchao")}
    networks: dict[str, Any] = {}
    document = {
        "measured": [run_conditions(args.seeds, 1, versions)],
        "images": len(images),
        "calibration": args.calibration // BATCH * BATCH,
        "test": len(images) // 4,
        "networks": networks,
    }
    for model in args.models:
        source = load_model(Request(model=model, task=task))
        seeds: list[dict[str, dict[str, Any]]] = []
        for seed in args.seeds:
            seeds.append(of_one_seed(source, split(task, images, seed, args.calibration), timed=not seeds))
            networks[model] = together(seeds)
            print(model, seed, seeds[-1], flush=True)
            RESULTS.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
