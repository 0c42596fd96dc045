"""Cheaper layers of a trained network: low rank alone, reset alone, and both with int8, each a recipe of the main job.

python -m benchmarks.speed.replacements --weights dense.safetensors         # rows that are there are not run again
python -m benchmarks.speed.replacements --weights dense.safetensors --rows reset
python -m benchmarks.speed.replacements --table

Latencies are medians on ONNX Runtime, all networks interleaved in one process, against the dense network in float32.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gossamer
from benchmarks.common import paths
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.record import environment, write_text
from gossamer.jobs.recipe import Recipe
from gossamer.measure import evaluate, latency, paired_drop, wilson
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.models import build_for, load_weights
from gossamer.modules.cost import total_macs
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.search.cost_model import first_samples

RESULTS = paths.RESULTS / "cheaper.json"
# The five convolutions of VGG-16-small that the loss misses least, by `gossamer.search.axes.block_order`.
LEAST_MISSED = ("features.40", "features.37", "features.27", "features.30", "features.34")
ASKED = {"low rank": 2.5, "reset": 4.0, "low rank, reset, int8": 10.0}


def recipe(row: str, epochs: int) -> Recipe:
    """The steps of a row, for VGG-16-small. Reset: fewer layers, and a width multiplier for those that are left."""
    recover = RecoveryDistillation(epochs=epochs)
    shallower = BlockRemoval(names=LEAST_MISSED)
    thinner = ChannelPruning(sparsity=0.45 if row == "reset" else 0.35, round_to=8)
    steps: dict[str, tuple[Any, ...]] = {
        "low rank": (Tucker(macs=0.2, data="inputs"), recover),
        "reset": (shallower, thinner, recover),
        "low rank, reset, int8": (shallower, SVD(layers=("fc1",), params=0.3), thinner, recover),
    }
    return Recipe(name=row.replace(", ", "-").replace(" ", "-"), steps=steps[row], int8=row.endswith("int8"))


def run(options: argparse.Namespace, row: str) -> dict[str, Any]:
    """A row's job, and what its network scores on both splits."""
    task = gossamer.load_task("fashion-mnist", seed=options.seed)
    dense = load_weights(build_for("vgg16_small", task), options.weights).eval()
    chosen = recipe(row, options.epochs)
    folder = options.work / chosen.name
    made = gossamer.compress(
        dense, task, recipe=chosen, out=folder, context=gossamer.Context(seed=options.seed, progress=Lines())
    )
    file, precision = file_of(folder)
    runner = open_runner("onnxruntime", file, threads=options.threads, precision=precision)
    found: dict[str, Any] = {"macs": total_macs(made.model, task.example_inputs), "seconds": made.document.seconds}
    for split in ("validation", "test"):
        before, after = evaluate(dense, task, split), evaluate(runner, task, split)
        found[split] = {"top1": after.shown, "drop": paired_drop(before, after).points}
    found["interval"] = wilson(after)
    return found


def file_of(folder: Path) -> tuple[Path, str]:
    small = folder / "model.int8.onnx"
    return (small, "int8") if small.exists() else (folder / "model.onnx", "float32")


def measure(options: argparse.Namespace, rows: dict[str, Any]) -> dict[str, Any]:
    """Latencies of all rows and of the dense network, interleaved."""
    task = gossamer.load_task("fashion-mnist", seed=options.seed)
    dense = load_weights(build_for("vgg16_small", task), options.weights).eval()
    files = {"dense": (export_onnx(dense, task.example_inputs, options.work / "dense.onnx"), "float32")}
    files |= {row: file_of(options.work / recipe(row, 1).name) for row in rows}
    load = os.getloadavg()[0]
    runners = {
        row: open_runner("onnxruntime", file, threads=options.threads, precision=precision)
        for row, (file, precision) in files.items()
    }
    times = latency(runners, first_samples(task.validation, options.batch), repeats=60)
    return {"load": load, "times": {row: asdict(time) for row, time in times.items()}}


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    how, times = found["how"], found["latency"]["times"]
    lines = [
        "# Cheaper layers of a trained network",
        "",
        f"VGG-16-small on Fashion-MNIST, ONNX Runtime, batch {how['batch']}, {how['threads']} threads, "
        f"{how['epochs']} epochs of recovery, seed {how['seed']}. Made by `python -m benchmarks.speed.replacements`.",
        "",
        "| network | ms | times faster | asked | M MACs | test top-1 % | drop, test | drop, validation |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    dense_ms = times["dense"]["median_ms"]
    for row, facts in found["rows"].items():
        ms = times[row]["median_ms"]
        lines.append(
            f"| {row} | {ms:.2f} | {dense_ms / ms:.2f} | {ASKED[row]:g} | {facts['macs'] / 1e6:.1f} "
            f"| {facts['test']['top1']:.2f} | {facts['test']['drop']:.2f} | {facts['validation']['drop']:.2f} |"
        )
    return "\n".join([*lines, f"| dense, float32 | {dense_ms:.2f} | 1.00 | | | | | |", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the trained VGG-16-small, from speed.compare or gossamer train")
    parser.add_argument("--rows", nargs="+", choices=ASKED, default=list(ASKED))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("out/cheaper"))
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        found["how"] = {k: getattr(options, k) for k in ("epochs", "seed", "threads", "batch")} | environment()
        for row in options.rows:
            if row not in found["rows"]:
                found["rows"][row] = run(options, row)
                write_text(RESULTS, json.dumps(found, indent=1))
        found["latency"] = measure(options, found["rows"])
        write_text(RESULTS, json.dumps(found, indent=1))
    text = table(found)
    write_table(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
