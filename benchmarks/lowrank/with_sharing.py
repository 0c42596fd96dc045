"""Low rank, sharing, and both, each coded into a file: size against accuracy, curves of LeNet-5.

    python -m benchmarks.lowrank.with_sharing --seeds 0 1 2
    python -m benchmarks.lowrank.with_sharing --table

Every point is the main job with a recipe, as many epochs for all: low rank alone (its factors in half precision, the
smaller of what a user can have without sharing), shared values alone, and low rank then shared values. Sizes are whole
`.gsr` files by getsize; accuracies are of the networks loaded from them. Finished points are kept in the work folder.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import gossamer
from benchmarks.common import paths
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.size.compare import Bench, top1
from gossamer.compact.writing import save
from gossamer.core.folder import lock_folder
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task
from gossamer.jobs.recipe import Recipe
from gossamer.methods._base import Method
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.share.kmeans import KMeans
from gossamer.modules.cost import dense_bytes
from gossamer.report.page import shell
from gossamer.report.plot import (
    Frame,
    axes,
    curve,
    figure,
    line,
    mark,
)

SHARES, BITS = (0.4, 0.2, 0.1, 0.05, 0.025), (5, 4, 3, 2, 1)
CURVES = ("low rank alone", "sharing alone", "low rank, then sharing")
SPLITS = ("validation", "test")
LOSSES = (0.0, 0.25, 0.5, 1.0)  # points below the dense network, at which files are compared


def low_rank(share: float) -> tuple[Method, ...]:
    """Linear layers and the wide convolution at a share of their weights."""
    return SVD(layers=("fc*",), params=share, data="inputs"), SpatialDecomposition(
        layers=("conv2",), params=max(share, 0.2)
    )


def points(epochs: int) -> list[tuple[str, Recipe]]:
    """(curve, recipe), for all points; 2 x epochs of training each."""
    half, whole = RecoveryDistillation(epochs=epochs, lr=0.01), RecoveryDistillation(epochs=2 * epochs, lr=0.01)
    steps: list[tuple[str, str, tuple[Method, ...]]] = []
    steps += [(CURVES[0], f"rank-{share:g}", (*low_rank(share), whole)) for share in SHARES]
    steps += [(CURVES[1], f"bits-{bits}", (KMeans(bits=bits, codebook="layer"), whole)) for bits in BITS]
    steps += [
        (CURVES[2], f"rank-{share:g}-bits-{bits}", (*low_rank(share), half, KMeans(bits=bits, codebook="layer"), half))
        for share in SHARES[:4]
        for bits in BITS[:3]
    ]
    return [(kind, Recipe(name=name, steps=made, int8=False)) for kind, name, made in steps]


def measure(recipe: Recipe, model: torch.nn.Module, task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """One point, from its file where it is there."""
    facts = folder / f"{recipe.name}.json"
    if not facts.exists():
        out = folder / recipe.name
        made = gossamer.compress(
            model,
            task,
            recipe=replace(recipe, seed=seed),
            out=out,
            context=gossamer.Context(seed=seed, progress=Lines()),
        )
        file = out / "model.gsr"
        if not any(isinstance(step, KMeans) for step in recipe.steps):
            file = save(made.model.half().float(), out / "half.gsr", task.example_inputs)
        loaded = gossamer.load(file)
        scores = {split: top1(loaded, task, split) for split in SPLITS}
        write_text(facts, json.dumps({"bytes": file.stat().st_size, **scores}, indent=1))
    return dict(json.loads(facts.read_text()))


def execute(options: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    base: dict[str, Any] = {}
    size = 0
    with lock_folder(options.work):
        for seed in options.seeds:
            bench = Bench(options, "lenet5", seed)
            task, model = bench.task(), bench.dense()
            base[str(seed)] = {split: top1(model, task, split) for split in SPLITS}
            size = dense_bytes(model)
            for kind, recipe in points(options.epochs):
                row = rows.setdefault(recipe.name, {"curve": kind, "runs": {}})
                row["runs"][str(seed)] = measure(recipe, model, task, seed, bench.folder)
    how = {"epochs": 2 * options.epochs, "seeds": options.seeds, "dense bytes": size} | environment()
    return {"format": 1, "how": how, "dense": base, "points": rows}


def front(found: dict[str, Any], kind: str) -> list[tuple[float, float, str]]:
    """(bytes, test top-1, name), means over seeds, of the points that no smaller file of the same curve beats."""
    rows = []
    for name, row in found["points"].items():
        if row["curve"] == kind:
            runs = row["runs"].values()
            rows.append((fmean(run["bytes"] for run in runs), fmean(run["test"] for run in runs), name))
    best, kept = -1.0, []
    for size, score, name in sorted(rows):
        if score > best:
            best = score
            kept.append((size, score, name))
    return kept


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(found: dict[str, Any]) -> str:
    """The points, and the smallest files at equal accuracy, in Markdown."""
    how, base = found["how"], fmean(run["test"] for run in found["dense"].values())
    lines = [
        "# Low rank, sharing, and both",
        "",
        f"LeNet-5 on Fashion-MNIST, {how['dense bytes']:,} bytes in float32, test "
        f"{spread([run['test'] for run in found['dense'].values()])} %, seeds {', '.join(map(str, how['seeds']))}, "
        f"{how['epochs']} epochs for every point. Whole files. Made by `python -m benchmarks.lowrank.with_sharing`; "
        "the curves are drawn in `chain.html`.",
        "",
        f"| drop on test at most | {' | '.join(CURVES)} |",
        f"|---|{'---:|' * len(CURVES)}",
    ]
    for loss in LOSSES:
        cells = []
        for kind in CURVES:
            fine = [point for point in front(found, kind) if point[1] >= base - loss]
            cells.append(f"{min(fine)[0]:,.0f} ({min(fine)[2]})" if fine else "none")
        lines.append(f"| {loss:g} points | {' | '.join(cells)} |")
    lines += ["", "| curve | point | bytes | times smaller | test top-1 % |", "|---|---|---:|---:|---:|"]
    for name, row in found["points"].items():
        size = fmean(run["bytes"] for run in row["runs"].values())
        scores = spread([run["test"] for run in row["runs"].values()])
        lines.append(f"| {row['curve']} | {name} | {size:,.0f} | {how['dense bytes'] / size:.1f} | {scores} |")
    return "\n".join([*lines, ""])


def page(found: dict[str, Any]) -> str:
    """The curves."""
    fronts = {kind: front(found, kind) for kind in CURVES}
    every = [point for kind in fronts.values() for point in kind]
    base = fmean(run["test"] for run in found["dense"].values())
    floor = base - 4
    sizes = [size for size, score, _ in every if score >= floor]
    frame = Frame(min(sizes) / 1.2, max(sizes) * 1.2, floor, max(base, *(p[1] for p in every)) + 0.2, log_x=True)
    body = [axes(frame, "bytes of the file", "test top-1, %")]
    body.append(line(frame, (frame.x_low, base), (frame.x_high, base), "budget"))
    for rank, (kind, rows) in enumerate(fronts.items()):
        shown = [(size, score) for size, score, _ in rows if score >= floor]
        tip = [kind, *(f"{name}: {size:,.0f} bytes, {score:.2f} %" for size, score, name in rows)]
        body.append(curve(frame, shown, f"curve named-{rank}", tip))
        body += [mark(frame, at, f"named-{rank}", [kind, f"{at[0]:,.0f} bytes", f"{at[1]:.2f} %"]) for at in shown]
    key = "".join(f'<span><i class="named-{rank}"></i>{kind}</span>' for rank, kind in enumerate(fronts))
    title = "Low rank, sharing, and both"
    return shell(
        f"gossamer: {title}",
        f'<header><p class="brand">gossamer<span>benchmark</span></p><h1>{title}</h1><p class="lead">LeNet-5 on '
        f"Fashion-MNIST, dense {base:.2f} % (dashed); points that no smaller file of the same curve beats.</p></header>"
        f'<main>{figure("".join(body), frame, title)}<p class="key">{key}</p></main>',
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2, help="half of every point's training")
    parser.add_argument("--work", type=Path, default=Path("out/chain"))
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "chain.json")
    parser.add_argument("--table", action="store_true", help="only write the table and the page anew")
    options = parser.parse_args()
    if not options.table:
        write_text(options.out, json.dumps(execute(options), indent=1))
    found = json.loads(options.out.read_text())
    write_table(options.out, table(found))
    write_text(options.out.with_suffix(".html"), page(found))
    print(table(found))


if __name__ == "__main__":
    main()
