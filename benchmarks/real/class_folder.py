"""A pretrained network at 224 x 224 on a small class folder: one job within an hour, beside int8 alone by NNCF.

    python -m benchmarks.real.class_folder --out folder --minutes 60

Pictures are those of two Debian packages in eight classes (no two files with equal bytes). MobileNetV2 with ImageNet
weights gets a new classifier and is trained on them (`gossamer train`); then `gossamer compress` runs as a user would
start it. NNCF quantizes the same trained network with the job's calibration images. Accuracy is that of the test split
of the job, which takes part in no decision. Times are of a batch of 64 in rounds that call every file once. Needs the
packages `nncf`, `timm` and `torchvision` beside gossamer, and apt. What is finished is not done again.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.networks import MOBILENET
from benchmarks.real.int8_of_peers import RUNTIMES, by_nncf
from benchmarks.real.pictures import CLASSES, DEBIAN, class_folder
from gossamer.cli.image_fields import parse_fields
from gossamer.cli.loading import Request, load_model
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.measure import Evaluation, evaluate, paired_drop, steady_latency
from gossamer.search.cost_model import first_samples

RESULTS = paths.RESULTS / "class-folder.json"
NETWORK = "benchmarks.common.networks:mobilenet_new_head"
PREPROCESSING = "size=224,numbers=imagenet"
BATCH, THREADS = 64, 2


def command(*arguments: str) -> dict[str, Any]:
    """gossamer as a user starts it: the command, its exit status and minutes."""
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "gossamer", *arguments], check=False, cwd=paths.ROOT).returncode
    minutes = round((time.monotonic() - began) / 60, 2)
    return {"command": " ".join(("gossamer", *arguments)), "status": status, "minutes": minutes}


def trained(folder: Path, data: Path, epochs: int) -> tuple[Path, dict[str, Any]]:
    """The weights of the network that is compressed, and how they came about."""
    weights, about = folder / "trained.safetensors", folder / "trained.json"
    if not about.exists():
        done = command(
            *("train", NETWORK, "--data", str(data), "--preprocessing", PREPROCESSING, "--batch-size", "32"),
            *("--epochs", str(epochs), "--out", str(weights)),
        )
        assert done["status"] == 0
        write_text(about, json.dumps(done))
    return weights, json.loads(about.read_text())


def compressed(
    folder: Path, data: Path, weights: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The command of the job, and its document."""
    result, about = folder / "result", folder / "compressed.json"
    if not about.exists():
        done = command(
            *("compress", NETWORK, "--weights", str(weights), "--data", str(data), "--preprocessing", PREPROCESSING),
            *("--batch-size", "32", "--max-drop", str(args.max_drop), "--speedup", str(args.speedup)),
            *("--time-budget", f"{args.minutes}m", "--seed", str(args.seed), "--out", str(result)),
        )
        assert done["status"] in (0, 3)
        done["peak_resident_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        write_text(about, json.dumps(done))
    return json.loads(about.read_text()), json.loads((result / "records.json").read_text())


def original(weights: Path, task: Task) -> nn.Module:
    """The trained network."""
    return load_model(Request(model=NETWORK, weights=weights, task=task)).model.eval()


def timed(files: dict[str, Path], inputs: tuple[Tensor, ...]) -> dict[str, dict[str, list[float]]]:
    """Median and quartiles of a batch in milliseconds, by runtime and file."""
    rows: dict[str, dict[str, list[float]]] = {}
    for runtime in RUNTIMES:
        runners = {
            name: gossamer.open_runner(
                runtime, path, threads=THREADS, precision="int8" if "int8" in path.name else "float32"
            )
            for name, path in files.items()
        }
        found = steady_latency(runners, inputs, tries=3, repeats=30, seconds=30)
        rows[runtime] = {name: [one.median_ms, one.q1_ms, one.q3_ms] for name, one in found.items()}
    return rows


def judged(path: Path, task: Task, runtime: str, before: Evaluation) -> dict[str, Any]:
    """Test accuracy of a file on a runtime, beside the trained network's."""
    runner = gossamer.open_runner(
        runtime, path, threads=THREADS, precision="int8" if "int8" in path.name else "float32"
    )
    after = evaluate(runner, task, "test")
    drop = paired_drop(before, after)
    return {"top1": 100 * after.value, "drop": [drop.points, drop.low, drop.high], "bytes": path.stat().st_size}


def compared(folder: Path, data: Path, weights: Path) -> dict[str, Any]:
    """Every file on every runtime: accuracy on the test split, and times."""
    task = gossamer.load_task(data, image_fields=parse_fields(PREPROCESSING), augment=False)
    model = original(weights, task)
    files = {"float32": gossamer.export_onnx(model, task.example_inputs, folder / "trained.onnx")}
    files["NNCF int8"] = by_nncf(files["float32"], task, folder / "nncf.int8.onnx")
    result = folder / "result"
    ours = result / "model.int8.onnx"
    files["gossamer"] = ours if ours.exists() else result / "model.onnx"
    before = evaluate(model, task, "test")
    times = timed(files, first_samples(task.validation, BATCH))
    rows = {}
    for runtime, found in times.items():
        for name, path in files.items():
            row = judged(path, task, runtime, before) | {"latency_ms": found[name]}
            row["speedup"] = found["float32"][0] / found[name][0]
            rows[f"{name} on {runtime}"] = row
    return {"test_images": len(before), "top1": 100 * before.value, "files": rows}


def main() -> None:
    """Compose, train, compress, compare; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--speedup", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    data, folder = args.out / "pictures", args.out
    pictures = class_folder(data)
    weights, training = trained(folder, data, args.epochs)
    job, document = compressed(folder, data, weights, args)
    peers = {"nncf": version("nncf"), "weights": MOBILENET}
    for package in DEBIAN:
        shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False).stdout
        peers[package] = shown.split("Candidate:")[-1].split()[0]
    row: dict[str, Any] = {
        "measured": run_conditions([args.seed], THREADS, peers),
        "pictures": pictures,
        "classes": list(CLASSES),
        "training": training,
        "job": job,
        **{name: document[name] for name in ("met", "missed", "seconds", "states") if name in document},
        "compared": compared(folder, data, weights),
    }
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_text(RESULTS, json.dumps({"runs": [*earlier.get("runs", []), row]}, indent=1))
    print(json.dumps(row["compared"], indent=1))


if __name__ == "__main__":
    main()
