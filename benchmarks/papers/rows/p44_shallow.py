"""[44] with LeNet-5 as the deep network."""

from benchmarks.papers._mnist import apply, error, lenet, mlp, seeded, task
from benchmarks.papers._row import Numbers, Order, Row

HOW = {"epochs": 15, "lr": 0.02, "weight_decay": 1e-5}


def measure(seed: int) -> Numbers:
    """Errors of a shallow network on the labels and on the logits of a deep one."""
    data, deep = task(seed), lenet("lenet5", seed)
    shallow = seeded(lambda: mlp(784, 800, 10), seed + 100)
    alone = apply("distill.recover", shallow, seed, **HOW, alpha=1.0)
    mimic = apply("distill.logits", shallow, seed, **HOW, teacher=deep)
    return {
        "error of the deep network": error(deep, data),
        "error, shallow on logits": error(mimic, data),
        "error, shallow on labels": error(alone, data),
    }


ROW = Row(
    title="A shallow network on a deep one's logits",
    paper="Ba, Caruana 2014, arXiv:1312.6184",
    setting="TIMIT: 8,000 units on labels 23.1 % phone error, on the logits of nine convolutional networks 21.6 %",
    ours="MNIST: 784-800-10 on labels and on the logits of LeNet-5, 15 epochs each; only the order can be compared",
    minutes=3,
    measure=measure,
    orders=(
        Order(
            says="on logits before on labels",
            names=("error, shallow on logits", "error, shallow on labels"),
            where="table 1",
        ),
    ),
)
