"""Orderings of the papers on sharing, measured anew on Fashion-MNIST; `reproduce.py` runs them with the rest.

Each claim is a function of (seeds, epochs) that gives rows; `verdict` says whether the ordering holds in their means.
    initialization   linear before density and random, after training the centers (Deep Compression, section 6.2)
    hessian          Hessian-weighted before plain k-means at fixed length (Choi et al. 2016, section 5)
    uniform          uniform steps before k-means at equal entropy (Choi et al. 2016, section 4)
    hashed           hashed before dense networks with as many parameters, at 1/8 and 1/64 (Chen et al. 2015, section 6)
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossamer.data import load_task
from gossamer.methods.distill.recover import Recover
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.methods.share.ecsq import Ecsq
from gossamer.methods.share.hashed import HashedNet
from gossamer.methods.share.kmeans import KMeans
from gossamer.models import pretrained
from gossamer.network import bake, constraints, held_value, weights_of
from gossamer.run import Run
from gossamer.task import Task
from gossamer.train import Training, fit

DATA = "fashion-mnist"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network. setting: what is equal between variants; value: its test accuracy in percent."""

    claim: str
    setting: str
    variant: str
    seed: int
    value: float
    note: str = ""


def accuracy(model: nn.Module, task: Task) -> float:
    """Percent, on test data."""
    return 100 * float(task.metric(bake(model).eval(), task.test).mean())


def order0(model: nn.Module) -> float:
    """Bits per weight of all weights: entropy of each layer's values, and 32 bits for each value but zero."""
    bits, count = 0.0, 0
    for name in weights_of(model):
        weight = held_value(model, name)
        values, used = weight.unique(return_counts=True)
        share = used / weight.numel()
        bits += float(-(used * share.log2()).sum()) + 32 * int((values != 0).sum())
        count += weight.numel()
    return bits / count


def pruned(task: Task, seed: int, epochs: int) -> nn.Module:
    """LeNet-300-100 with the densities of Deep Compression, retrained."""
    dense = pretrained("lenet300", DATA)
    run = Run(seed=seed, original=dense)
    model = Magnitude(sparsities={"fc1": 0.92, "fc2": 0.91, "fc3": 0.74})(dense, task, run)
    return Recover(epochs=epochs, lr=0.05)(model, task, run)


def initialization(seeds: Sequence[int], epochs: int) -> Iterator[Row]:
    """Start of k-means, at 2 and 3 bits, before and after the centers are trained."""
    task = load_task(DATA)
    for seed in seeds:
        model = pruned(task, seed, epochs)
        for bits in (2, 3):
            for start in ("linear", "density", "random", "optimal"):
                run = Run(seed=seed, original=pretrained("lenet300", DATA))
                shared = KMeans(bits=bits, start=start)(model, task, run)  # type: ignore[arg-type]
                trained = Recover(epochs=max(1, epochs // 2), lr=0.02)(shared, task, run)
                for when, network in (("as clustered", shared), ("centers trained", trained)):
                    yield Row(
                        claim="initialization",
                        setting=f"{bits} bits, {when}",
                        variant=start,
                        seed=seed,
                        value=accuracy(network, task),
                    )


def hessian(seeds: Sequence[int], epochs: int) -> Iterator[Row]:
    """What errors are weighed by, at 1 to 3 bits, without training."""
    task = load_task(DATA)
    for seed in seeds:
        for name, model in (("dense", pretrained("lenet300", DATA)), ("pruned", pruned(task, seed, epochs))):
            for bits in (1, 2, 3):
                for importance in ("none", "hessian", "fisher", "adam"):
                    method = KMeans(bits=bits, importance=importance)  # type: ignore[arg-type]
                    shared = method(model, task, Run(seed=seed))
                    setting = f"{name}, {bits} bits"
                    value = accuracy(shared, task)
                    yield Row(claim="hessian", setting=setting, variant=importance, seed=seed, value=value)


def uniform(seeds: Sequence[int], epochs: int) -> Iterator[Row]:
    """k-means and entropy-constrained codes of the same length after coding, without training."""
    task = load_task(DATA)
    for seed in seeds:
        for name, model in (("dense", pretrained("lenet300", DATA)), ("pruned", pruned(task, seed, epochs))):
            for bits in (2, 3, 4):
                plain = KMeans(bits=bits)(model, task, Run(seed=seed))
                weighted = KMeans(bits=bits, importance="hessian")(model, task, Run(seed=seed))
                budget = order0(plain)
                found = {"k-means": plain, "hessian k-means": weighted}
                for variant, iterations, importance in (
                    ("uniform, plain", 0, "none"),
                    ("uniform", 0, "hessian"),
                    ("ecsq", 20, "hessian"),
                ):
                    method = Ecsq(bits_per_weight=budget, iterations=iterations, importance=importance)  # type: ignore[arg-type]
                    found[variant] = method(model, task, Run(seed=seed))
                for variant, network in found.items():
                    yield Row(
                        claim="uniform",
                        setting=f"{name}, {bits} bits",
                        variant=variant,
                        seed=seed,
                        value=accuracy(network, task),
                        note=f"{order0(network):.3f} bits per weight",
                    )


def mlp(hidden: int) -> nn.Module:
    """784-hidden-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def hashed(seeds: Sequence[int], epochs: int) -> Iterator[Row]:
    """784-1000-10 with 1/8 and 1/64 of its weights stored, and dense 784-h-10 of as many parameters, from scratch."""
    task = load_task(DATA)
    for seed in seeds:
        for part in (8, 64):
            torch.manual_seed(seed)
            virtual = HashedNet(share=1 / part, fresh=True)(mlp(1000), task, Run(seed=seed))
            stored = sum(p.numel() for [c] in constraints(virtual).values() for p in c.parameters()) + 1010
            small = mlp(round((stored - 10) / 795))
            for variant, network in (("hashed", virtual), ("dense", small)):
                trained = fit(network, task, Training(epochs=epochs, lr=0.1), Run(seed=seed)).model
                count = stored if variant == "hashed" else sum(p.numel() for p in trained.parameters())
                yield Row(
                    claim="hashed",
                    setting=f"1/{part}",
                    variant=variant,
                    seed=seed,
                    value=accuracy(trained, task),
                    note=f"{count:,} parameters",
                )


CLAIMS: dict[str, Callable[[Sequence[int], int], Iterator[Row]]] = {
    "initialization": initialization,
    "hessian": hessian,
    "uniform": uniform,
    "hashed": hashed,
}
# claim: (settings that it is about, by how they end; the variant that wins; those that lose; points of tolerance)
ORDERS: dict[str, tuple[str, str, tuple[str, ...], float]] = {
    "initialization": ("centers trained", "linear", ("density", "random"), 0.2),
    "hessian": ("bits", "hessian", ("none",), 0.2),
    "uniform": ("bits", "uniform", ("k-means",), 0.2),
    "hashed": ("", "hashed", ("dense",), 0.2),
}


def verdict(claim: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean advantage of the winner over each loser in points, over all settings, and whether all are >= -tolerance."""
    ending, winner, losers, tolerance = ORDERS[claim]
    by_setting: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.claim == claim and row.setting.endswith(ending):
            by_setting.setdefault(row.setting, {}).setdefault(row.variant, []).append(row.value)
    means = {s: {v: statistics.mean(x) for v, x in variants.items()} for s, variants in by_setting.items()}
    ahead = {loser: statistics.mean(m[winner] - m[loser] for m in means.values()) for loser in losers}
    return {"claim": claim, "holds": all(a >= -tolerance for a in ahead.values()), "ahead": ahead, "means": means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=list(CLAIMS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reproduce-sharing.json")
    options = parser.parse_args()
    document = json.loads(options.out.read_text()) if options.out.exists() else {"rows": [], "verdicts": []}
    for claim in options.claims:
        rows = list(CLAIMS[claim](options.seeds, options.epochs))
        said = {**verdict(claim, rows), "seeds": options.seeds, "epochs": options.epochs}
        document["rows"] = [r for r in document["rows"] if r["claim"] != claim] + [asdict(row) for row in rows]
        document["verdicts"] = [v for v in document["verdicts"] if v["claim"] != claim] + [said]
        options.out.write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
