"""[27] on LeNet-5."""

from benchmarks.papers._mnist import error, lenet, pruned, task
from benchmarks.papers._row import Number, Numbers, Row
from gossamer.constraints.weights import effective_weight, weights_of


def measure(seed: int) -> Numbers:
    """Errors before and after, and how many weights are left."""
    dense, sparse = lenet("lenet5", seed), pruned("lenet5", seed, epochs=4)
    left = [effective_weight(sparse, name) for name in weights_of(sparse)]
    return {
        "error of the dense network": error(dense, task(seed)),
        "error, pruned": error(sparse, task(seed)),
        "times fewer weights": sum(w.numel() for w in left) / sum(int(w.count_nonzero()) for w in left),
    }


ROW = Row(
    title="Magnitude pruning of LeNet-5",
    paper="Han, Pool, Tran, Dally 2015, arXiv:1506.02626",
    setting="LeNet-5 trained in Caffe, pruned to 66, 12, 8 and 19 % of the weights, retrained at a tenth of the rate",
    ours="the same densities in one step; 3 epochs of SGD with a cosine schedule, 4 of retraining at a tenth of the "
    "rate; 55,000 training images, 5,000 choose the epoch",
    minutes=5,
    measure=measure,
    numbers=(
        Number(name="error of the dense network", paper=0.80, where="table 1", tolerance=0.2),
        Number(name="error, pruned", paper=0.77, where="table 1", tolerance=0.2),
        Number(name="times fewer weights", paper=12, where="table 1", tolerance=0.3, side="at least", unit="x"),
    ),
)
