"""Bits for each layer, found by search, against the same bits for all layers, at equal bytes of the compact file.

    python -m benchmarks.search.mixed_bits --network lenet5 --minutes 5

Weights of a trained network are rounded without training (`quantize.uniform`, batch norms estimated again). Evolution
searches the bits of each layer (`neighbourhood(..., cut=False)`), where the file must not be larger than that of the
network with uniform bits. It sees the first samples of the validation split; test data are looked at once, for the
uniform network and the one that was found.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.paths import RESULTS
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.measure import Evaluation, evaluate, paired_drop
from gossamer.methods._training import Limited
from gossamer.methods.quantize.rate import file_bytes
from gossamer.models import pretrained
from gossamer.nas import Evolution, Found, Genes, NeighbourSpace, neighbourhood
from gossamer.nas.neighbourhood import Within
from gossamer.train import recalibrate

TARGET = RESULTS / "mixed_bits.json"
BITS, UNIFORM = (8, 6, 5, 4, 3, 2), (4, 3, 2)
BATCH, BATCHES, CALIBRATION = 128, 8, 4  # samples of a batch; batches that the search sees, and for batch norms
NEAR = (0.75, 1.15)  # bits of all weights over those of the uniform network: others are not built


def rounded(space: NeighbourSpace, genes: Genes, task: Task) -> tuple[Any, int]:
    """The network with these bits, and the bytes of its file."""
    model = space.build(genes)
    recalibrate(model, task.calibration)
    return model.eval(), file_bytes(model)


def all_bits(space: NeighbourSpace, genes: Genes) -> int:
    """Of all weights together."""
    weights = dict(space.elastic.model.named_parameters())
    return sum(bits * weights[f"{layer}.weight"].numel() for layer, bits in space.layer_bits(genes).items())


def searched(
    space: NeighbourSpace, uniform: Genes, most: int, task: Task, seed: int, until: float
) -> tuple[Genes, int]:
    """The bits that score best within so many bytes, and how many networks were scored."""
    near = all_bits(space, uniform)
    inside = Within(space, lambda genes: NEAR[0] <= all_bits(space, genes) / near <= NEAR[1], uniform)
    searcher, scored = Evolution(inside, seed), dict[Genes, float]()
    tried = 0
    while time.monotonic() < until and tried < 400:
        tried += 1
        genes = searcher.ask().genes
        model, size = rounded(space, genes, task)
        value = evaluate(model, task).value if size <= most else None
        searcher.tell(Found(genes=genes, epochs=int(value is not None), value=value))
        if value is not None:
            scored[genes] = value
    return max(scored, key=lambda genes: scored[genes], default=uniform), len(scored)


def compared(space: NeighbourSpace, bits: int, task: Task, small: Task, seed: int, minutes: float) -> dict[str, Any]:
    """A row: uniform bits against those that were found within as many bytes."""
    began = time.monotonic()
    uniform = (BITS.index(bits),) * len(space.layers)
    model, size = rounded(space, uniform, small)
    before = evaluate(model, task, "test")
    genes, scored = searched(space, uniform, size, small, seed, began + 60 * minutes)
    model, found = rounded(space, genes, small)
    after: Evaluation = evaluate(model, task, "test")
    drop = paired_drop(before, after)
    return {
        "uniform_bits": bits,
        "seed": seed,
        "uniform": {"bytes": size, "top1": round(100 * before.value, 2)},
        "mixed": {"bytes": found, "top1": round(100 * after.value, 2), "bits": space.layer_bits(genes)},
        "gained_points": round(0.0 - drop.points, 2),
        "interval": [round(0.0 - drop.high, 2), round(0.0 - drop.low, 2)],
        "n": len(before),
        "networks_scored": scored,
        "minutes": round((time.monotonic() - began) / 60, 2),
    }


def markdown(document: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Bits of each layer against uniform bits at equal bytes",
        "",
        f"{document['setting']} Points gained on test data with 95 % intervals of the same samples.",
        "",
        "| network | uniform bits | seed | bytes, uniform | mixed | top-1, uniform | mixed | gained | scored |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in document["networks"].items():
        for row in rows:
            low, high = row["interval"]
            uniform, mixed = row["uniform"], row["mixed"]
            lines.append(
                f"| {name} | {row['uniform_bits']} | {row['seed']} | {uniform['bytes']:,} | {mixed['bytes']:,} "
                f"| {uniform['top1']:.2f} | {mixed['top1']:.2f} | {row['gained_points']:.2f} ({low:.2f} to {high:.2f}) "
                f"| {row['networks_scored']} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="lenet5", help="with weights of the library for Fashion-MNIST")
    parser.add_argument("--minutes", type=float, default=5.0, help="of all searches together")
    parser.add_argument("--seed", type=int, default=0, help="of the searches")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON of results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task, progress = load_task("fashion-mnist", batch_size=BATCH, augment=False), Lines()
    space = neighbourhood(pretrained(asked.network, "fashion-mnist"), task, bits=BITS, cut=False)
    small = replace(
        task, validation=Limited(task.validation, BATCHES), calibration=Limited(task.calibration, CALIBRATION)
    )
    document: dict[str, Any] = json.loads(asked.target.read_text()) if asked.target.exists() else {"networks": {}}
    document["measured"] = with_run(document, run_conditions([asked.seed], 1))
    document["setting"] = (
        f"Trained networks of the library on Fashion-MNIST, weights rounded without training to {BITS} bits of a "
        f"layer; evolution sees {BATCH * BATCHES} validation samples; one thread."
    )
    rows = [row for row in document["networks"].get(asked.network, []) if row["seed"] != asked.seed]
    for bits in UNIFORM:
        rows.append(compared(space, bits, task, small, asked.seed, asked.minutes / len(UNIFORM)))
        document["networks"][asked.network] = rows
        write_text(asked.target, json.dumps(document, indent=1))
        write_table(asked.target, markdown(document))
        progress.say(f"{rows[-1]}")


if __name__ == "__main__":
    main()
