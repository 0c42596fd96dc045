"""[19] on CIFAR-10."""

from typing import Any

from benchmarks.papers import _cifar
from benchmarks.papers._mnist import error, ratio
from benchmarks.papers._row import Number, Numbers, Order, Row

PRUNED: tuple[Any, ...] = (
    ("prune.magnitude", {"sparsity": 0.8, "scope": "global"}),
    ("distill.recover", {"epochs": 60, "lr": 0.01, "alpha": 1.0}),
)
# Printed: accuracy and ratio.
WAYS: dict[str, tuple[str, dict[str, Any], float]] = {
    "uniform": ("share.ecsq", {"bits_per_weight": 1.0, "iterations": 0}, 22.17),
    "ECSQ": ("share.ecsq", {"bits_per_weight": 1.0}, 21.01),
    "k-means by the Hessian": ("share.kmeans", {"bits": 4, "importance": "hessian"}, 20.51),
    "k-means": ("share.kmeans", {"bits": 4}, 18.25),
}


def measure(seed: int) -> Numbers:
    """Error and ratio of the whole file of each way."""
    task, dense = _cifar.data(seed), _cifar.network("resnet32a", seed)
    sparse, found = _cifar.steps(dense, seed, *PRUNED), {"error of the dense network": error(dense, task)}
    for name, (method, options, _) in WAYS.items():
        model = _cifar.steps(
            sparse, seed, (method, options), ("distill.recover", {"epochs": 10, "lr": 0.01, "alpha": 1.0})
        )
        found |= {f"error, {name}": error(model, task), f"ratio, {name}": ratio(model, dense, task)}
    return found


ROW = Row(
    title="ResNet-32 pruned, quantized in four ways under one codebook, coded",
    paper="Choi, El-Khamy, Lee 2017, arXiv:1612.01543",
    setting="CIFAR-10, ResNet-32 of 464,154 parameters, 7.42 % error, 20 % of its weights",
    ours="the same; 200 epochs before, 60 after pruning and 10 for the centers; the ratio is of the whole file",
    minutes=200,
    measure=measure,
    needs="CIFAR-10, about 2 GPU hours a seed",
    numbers=tuple(
        Number(name=f"ratio, {name}", paper=printed, where="table 1", tolerance=0.5, side="at least", unit="x")
        for name, (*_, printed) in WAYS.items()
    ),
    orders=(Order(says="errors: none is behind k-means", names=("error, uniform", "error, k-means"), where="table 1"),),
)
