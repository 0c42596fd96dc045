"""[33] on CIFAR-10."""

from benchmarks.papers import _cifar
from benchmarks.papers._mnist import apply, error
from benchmarks.papers._row import Number, Numbers, Row
from benchmarks.papers.rows.p33_counts import WIDTHS
from gossamer.methods.distill._student import reinitialized


def measure(seed: int) -> Numbers:
    """Errors of the dense network, the cut one, and one of the cut shape from scratch for as many epochs in all."""
    task, dense = _cifar.data(seed), _cifar.network("vgg16_small", seed)
    cut = apply("prune.channels", dense, seed, task, widths=WIDTHS, criterion="l1", reconstruct=False)
    tuned = apply("distill.recover", cut, seed, task, epochs=40, lr=0.001, alpha=1.0, weight_decay=5e-4)
    fresh = reinitialized(cut, seed, method="benchmark")
    how = {"epochs": 240, "lr": 0.1, "weight_decay": 5e-4, "alpha": 1.0}
    scratch = apply("distill.recover", fresh, seed, task, **how)
    return {
        "error of the dense network": error(dense, task),
        "error, cut": error(tuned, task),
        "error, from scratch": error(scratch, task),
    }


ROW = Row(
    title="VGG-16 for CIFAR pruned to A, against the same shape from scratch",
    paper="Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710",
    setting="CIFAR-10, 40 epochs of retraining at 0.001",
    ours="the same; 200 epochs before; from scratch 240",
    minutes=120,
    measure=measure,
    needs="CIFAR-10, about 1 GPU hour a seed",
    numbers=(
        Number(name="error of the dense network", paper=6.75, where="table 1", tolerance=0.3),
        Number(name="error, cut", paper=6.60, where="table 1", tolerance=0.3),
        Number(name="error, from scratch", paper=6.88, where="table 1", tolerance=0.3),
    ),
)
