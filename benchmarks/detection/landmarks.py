"""What a teacher is worth to a small network of landmarks: plain training, its outputs, its selected neurons.

The faces are drawn (`_faces.py`), with five exact landmarks: a synthetic set, the same for every seed. A teacher is
trained, then a student of 4 % of its multiply-adds: on the landmarks alone, with `distill.kd`, and with
`distill.neurons`, for as many passes in sum. Errors are divided by the distance of the eyes, on test faces. The
learning rate of each row is the best of a grid on validation faces, with the first seed.

    python -m benchmarks.detection.landmarks --seeds 0 1 2
    python -m benchmarks.detection.landmarks --table
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.detection._faces import LANDMARKS, SIDE, faces
from gossamer.core.context import Context
from gossamer.core.metric import Evaluation
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data.batches import Batches, Normalisation
from gossamer.detection.landmarks import LandmarkError, LandmarkFailures, landmark_loss
from gossamer.measure import evaluate, paired_drop
from gossamer.methods.distill.kd import KD
from gossamer.methods.distill.neurons import NeuronSelection
from gossamer.models.layers import conv_bn
from gossamer.modules.cost import total_macs, total_params
from gossamer.train import Training, fit

RESULTS = paths.RESULTS / "landmarks.json"
TRAIN, VALIDATION, TEST = 2000, 500, 2000  # faces
WIDTHS = {"teacher": 16, "student": 3}
STUDENTS = ("plain", "distill.kd", "distill.neurons")
RATES = (0.1, 0.3, 1.0)
HINTS = 2  # epochs of the first stage of `distill.neurons`
METRIC = LandmarkError(between=(0, 1))
FAILURES = LandmarkFailures(between=(0, 1))


class LandmarkNet(nn.Module):
    """Three strided convolutions and an embedding; x and y of five landmarks by turns, in pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_bn(1, width, 3, 2),
            *conv_bn(width, 2 * width, 3, 2),
            *conv_bn(2 * width, 4 * width, 3, 2),
            nn.Flatten(),
        )
        self.embedding = nn.Sequential(nn.Linear(64 * width, 8 * width), nn.ReLU())
        self.points = nn.Linear(8 * width, 2 * len(LANDMARKS))
        nn.init.constant_(self.points.bias, SIDE / 2)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.points(self.embedding(self.features(x_NCHW)))  # type: ignore[no-any-return]


@cache
def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`faces`, drawn once."""
    return faces(count, seed)


def landmark_data(seed: int) -> Task:
    """Drawn faces; the seed is that of the order of the training faces."""
    norm, splits = Normalisation(mean=(0.4,), std=(0.2,)), {}
    for number, (name, count) in enumerate((("train", TRAIN), ("validation", VALIDATION), ("test", TEST))):
        images, points = drawn(count, number)
        first = name == "train"
        size = 64 if first else 500
        splits[name] = Batches(images, points, batch_size=size, normalisation=norm, seed=seed, shuffle=first)
    return Task(
        name="drawn faces",
        **splits,  # type: ignore[arg-type]
        calibration=splits["train"],
        example_inputs=(next(iter(splits["test"]))[0][:2],),
        loss=landmark_loss,
        metric=METRIC,
    )


def trained(width: int, seed: int, lr: float, epochs: int) -> nn.Module:
    """On the landmarks alone; the weights that are best on validation faces."""
    torch.manual_seed(seed)
    training = Training(epochs=epochs, lr=lr, clip=5.0)
    context = Context(seed=seed, accelerator="cpu")
    return fit(LandmarkNet(width), landmark_data(seed), training, context).model.eval()


def taught(method: KD | NeuronSelection, teacher: nn.Module, seed: int) -> nn.Module:
    """A student by a method, from the weights that plain training begins with."""
    torch.manual_seed(seed)
    context = Context(seed=seed, accelerator="cpu", teacher=teacher)
    return method.apply(LandmarkNet(WIDTHS["student"]), landmark_data(seed), context).eval()


def student_by(row: str, teacher: nn.Module, seed: int, lr: float, options: argparse.Namespace) -> nn.Module:
    """The student of a row, for as many epochs in sum as every other; clip and the schedule are alike as well."""
    told: dict[str, Any] = {"lr": lr, "alpha": options.alpha, "clip": 5.0}
    if row == "distill.kd":
        return taught(KD(epochs=options.epochs, **told), teacher, seed)
    if row == "distill.neurons":
        layers = {"embedding": "embedding"}
        method = NeuronSelection(epochs=options.epochs - HINTS, hint_epochs=HINTS, layers=layers, **told)
        return taught(method, teacher, seed)
    return trained(WIDTHS["student"], seed, lr, options.epochs)


def best_rates(options: argparse.Namespace, lines: Lines) -> dict[str, float]:
    """Of `RATES` for the teacher and for each row of the student, on validation faces, with the first seed."""
    rates: dict[str, float] = {}
    best: dict[str, nn.Module] = {}
    for row in ("teacher", *STUDENTS):
        lowest = float("inf")
        for lr in RATES:
            if row == "teacher":
                network = trained(WIDTHS[row], 0, lr, options.epochs)
            else:
                network = student_by(row, best["teacher"], 0, lr, options)
            error = evaluate(network, landmark_data(0), "validation").value
            lines.say(f"{row}, learning rate {lr}: validation error {100 * error:.2f} %")
            if error < lowest:
                lowest, rates[row], best[row] = error, lr, network
    return rates


def rows_of(seed: int, rates: dict[str, float], options: argparse.Namespace, lines: Lines) -> dict[str, Any]:
    """The numbers of one seed by network."""
    began, task = time.process_time(), landmark_data(seed)
    teacher = trained(WIDTHS["teacher"], seed, rates["teacher"], options.epochs)
    students = {row: student_by(row, teacher, seed, rates[row], options) for row in STUDENTS}
    networks = {"teacher": teacher, **{f"student, {row}": student for row, student in students.items()}}
    scores: dict[str, Evaluation] = {name: evaluate(network, task, "test") for name, network in networks.items()}
    found: dict[str, Any] = {}
    for name, network in networks.items():
        found[name] = {
            "error": round(100 * scores[name].value, 3),
            "failures": round(100 * FAILURES.score(network, task.test), 2),  # type: ignore[arg-type]
            "params": total_params(network),
            "macs": total_macs(network, task.example_inputs[0][:1]),
        }
        if name.startswith("student, distill"):
            drop = paired_drop(scores["student, plain"], scores[name])  # points are tenths of a percent
            lost = {key: round(getattr(drop, key) * 100 * METRIC.points, 3) for key in ("points", "low", "high")}
            found[name]["more_than_plain"] = {"error": lost.pop("points"), **lost, "n": drop.n}
        lines.say(f"seed {seed}, {name}: {found[name]['error']} %")
    return found | {"processor_seconds": round(time.process_time() - began, 1)}


def table(document: dict[str, Any]) -> str:
    """Markdown from the JSON."""
    run, seeds = document["measured"][-1], document["seeds"]
    names = [name for name in next(iter(seeds.values())) if name != "processor_seconds"]
    lines = [
        "# Landmarks with a teacher",
        "",
        f"Drawn faces, a synthetic set: {TRAIN:,} to train, {TEST:,} to test. {document['epochs']} epochs in sum, "
        f"seeds {', '.join(seeds)}, {run['threads']} thread. The error is divided by the distance of the eyes; "
        f"failures are errors above 10 %. Learning rates, each the "
        f"best of {RATES} on validation faces: {', '.join(f'{row} {lr:g}' for row, lr in document['rates'].items())}. "
        f"`{run['command']}`",
        "",
        "| network | error %, mean | by seed | failures % | error against plain, by seed (95 % interval) | "
        "parameters | MACs (k) |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for name in names:
        rows = [one[name] for one in seeds.values()]
        errors, failures = [row["error"] for row in rows], mean(row["failures"] for row in rows)
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        against = ", ".join(
            f"{more['error']:+.2f} ({more['low']:+.2f} to {more['high']:+.2f})"
            for row in rows
            if (more := row.get("more_than_plain"))
        )
        lines.append(
            f"| {name} | {mean(errors):.2f}{spread} | {', '.join(f'{x:.2f}' for x in errors)} | {failures:.1f} | "
            f"{against or '-'} | {rows[0]['params']:,} | {rows[0]['macs'] / 1e3:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the landmarks beside the teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of the JSON again")
    options = parser.parse_args(arguments)
    if options.table:
        write_table(options.out, table(json.loads(options.out.read_text())))
        return 0
    torch.set_num_threads(options.threads)
    lines, run = Lines(), run_conditions(options.seeds, options.threads)
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    same = (document.get("epochs"), document.get("alpha")) == (options.epochs, options.alpha)
    document |= {"format": 1, "epochs": options.epochs, "alpha": options.alpha, "measured": with_run(document, run)}
    if not same:
        document |= {"seeds": {}, "rates": best_rates(options, lines)}
    for seed in options.seeds:
        if str(seed) not in document["seeds"]:
            document["seeds"][str(seed)] = rows_of(seed, document["rates"], options, lines)
            write_text(options.out, json.dumps(document, indent=1))
            write_table(options.out, table(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
