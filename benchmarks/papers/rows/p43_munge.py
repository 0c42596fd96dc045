"""[43] with an ensemble of networks on 4,000 images."""

from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers._mnist import apply, error, mlp, seeded, task
from benchmarks.papers._row import Numbers, Order, Row
from gossamer.core.task import Task
from gossamer.data import load_task

HOW: dict[str, Any] = {"epochs": 40, "lr": 0.05, "weight_decay": 1e-4}
MEMBERS = 5


class Ensemble(nn.Module):
    """The logarithm of the mean probabilities of networks."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        each_MNC = torch.stack([member(x_NCHW).log_softmax(1) for member in self.members])
        return each_MNC.logsumexp(0)


def few(seed: int) -> Task:
    """4,000 training images, 2,048 to choose epochs by."""
    data = load_task("mnist", seed=seed, augment=False, validation=56_000)
    return replace(data, validation=list(islice(data.validation, 16)))


def measure(seed: int) -> Numbers:
    """Errors of the ensemble, and of a small network on the labels, on the ensemble, and on MUNGE's data as well."""
    data, test = few(seed), task(seed)
    fresh = [seeded(lambda: mlp(784, 300, 10), 10 * seed + number) for number in range(MEMBERS)]
    members = [apply("distill.recover", member, seed, data, **HOW, alpha=1.0) for member in fresh]
    ensemble = Ensemble(members).eval()
    student = seeded(lambda: mlp(784, 32, 10), seed + 100)
    long = {**HOW, "epochs": 4 * HOW["epochs"]}  # as many steps as the student of four times the data
    taught = {"alpha": 0.0, "temperature": 1.0, "teacher": ensemble}
    alone = apply("distill.recover", student, seed, data, **long, alpha=1.0)
    real = apply("distill.kd", student, seed, data, **long, **taught)
    munged = apply("distill.munge", student, seed, data, **HOW, **taught, copies=3, samples=4000)
    return {
        "error, ensemble": error(ensemble, test),
        "error, on MUNGE's data": error(munged, test),
        "error, on the ensemble": error(real, test),
        "error, on labels": error(alone, test),
    }


ROW = Row(
    title="A small network on an ensemble's outputs for MUNGE's data",
    paper="Bucila, Caruana, Niculescu-Mizil 2006, KDD",
    setting="eight binary problems of tables, 4,000 samples each; ensembles of hundreds of models of many kinds",
    ours="4,000 images of MNIST, an ensemble of five networks 784-300-10, a student 784-32-10; equally many steps for "
    "all students; only the order can be compared",
    minutes=2,
    measure=measure,
    orders=(
        Order(
            says="MUNGE's data before the real ones alone, these before labels",
            names=("error, on MUNGE's data", "error, on the ensemble", "error, on labels"),
            where="section 4",
        ),
    ),
)
