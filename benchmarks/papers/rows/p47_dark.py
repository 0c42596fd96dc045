"""[47] on 784-400-400-10."""

from dataclasses import replace
from itertools import islice

from benchmarks.papers._mnist import apply, error, mlp, seeded, task
from benchmarks.papers._row import Number, Numbers, Order, Row
from gossamer.core.context import Context
from gossamer.train import Training, fit

EPOCHS = 20


def measure(seed: int) -> Numbers:
    """Errors of SGD with the prior as weight decay, and of the student of Langevin draws."""
    data = replace(task(seed), validation=list(islice(task(seed).validation, 40)))
    plain = seeded(lambda: mlp(784, 400, 400, 10), seed)
    training = Training(epochs=EPOCHS, lr=0.05, weight_decay=10.0 / 55_000)
    fit(plain, data, training, Context(seed=seed, accelerator="cpu"))
    student = seeded(lambda: mlp(784, 400, 400, 10), seed + 100)
    how = {"epochs": EPOCHS, "lr": 0.1, "weight_decay": 0.0, "burn_in": 5, "sampler_lr": 0.02, "prior": 10.0}
    taught = apply("distill.bayesian", student, seed, data, teacher=plain, **how)
    return {"error, SGD": error(plain, data), "error, distilled": error(taught, data)}


ROW = Row(
    title="Bayesian dark knowledge, 784-400-400-10",
    paper="Korattikara, Rathod, Murphy, Welling 2015, arXiv:1506.04416; numbers from memory of table 3",
    setting="784-400-400-10, a million steps of Langevin dynamics at batches of 100",
    ours="the same network; 20 epochs of SGD, and 20 of the student beside Langevin dynamics that start from it "
    "and burn "
    "in for 5",
    minutes=4,
    measure=measure,
    numbers=(Number(name="error, distilled", paper=1.31, where="table 3", tolerance=0.2),),
    orders=(Order(says="distilled before SGD", names=("error, distilled", "error, SGD"), where="table 3"),),
)
