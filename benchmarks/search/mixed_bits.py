"""Bits for each layer, found by search, against the same bits for all layers, at equal bytes of the compact file.

    python -m benchmarks.search.mixed_bits --network resnet14 --trials 25

Weights of a trained network are rounded without training (`quantize.uniform`, batch norms estimated again). First each
layer alone is rounded to each number of bits: what that costs in loss and saves in bytes gives a first allocation
(`gossamer.nas.allocation`). Evolution starts from it and from the uniform network, among networks whose bytes, added up
over layers, are no more than those of the uniform network. It goes by the loss of the first samples of the validation
split; the best few whose file is no larger, and the uniform network, are compared on the whole split. Test data are
looked at once, for the uniform network and for the one that was chosen.

Fewest bits for all layers are not compared: nothing could be lowered to make room.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

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
from gossamer.nas.allocation import allocated
from gossamer.nas.neighbourhood import Within
from gossamer.train import recalibrate

TARGET = RESULTS / "mixed_bits.json"
BITS, UNIFORM = (8, 7, 6, 5, 4, 3, 2), (3, 4)
BATCH, BATCHES, CALIBRATION = 128, 8, 2  # samples of a batch; batches that the search sees, and for batch norms
ALONE = 4  # batches that layers alone see
LEAST = 0.93  # of the bytes that are allowed, by the sum over layers: what is far below is not built
FINALISTS = 4  # that are scored on the whole validation split, besides the uniform network
REPEATS = 20  # proposals of what was tried before, after which a search ends


@dataclass(frozen=True)
class Layers:
    """Bytes of every layer, and the rise of the loss where it alone has fewer bits than the most, by layer and bits."""

    bytes: Sequence[Sequence[float]]
    losses: Sequence[Sequence[float]]

    def predicted(self, genes: Genes) -> float:
        """Bytes of all layers."""
        return sum(row[number] for row, number in zip(self.bytes, genes))


def rounded(space: NeighbourSpace, genes: Genes, task: Task) -> nn.Module:
    """The network with these bits."""
    model = space.build(genes)
    recalibrate(model, task.calibration)
    return model.eval()


def loss(model: nn.Module, task: Task, batches: int) -> float:
    """The mean over the first validation batches: unlike the metric, it tells networks apart on few samples."""
    with torch.inference_mode():
        return fmean(float(task.loss(model, batch)) for batch in islice(task.validation, batches))


def layer_bytes(space: NeighbourSpace, number: int) -> list[int]:
    """Of the compact file of every layer by itself, all with this number of their choice of bits."""
    model = space.build((number,) * len(space.layers))
    return [file_bytes(nn.Sequential(model.get_submodule(name))) for name in space.layers]


def sensitivities(space: NeighbourSpace, task: Task) -> Layers:
    """Of every layer alone."""
    most = (0,) * len(space.layers)
    before = loss(rounded(space, most, task), task, ALONE)
    sizes = list(zip(*(layer_bytes(space, number) for number in range(len(BITS)))))
    losses = []
    for layer in range(len(most)):
        alone = ((*most[:layer], number, *most[layer + 1 :]) for number in range(1, len(BITS)))
        losses.append([0.0, *(loss(rounded(space, genes, task), task, ALONE) - before for genes in alone)])
    return Layers(sizes, losses)


def searched(
    space: NeighbourSpace, layers: Layers, uniform: Genes, task: Task, seed: int, trials: int
) -> dict[Genes, float]:
    """The losses of networks whose layers have no more bytes together than those of the uniform one."""
    most = layers.predicted(uniform)
    inside = Within(space, lambda genes: LEAST * most <= layers.predicted(genes) <= most, uniform)
    first = allocated(layers.losses, layers.bytes, most)
    searcher, again = Evolution(inside, seed, start=[uniform, *([first] if first else [])]), 0
    scored: dict[Genes, float] = {}
    while len(scored) < trials and again < REPEATS:
        genes = searcher.ask().genes
        if genes in scored:
            again += 1
            continue
        scored[genes] = loss(rounded(space, genes, task), task, BATCHES)
        searcher.tell(Found(genes=genes, epochs=1, value=-scored[genes]))
    return scored


@dataclass(frozen=True)
class Uniform:
    """The network with the same bits everywhere."""

    genes: Genes
    bytes: int
    test: Evaluation

    @classmethod
    def of(cls, space: NeighbourSpace, bits: int, task: Task) -> "Uniform":
        """Measured."""
        genes = (BITS.index(bits),) * len(space.layers)
        model = rounded(space, genes, task)
        return cls(genes, file_bytes(model), evaluate(model, task, "test"))


def compared(
    space: NeighbourSpace, layers: Layers, uniform: Uniform, task: Task, seed: int, trials: int
) -> dict[str, Any]:
    """A row: uniform bits against those that were found within as many bytes."""
    began = time.monotonic()
    scored = searched(space, layers, uniform.genes, task, seed, trials)
    finalists: dict[Genes, tuple[float, int]] = {}
    for genes in (uniform.genes, *sorted(scored, key=lambda genes: scored[genes])):
        model = rounded(space, genes, task)
        if genes not in finalists and (size := file_bytes(model)) <= uniform.bytes:
            finalists[genes] = evaluate(model, task).value, size
        if len(finalists) > FINALISTS:
            break
    genes = max(finalists, key=lambda one: finalists[one][0])
    after = evaluate(rounded(space, genes, task), task, "test")
    drop = paired_drop(uniform.test, after)
    return {
        "uniform_bits": BITS[uniform.genes[0]],
        "seed": seed,
        "uniform": {"bytes": uniform.bytes, "top1": round(100 * uniform.test.value, 2)},
        "mixed": {"bytes": finalists[genes][1], "top1": round(100 * after.value, 2), "bits": space.layer_bits(genes)},
        "gained_points": round(0.0 - drop.points, 2),
        "interval": [round(0.0 - drop.high, 2), round(0.0 - drop.low, 2)],
        "n": len(after),
        "networks_scored": len(scored),
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
    parser.add_argument("--network", default="resnet14", help="with weights of the library for Fashion-MNIST")
    parser.add_argument("--trials", type=int, default=25, help="networks of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the searches")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON of results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task, progress = load_task("fashion-mnist", batch_size=BATCH, augment=False), Lines()
    space = neighbourhood(pretrained(asked.network, "fashion-mnist"), task, bits=BITS, cut=False)
    task = replace(task, calibration=Limited(task.calibration, CALIBRATION))
    layers = sensitivities(space, task)
    progress.say(f"{asked.network}: layers alone are known")
    rows: list[dict[str, Any]] = []
    for bits in UNIFORM:
        uniform = Uniform.of(space, bits, task)
        for seed in asked.seeds:
            rows.append(compared(space, layers, uniform, task, seed, asked.trials))
            progress.say(f"{asked.network}: {rows[-1]}")
            keep(asked.target, asked.network, rows, asked.seeds)


def keep(target: Path, network: str, rows: list[dict[str, Any]], seeds: list[int]) -> None:
    """Write the rows of a network beside those of others, which may be measured at the same time."""
    document: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {"networks": {}}
    document["measured"] = with_run(document, run_conditions(seeds, 1))
    document["setting"] = (
        f"Trained networks of the library on Fashion-MNIST, weights rounded without training to {BITS} bits of a "
        f"layer; evolution sees {BATCH * BATCHES} validation samples; one thread."
    )
    document["networks"][network] = rows
    write_text(target, json.dumps(document, indent=1))
    write_table(target, markdown(document))


if __name__ == "__main__":
    main()
