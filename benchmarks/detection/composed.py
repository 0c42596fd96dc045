"""Detectors on composed scenes: gossamer's own against SSD on the same body, and one of them compressed.

The scenes are synthetic (`gossamer.data.composed`): digits or clothes on noisy canvases of 96x96 pixels. Both detectors
train with the same data, epochs, schedule and seed. Then the better one is compressed for a goal of speed-up and points
of AP. Results are written after every step; finished networks are kept in the work folder.

    python -m benchmarks.detection.composed --epochs 20 --seeds 0 1 2
    python -m benchmarks.detection.composed --networks ion_csp_n --no-job  # beside what was measured alike
    python -m benchmarks.detection.composed --table
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.folder import lock_folder
from gossamer.core.goal import Goal
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.detection.metrics import CocoAP
from gossamer.measure import evaluate, paired_drop
from gossamer.models import build_for, load_weights, save_weights
from gossamer.modules.cost import total_macs, total_params
from gossamer.train import Training, fit

RESULTS = paths.RESULTS / "detection-composed.json"
NETWORKS = {
    "csp_pan_n": "without anchors, CSP body and PAN neck",
    "ssd_csp_n": "SSD heads on the same body",
    "ion_csp_n": "ION on the same body, 32 proposals",
}


def training(options: argparse.Namespace) -> Training:
    """The same for all."""
    return Training(epochs=options.epochs, lr=options.lr, weight_decay=5e-4, schedule="one_cycle", clip=5.0)


def trained(name: str, task: Task, seed: int, options: argparse.Namespace, lines: Lines) -> dict[str, Any]:
    """The row of one detector; its weights are kept."""
    weights = options.work / f"{name}-{seed}.safetensors"
    note = weights.with_suffix(".json")
    if weights.exists() and note.exists():
        row: dict[str, Any] = json.loads(note.read_text())
        return row
    torch.manual_seed(seed)
    model = build_for(name, task)
    context = Context(seed=seed, folder=options.work, progress=lines)
    began = time.process_time()
    fitted = fit(model, task, training(options), context, checkpoint=weights.with_suffix(".ckpt")).model.eval()
    seconds = time.process_time() - began
    found = evaluate(fitted, task, "test")
    summary = CocoAP().summary(found.evidence)
    save_weights(fitted, weights, {"model": name})
    row = {
        "network": name,
        "seed": seed,
        "test": {key: None if value != value else round(100 * value, 2) for key, value in summary.items()},
        "n": len(found),
        "params": total_params(fitted),
        "macs": total_macs(fitted, task.example_inputs[0][:1]),
        "processor_seconds": round(seconds, 1),
    }
    write_text(note, json.dumps(row, indent=1))
    lines.say(f"{name}, seed {seed}: AP {row['test']['AP']} %")
    return row


def compressed(name: str, task: Task, seed: int, options: argparse.Namespace, lines: Lines) -> dict[str, Any]:
    """The job on a trained detector: its goal, and what it lost on the same test scenes."""
    model = build_for(name, task)
    load_weights(model, options.work / f"{name}-{seed}.safetensors")
    goal = Goal(speedup=options.speedup, max_drop=options.max_drop, runtime=options.runtime, threads=options.threads)
    context = Context(seed=seed, progress=lines)
    out = options.work / f"{name}-{seed}-{options.speedup:g}x"
    began = time.monotonic()
    result = gossamer.compress(
        model.eval(), task, goal=goal, epochs=options.recovery, out=out, context=context, verbose=False
    )
    before, after = evaluate(model.eval(), task, "test"), evaluate(result.model.eval(), task, "test")
    drop = paired_drop(before, after)
    return {
        "network": name,
        "seed": seed,
        "speedup": options.speedup,
        "max_drop": options.max_drop,
        "runtime": options.runtime,
        "goal_met": result.met,
        "network_drop": {"points": drop.points, "low": drop.low, "high": drop.high, "n": drop.n},
        "params": total_params(result.model),
        "wall_seconds": round(time.monotonic() - began),
        "records": str(out / "records.json"),
    }


def table(document: dict[str, Any]) -> str:
    """Markdown from the JSON."""
    run = document["measured"][-1]
    lines = [
        "# Detectors on composed scenes",
        "",
        f"Synthetic scenes ({document['data']}), {document['epochs']} epochs, seeds "
        f"{', '.join(map(str, run['seeds']))}, {run['threads']} thread. "
        + " ".join(f"`{one['command']}`" for one in document["measured"]),
        "",
        "| detector | seed | AP % | AP50 % | AR 100 % | parameters | MACs (M) | training, processor s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in document["trained"]:
        test = row["test"]
        lines.append(
            f"| {row['network']}: {NETWORKS[row['network']]} | {row['seed']} | {test['AP']} | {test['AP50']} | "
            f"{test['AR 100']} | {row['params']:,} | {row['macs'] / 1e6:.1f} | {row['processor_seconds']:.0f} |"
        )
    if document["compressed"]:
        lines += [
            "",
            "| compressed | seed | goal | met | points of AP lost, network | parameters |",
            "|---|---:|---|---|---|---:|",
        ]
    for row in document["compressed"]:
        drop, met = row["network_drop"], "yes" if row["goal_met"] else "NOT met"
        lines.append(
            f"| {row['network']} | {row['seed']} | {row['speedup']:g}x on {row['runtime']}, at most {row['max_drop']} "
            f"points | {met} | {drop['points']:.2f} ({drop['low']:.2f} to {drop['high']:.2f}) | {row['params']:,} |"
        )
    return "\n".join(lines) + "\n"


def kept_rows(document: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What was measured before of networks that are not trained now, where they were trained alike."""
    if (document.get("data"), document.get("epochs")) != (options.data, options.epochs):
        return {"trained": [], "compressed": [], "measured": []}
    rows = {name: document[name] for name in ("trained", "compressed")}
    return {name: [row for row in old if row["network"] not in options.networks] for name, old in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="composed-mnist")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--recovery", type=int, default=None, help="epochs of a recovery in the job")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--no-job", action="store_true", help="train and compare, compress nothing")
    parser.add_argument("--work", type=Path, default=Path("work-detection"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of the JSON again")
    options = parser.parse_args(arguments)
    if options.table:
        write_table(options.out, table(json.loads(options.out.read_text())))
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    lines, run = Lines(), run_conditions(options.seeds, options.threads)
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    document |= kept_rows(document, options)
    document |= {"format": 1, "data": options.data, "epochs": options.epochs, "measured": with_run(document, run)}

    def written() -> None:
        write_text(options.out, json.dumps(document, indent=1))
        write_table(options.out, table(document))

    with lock_folder(options.work, ".lock"):
        for seed in options.seeds:
            task = load_task(options.data, seed=seed)
            for name in options.networks:
                document["trained"].append(trained(name, task, seed, options, lines))
                written()
            if not options.no_job and "csp_pan_n" in options.networks:
                document["compressed"].append(compressed("csp_pan_n", task, seed, options, lines))
                written()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
