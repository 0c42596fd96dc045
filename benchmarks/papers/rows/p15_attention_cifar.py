"""Attention transfer on CIFAR-10, which the survey cites as [15]."""

from benchmarks.papers import _cifar
from benchmarks.papers._mnist import apply, error, seeded
from benchmarks.papers._row import Number, Numbers, Order, Row
from gossamer.models import build_for

HOW = {"epochs": 200, "lr": 0.1, "weight_decay": 5e-4}


def measure(seed: int) -> Numbers:
    """Errors of teacher and students; all have 200 epochs."""
    task, teacher = _cifar.data(seed), _cifar.network("wrn40_1", seed)
    student = seeded(lambda: build_for("wrn16_1", task), seed + 100)
    found = {"error, teacher": error(teacher, task)}
    found["error, alone"] = error(apply("distill.recover", student, seed, task, **HOW, alpha=1.0), task)
    for name, method, alpha in (("attention", "distill.attention", 1.0), ("soft targets", "distill.kd", 0.1)):
        taught = apply(method, student, seed, task, **HOW, alpha=alpha, teacher=teacher)
        found[f"error, {name}"] = error(taught, task)
    return found


ROW = Row(
    title="Attention transfer from WRN-40-1 to WRN-16-1",
    paper="Zagoruyko, Komodakis 2017, arXiv:1612.03928",
    setting="CIFAR-10, 200 epochs",
    ours="the same networks and epochs, one cosine schedule for all",
    minutes=1500,
    measure=measure,
    needs="CIFAR-10, about 4 GPU hours a seed",
    numbers=(
        Number(name="error, teacher", paper=6.58, where="table 1", tolerance=0.3),
        Number(name="error, alone", paper=8.77, where="table 1", tolerance=0.3),
        Number(name="error, attention", paper=8.25, where="table 1", tolerance=0.3),
        Number(name="error, soft targets", paper=8.39, where="table 1", tolerance=0.3),
    ),
    orders=(
        Order(
            says="attention before soft targets, these before alone",
            names=("error, attention", "error, soft targets", "error, alone"),
            where="table 1",
        ),
    ),
)
