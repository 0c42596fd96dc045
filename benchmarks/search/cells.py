"""Searchers against random search on a table of trained cells, and zero-cost scores against the parameter count.

    python -m benchmarks.search.cells --minutes 40
    python -m benchmarks.search.cells --table

The space is a reduced one of NASNet: one block in the normal cell, one in the reduction cell, 330 networks. Each is
trained from scratch on a small part of Fashion-MNIST at 14x14 pixels, once for the whole length and once for a third of
it (for successive halving). Networks come in random order, so a table that is not complete is a random sample of the
space; what is not in it, searchers cannot get, at no cost. A run that was stopped goes on with the next network.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu, spearmanr
from torch import Tensor, nn

from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.paths import RESULTS
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.errors import GossamerError, MissingExtra
from gossamer.measure import evaluate
from gossamer.modules.cost import total_macs
from gossamer.nas import SEARCHERS, ZERO_COST, Found, Genes, HalvingSearch, Space, zero_cost_score
from gossamer.nas.cells import CellNetwork
from gossamer.train import Training, fit, recalibrate

TARGET = RESULTS / "search_cells.json"
NORMAL, REDUCTION = ("same", "sep3", "conv3", "max", "avg"), ("conv3", "sep3", "max")
FILTERS, SAMPLES, BATCH, EPOCHS, LR = 8, 1536, 64, 3, 0.1
SHARE, REPETITIONS = 0.1, 100
KNOWN = ("random", "evolution", "predictor", "halving", "tpe")


class SmallCells(Space):
    """A normal cell of one block and a reduction cell of one block on the same input."""

    @property
    def choices(self) -> tuple[int, ...]:
        return (2, len(NORMAL), 2, len(NORMAL), len(REDUCTION), len(REDUCTION))

    def canonical(self, genes: Genes) -> Genes:
        first, second = sorted((genes[:2], genes[2:4]))
        return (*first, *second, *sorted(genes[4:]))

    def build(self, genes: Genes) -> nn.Module:
        a, first, b, second, third, fourth = genes
        normal = ((a, NORMAL[first], b, NORMAL[second]),)
        reduction = ((0, REDUCTION[third], 0, REDUCTION[fourth]),)
        return CellNetwork(normal, reduction, repeats=1, filters=FILTERS, stages=2, channels=1, classes=10)

    def words(self, genes: Genes) -> str:
        a, first, b, second, third, fourth = genes
        return f"{a}:{NORMAL[first]}+{b}:{NORMAL[second]}; {REDUCTION[third]}+{REDUCTION[fourth]}"

    def all(self) -> list[Genes]:
        """Every network once, in a random order that is always the same."""
        found = sorted({self.canonical(genes) for genes in product(*(range(n) for n in self.choices))})
        Random(0).shuffle(found)
        return found


def small_task() -> Task:
    """The first samples of Fashion-MNIST's training and validation split, at half the side."""
    whole = load_task("fashion-mnist", augment=False)

    def part(loader: Any, samples: int) -> list[tuple[Tensor, Tensor]]:
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for x, y in loader:
            inputs.append(F.avg_pool2d(x, 2))
            targets.append(y)
            if sum(map(len, targets)) >= samples:
                break
        x, y = torch.cat(inputs)[:samples], torch.cat(targets)[:samples]
        return list(zip(torch.split(x, BATCH), torch.split(y, BATCH)))

    return Task.from_loaders(part(whole.train, SAMPLES), part(whole.validation, SAMPLES))


def trained(space: SmallCells, genes: Genes, task: Task, epochs: int) -> float:
    """Top-1 on validation after so many epochs, in percent."""
    torch.manual_seed(0)
    model = space.build(genes)
    fit(model, task, Training(epochs=epochs, lr=LR, keep="last", evaluate_every=epochs), Context())
    recalibrate(model, task.calibration)
    return 100 * evaluate(model, task).value


def measured(space: SmallCells, genes: Genes, task: Task) -> dict[str, Any]:
    """A row of the table."""
    start = time.monotonic()
    torch.manual_seed(0)
    model, scores = space.build(genes), dict[str, float | None]()
    for name in ZERO_COST:
        try:
            scores[name] = round(zero_cost_score(name, model, task), 4)
        except GossamerError:
            scores[name] = None
    return {
        "genes": genes,
        "top1": round(trained(space, genes, task, EPOCHS), 3),
        "top1_of_a_third": round(trained(space, genes, task, EPOCHS // 3), 3),
        "macs": total_macs(model, task.example_inputs),
        "scores": scores,
        "seconds": round(time.monotonic() - start, 2),
    }


def repetition(name: str, rows: dict[Genes, dict[str, Any]], seed: int) -> float:
    """Points between the best network of the table and the best that a searcher finds for a tenth of its cost."""
    space, left, best = SmallCells(), SHARE * len(rows), 0.0
    searcher = HalvingSearch(space, seed, lengths=2) if name == "halving" else SEARCHERS[name](space, seed)
    for _ in range(20 * len(rows)):
        if left <= 0:
            break
        proposal = searcher.ask()
        row = rows.get(proposal.genes)
        whole = proposal.share == 1
        value: float | None = None
        if row is not None:
            value = float(row["top1" if whole else "top1_of_a_third"])
            left -= proposal.share
            best = max(best, value if whole else 0.0)
        searcher.tell(Found(genes=proposal.genes, epochs=EPOCHS, value=None if value is None else value / 100))
    return max(float(row["top1"]) for row in rows.values()) - best


def compared(rows: dict[Genes, dict[str, Any]], say: Any) -> dict[str, Any]:
    """Regrets of all searchers, and rank correlations of the zero-cost scores."""
    regrets: dict[str, list[float]] = {}
    for name in KNOWN:
        try:
            regrets[name] = [repetition(name, rows, seed) for seed in range(REPETITIONS)]
        except MissingExtra:
            continue
        say(f"{name}: regret {np.mean(regrets[name]):.3f}")
    top1 = [row["top1"] for row in rows.values()]
    ranks = {}
    for name in (*ZERO_COST, "macs"):
        scores = [row["macs"] if name == "macs" else row["scores"][name] for row in rows.values()]
        both = [(score, y) for score, y in zip(scores, top1) if score is not None]
        ranks[name] = {"spearman": round(float(spearmanr(*zip(*both)).statistic), 3), "n": len(both)}
    return {
        "searchers": {
            name: {
                "mean_regret": round(float(np.mean(found)), 4),
                "median_regret": round(float(np.median(found)), 4),
                "p_value_better_than_random": float(mannwhitneyu(found, regrets["random"], alternative="less").pvalue),
            }
            for name, found in regrets.items()
        },
        "zero_cost": ranks,
        "networks": len(rows),
        "trainings": round(SHARE * len(rows), 1),
        "repetitions": REPETITIONS,
    }


def markdown(document: dict[str, Any]) -> str:
    """The tables."""
    found, setting = document["compared"], document["setting"]
    lines = [
        "# Searchers on a table of trained cells",
        "",
        f"{found['networks']} of {setting['of']} networks; {setting['words']}.",
        f"Each searcher has the cost of {found['trainings']} whole trainings, a tenth of the table. Regret: points of "
        f"top-1 between the best network of the table and the best that was found; {found['repetitions']} repetitions. "
        "p: one-sided Mann-Whitney test against random search.",
        "",
        "| searcher | mean regret | median | p |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {one['mean_regret']:.3f} | {one['median_regret']:.3f} "
            f"| {one['p_value_better_than_random']:.2g} |"
            for name, one in found["searchers"].items()
        ),
        "",
        "Rank correlation (Spearman) of scores of the untrained networks with their top-1:",
        "",
        "| score | correlation | networks |",
        "|---|---:|---:|",
        *(f"| {name} | {one['spearman']:.3f} | {one['n']} |" for name, one in found["zero_cost"].items()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="no further network is started after them")
    parser.add_argument("--table", action="store_true", help="compare and write the tables from what is there")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON of results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    space, progress, began = SmallCells(), Lines(), time.monotonic()
    document: dict[str, Any] = json.loads(asked.target.read_text()) if asked.target.exists() else {"rows": []}
    rows = {tuple(row["genes"]): row for row in document["rows"]}
    if not asked.table:
        run, task = run_conditions([0], 1), small_task()
        document["measured"] = with_run(document, run)
        document["setting"] = {
            "of": len(space.all()),
            "words": f"{SAMPLES} samples of Fashion-MNIST at 14x14 pixels for training and validation each, {EPOCHS} "
            f"epochs of batches of {BATCH}, {FILTERS} filters, learning rate {LR}, one seed, one thread",
        }
        for genes in space.all():
            if genes in rows or time.monotonic() - began > 60 * asked.minutes:
                continue
            rows[genes] = measured(space, genes, task)
            document["rows"] = list(rows.values())
            write_text(asked.target, json.dumps(document))
            progress.say(f"{len(rows)}: {space.words(genes)}: {rows[genes]['top1']:.1f} %")
    document["compared"] = compared(rows, progress.say)
    write_text(asked.target, json.dumps(document))
    write_table(asked.target, markdown(document))


if __name__ == "__main__":
    main()
