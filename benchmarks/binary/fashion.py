"""VGG-small on Fashion-MNIST with binary weights, and with binary weights and inputs, beside float32.

    python -m benchmarks.binary.fashion --width 32 --epochs 5 --seeds 0

A network in float32 is trained; every row starts from it and has as many passes again, with that network as teacher
(ReActNet has half of them for each of its two stages). "float32, trained on" has the same passes and the same teacher.
The weights of the last pass are tested, once. Bytes are those of the whole `.gsr` file; the ratio is to four bytes a
parameter of the float32 network. The network of the papers has a width of 128. Rows are kept as they come.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.measure import evaluate
from gossamer.methods import catalogue
from gossamer.models.vgg_small import VGGSmall
from gossamer.train import Training, fit

RESULTS = paths.RESULTS / "binary-fashion.json"
WHOLE = "float32"
# Row -> method, its settings, passes of one of its stages over those of the row.
ROWS: dict[str, tuple[str, dict[str, Any], float]] = {
    "float32, trained on": ("distill.recover", {"lr": 0.01}, 1),
    "binary weights (BWN)": ("binarize.bwn", {}, 1),
    "both binary (BNN)": ("binarize.bnn", {"ends": False}, 1),
    "both binary (XNOR)": ("binarize.xnor", {}, 1),
    "both binary (ReActNet)": ("binarize.react", {"ends": False}, 0.5),
}
CONDITIONS = (
    "Fashion-MNIST, 28 x 28, 55,000 training images with the usual shifts and flips, 10,000 test images (their "
    "standard error is 0.26 points at 93 %). Every row: the same trained float32 network, as many passes again, "
    "AdamW and a cosine schedule for binary rows, first and last layer real, the last pass counts."
)


def dense(task: Task, seed: int, options: argparse.Namespace) -> nn.Module:
    """The network in float32 that all rows start from."""
    torch.manual_seed(seed)
    model = VGGSmall(in_channels=1, input_size=28, width=options.width)
    training = Training(epochs=options.epochs, lr=0.05, weight_decay=5e-4, keep="last")
    return fit(model, task, training, Context(seed=seed, progress=Lines())).model


def measured(row: str, model: nn.Module, task: Task, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the JSON."""
    found = model
    if row != WHOLE:
        name, settings, share = ROWS[row]
        how = {"epochs": max(1, round(share * options.epochs)), "lr": options.lr, **settings}
        method, context = catalogue()[name](**how), Context(seed=seed, original=model, progress=Lines())
        found = method(model, task, context).model
    score = evaluate(found.eval(), task, "test")
    with tempfile.TemporaryDirectory() as folder:
        file = gossamer.save(found, Path(folder) / "net.gsr", task.example_inputs)
        size = file.stat().st_size
    float_bytes = 4 * sum(p.numel() for p in model.parameters())
    return {
        "row": row,
        "seed": seed,
        "width": options.width,
        "epochs": options.epochs,
        "test": 100 * score.value,
        "bytes": size,
        "smaller": float_bytes / size,
    }


def markdown(document: dict[str, Any]) -> str:
    """The rows as a table."""
    lines = ["# Binary networks on Fashion-MNIST", "", document["conditions"], ""]
    lines += [
        "| row | width | passes | seeds | test accuracy | bytes | smaller |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["row"], row["width"], row["epochs"]), []).append(row)
    for (name, width, epochs), rows in groups.items():
        scores = [row["test"] for row in rows]
        spread = f" ({min(scores):.2f} to {max(scores):.2f})" if len(scores) > 1 else ""
        size, smaller = rows[0]["bytes"], rows[0]["smaller"]
        shown = f"{sum(scores) / len(scores):.2f} %{spread} | {size:,} | {smaller:.1f}x"
        lines.append(f"| {name} | {width} | {epochs} | {len(rows)} | {shown} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Train, test and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[WHOLE, *ROWS], default=[WHOLE, *ROWS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.003, help="of binary rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    document["conditions"], run = CONDITIONS, run_conditions(options.seeds, options.threads)
    for seed in options.seeds:
        task = load_task("fashion-mnist", seed=seed)
        kept = {(row["row"], row["seed"], row["width"], row["epochs"]) for row in document["rows"]}
        missing = [row for row in options.rows if (row, seed, options.width, options.epochs) not in kept]
        model = dense(task, seed, options) if missing else nn.Identity()
        for row in missing:
            document["rows"].append(measured(row, model, task, seed, options))
            document["measured"] = with_run(document, run)
            write_text(options.out, json.dumps(document, indent=1) + "\n")
            write_table(options.out, markdown(document))
            print(document["rows"][-1], flush=True)


if __name__ == "__main__":
    main()
