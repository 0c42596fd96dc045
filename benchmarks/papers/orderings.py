"""Orderings that papers report, measured again: who is before whom, on several seeds, with the spread.

    python -m benchmarks.papers.orderings                    # all claims that are not finished
    python -m benchmarks.papers.orderings obs-obd-magnitude --seeds 5
    python -m benchmarks.papers.orderings --table            # only the Markdown again, from the results

A claim is a function of a seed that gives a number for every variant at every setting. Results are written after every
seed; what is there already is not computed again. To add one: write such a function and list it in CLAIMS.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import paths
from benchmarks.common.tables import write_table
from benchmarks.papers._sharing import BETTER, hashed, importance, initialization, uniform
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.errors import Diverged
from gossamer.methods import catalogue
from gossamer.models import build_for
from gossamer.train import Training, fit

RESULTS = paths.RESULTS / "reproduce.json"
# Setting -> variant -> number.
Numbers = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """order: variants from the best to the worst, as the paper has them. unit: of the numbers. higher: whether more is
    better. tolerance: by how much the mean of a better one may be behind and still be called equal."""

    source: str
    says: str
    conditions: str
    order: tuple[str, ...]
    unit: str
    measure: Callable[[int], Numbers]
    higher: bool = True
    tolerance: float = 0.0
    seeds: int = 3


class Mlp(nn.Module):
    """Two layers on the means of 4x4 pixels: 49 inputs from a 28x28 image."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(49, hidden), nn.Linear(hidden, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NF = F.avg_pool2d(x_NCHW, 4).flatten(1)
        return self.fc2(torch.relu(self.fc1(x_NF)))  # type: ignore[no-any-return]


@cache
def data(name: str) -> Task:
    """A built-in data set, loaded once."""
    return load_task(name)


def top1(model: nn.Module, task: Task) -> float:
    """Percent on the test split."""
    return 100 * task.metric.score(model.eval(), task.test)


def apply(method: str, model: nn.Module, task: Task, seed: int, **options: Any) -> nn.Module:
    """A method by its name in a recipe."""
    return catalogue()[method](**options)(model, task, Context(seed=seed, accelerator="cpu")).model


def dense(model: nn.Module, task: Task, seed: int, **options: Any) -> nn.Module:
    """Trained from scratch."""
    return fit(model, task, Training(keep="last", **options), Context(seed=seed, accelerator="cpu")).model


def digits_mlp(seed: int, hidden: int, epochs: int) -> nn.Module:
    """A small network on the digits; untrained with no epochs."""
    torch.manual_seed(seed)
    model, task = Mlp(hidden), data("digits")
    return dense(model, task, seed, epochs=epochs, lr=0.1) if epochs else model


# Claims


def second_order(seed: int) -> Numbers:
    """Optimal Brain Surgeon, Optimal Brain Damage and magnitude, before and after a little retraining."""
    model, task = digits_mlp(seed, hidden=20, epochs=30), data("digits")
    found: Numbers = {"dense": {"dense": top1(model, task)}}
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9):
        options: dict[str, Any] = {"sparsity": sparsity, "rounds": 4, "batches": 4}
        pruned = {
            "OBS": apply("prune.obs", model, task, seed, **options),
            "OBD": apply("prune.obd", model, task, seed, **options),
            "magnitude": apply("prune.magnitude", model, task, seed, sparsity=sparsity, scope="global"),
        }
        found[f"sparsity {sparsity}"] = {name: top1(net, task) for name, net in pruned.items()}
        for name, net in pruned.items():
            after = apply("distill.recover", net, task, seed, alpha=1.0, epochs=3, lr=0.02)
            found.setdefault(f"sparsity {sparsity}, 3 epochs more", {})[name] = top1(after, task)
    return found


def layer_wise(seed: int) -> Numbers:
    """The layers' outputs kept by least squares, against magnitude, in one shot."""
    task = data("fashion-mnist")
    torch.manual_seed(seed)
    model = dense(build_for("lenet300", task), task, seed, epochs=6, lr=0.1)
    found: Numbers = {"dense": {"dense": top1(model, task)}}
    for sparsity in (0.5, 0.7, 0.8, 0.9):
        solved = {
            "auto": apply("prune.layerwise", model, task, seed, sparsity=sparsity),
            "one shot": apply("prune.layerwise", model, task, seed, sparsity=sparsity, solver="one_shot"),
            "magnitude": apply("prune.magnitude", model, task, seed, sparsity=sparsity, scope="layer"),
        }
        found[f"sparsity {sparsity}"] = {name: top1(net, task) for name, net in solved.items()}
    return found


def rounding(seed: int) -> Numbers:
    """Training from scratch in 16-bit fixed point."""
    task = data("digits")
    plain = dense(digits_mlp(seed, 64, 0), task, seed, epochs=20, lr=0.02, weight_decay=0.0)
    found: Numbers = {}
    for bits in (8, 10, 12):
        options = {"integer_bits": 16 - bits, "fraction_bits": bits, "epochs": 20, "lr": 0.02, "weight_decay": 0.0}
        numbers = {kind: fixed_top1(seed, rounding=kind, **options) for kind in ("stochastic", "nearest")}
        found[f"<{16 - bits},{bits}>"] = {"float": top1(plain, task), **numbers}
    return found


def fixed_top1(seed: int, **options: Any) -> float:
    """Percent after a training in fixed point from scratch; one that diverges counts as a guess."""
    model, task = digits_mlp(seed, 64, 0), data("digits")
    try:
        return top1(apply("quantize.fixed_point", model, task, seed, **options), task)
    except Diverged:
        return 10.0


CLAIMS: dict[str, Claim] = {
    "obs-obd-magnitude": Claim(
        source="Hassibi & Stork 1993, NIPS 5; LeCun et al. 1990, NIPS 2",
        says="Optimal Brain Surgeon before Optimal Brain Damage before magnitude",
        conditions="digits, MLP 49-20-10 (1,180 weights); second derivatives four times on the way, from 512 samples",
        order=("OBS", "OBD", "magnitude"),
        unit="test top-1, %",
        measure=second_order,
        tolerance=0.5,
        seeds=5,
    ),
    "layerwise-magnitude": Claim(
        source="Frantar et al. 2022, arXiv:2208.11580; Frantar & Alistarh 2023, arXiv:2301.00774",
        says="layer-wise least squares before magnitude, without retraining",
        conditions="Fashion-MNIST, LeNet-300-100, equal sparsity in every layer, no retraining",
        order=("auto", "one shot", "magnitude"),
        unit="test top-1, %",
        measure=layer_wise,
        tolerance=0.2,
    ),
    "stochastic-nearest": Claim(
        source="Gupta et al. 2015, arXiv:1502.02551, section 4",
        says="16-bit fixed point trains like float with stochastic rounding; to nearest it fails with few bits",
        conditions="digits, MLP 49-64-10 from scratch, 20 epochs; <bits before, after the point>; diverged: 10 %",
        order=("float", "stochastic", "nearest"),
        unit="test top-1, %",
        measure=rounding,
        tolerance=1.0,
    ),
    "kmeans-start": Claim(
        source="Han et al. 2015, arXiv:1510.00149, section 6.2",
        says="linear initialization of k-means before density and random; the exact optimum is ours",
        conditions="Fashion-MNIST, LeNet-300-100 at 8 % density, 2^bits values per layer; centers trained for an epoch",
        order=("linear", BETTER),
        unit="test top-1, %",
        measure=initialization,
        tolerance=0.2,
    ),
    "kmeans-importance": Claim(
        source="Choi et al. 2016, arXiv:1612.01543, section 5",
        says="k-means weighted by the Hessian's diagonal before plain k-means, at fixed length",
        conditions="Fashion-MNIST, LeNet-300-100 at 8 % density and LeNet-5, 2^bits values in a codebook, no training",
        order=("hessian", "none"),
        unit="test top-1, %",
        measure=importance,
        tolerance=0.2,
    ),
    "uniform-kmeans": Claim(
        source="Choi et al. 2016, arXiv:1612.01543, sections 4 and 5",
        says="entropy-constrained codes before uniform steps before k-means, at equal length after entropy coding",
        conditions="Fashion-MNIST, LeNet-300-100 at 8 % density and LeNet-5, one codebook, as many bits as k-means",
        order=("ecsq", "uniform", "k-means"),
        unit="test top-1, %",
        measure=uniform,
        tolerance=0.2,
    ),
    "hashed-dense": Claim(
        source="Chen et al. 2015, arXiv:1504.04788, section 6",
        says="hashed before dense networks with as many parameters",
        conditions="Fashion-MNIST, 784-1000-10 with a part of its weights stored, 784-h-10; 2 epochs from scratch",
        order=("hashed", "dense"),
        unit="test top-1, %",
        measure=hashed,
        tolerance=0.2,
    ),
}


# Running and telling


def run(names: Sequence[str], seeds: int | None) -> None:
    """Measure what is missing, and write the results after every seed."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        claim = CLAIMS[name]
        found = results.setdefault(name, {})
        for seed in map(str, range(seeds or claim.seeds)):
            if seed in found:
                continue
            began = time.perf_counter()
            numbers = claim.measure(int(seed))
            found[seed] = {
                "numbers": numbers,
                "seconds": round(time.perf_counter() - began, 1),
                "torch": metadata.version("torch"),
                "threads": torch.get_num_threads(),
            }
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(f"{name}, seed {seed}: {json.dumps(numbers)}", flush=True)
    table(results)


def holds(claim: Claim, means: Mapping[str, float]) -> bool:
    """Whether every variant is at least as good as the next one in the order, up to the tolerance."""
    sign = 1 if claim.higher else -1
    present = [sign * means[variant] for variant in claim.order if variant in means]
    return all(better >= worse - claim.tolerance for better, worse in pairwise(present))


def table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """The Markdown beside the JSON."""
    lines = [
        "# Orderings of the papers, measured again",
        "",
        "`python -m benchmarks.papers.orderings`; mean ± standard deviation.",
    ]
    for name, found in results.items():
        claim = CLAIMS[name]
        lines += ["", f"## {name}", "", f"{claim.says} ({claim.source}).", ""]
        lines += [f"{claim.conditions}; {len(found)} seeds; {claim.unit}; tolerance {claim.tolerance:g}.", ""]
        settings = {setting: None for seed in found.values() for setting in seed["numbers"]}
        lines += [f"| | {' | '.join(claim.order)} | in this order |", "|---" * (len(claim.order) + 2) + "|"]
        for setting in settings:
            values = {
                v: [seed["numbers"][setting][v] for seed in found.values() if v in seed["numbers"].get(setting, {})]
                for v in claim.order
            }
            if not any(values.values()):
                only = [number for seed in found.values() for number in seed["numbers"][setting].values()]
                lines.append(f"| {setting} | {shown(only)} {'| ' * len(claim.order)}|")
                continue
            verdict = holds(claim, {v: statistics.mean(numbers) for v, numbers in values.items() if numbers})
            cells = " | ".join(shown(numbers) for numbers in values.values())
            lines.append(f"| {setting} | {cells} | {'yes' if verdict else '**no**'} |")
    write_table(RESULTS, "\n".join(lines) + "\n")


def shown(numbers: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(CLAIMS)}; all if none")
    parser.add_argument("--seeds", type=int, help="how many; each claim has its own number")
    parser.add_argument("--table", action="store_true", help="only write the Markdown again")
    options = parser.parse_args()
    if wrong := [name for name in options.claims if name not in CLAIMS]:
        parser.error(f"unknown claims {wrong}; known: {', '.join(CLAIMS)}")
    if options.table:
        table(json.loads(RESULTS.read_text()))
    else:
        run(options.claims or list(CLAIMS), options.seeds)


if __name__ == "__main__":
    main()
