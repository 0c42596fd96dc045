"""[29] on LeNet-300-100."""

from benchmarks.papers._mnist import apply, error, lenet, ratio, task
from benchmarks.papers._row import Number, Numbers, Row


def measure(seed: int) -> Numbers:
    """Errors before and after, and the ratio of the whole file."""
    dense, data = lenet("lenet300", seed), task(seed)
    shared = apply("share.soft", dense, seed, epochs=40, lr=5e-4)
    before, after = error(dense, data), error(shared, data)
    return {
        "error of the dense network": before,
        "error, shared": after,
        "points lost": after - before,
        "ratio": ratio(shared, dense, data),
    }


ROW = Row(
    title="Soft weight-sharing of LeNet-300-100",
    paper="Ullrich, Meeds, Welling 2017, arXiv:1702.04008",
    setting="a trained network, 16 components and the one at zero, 40 to 100 epochs; stored as Deep Compression does",
    ours="the same, 40 epochs, tau 0.005; the ratio is of the whole file with our entropy coder",
    minutes=8,
    measure=measure,
    numbers=(
        Number(name="points lost", paper=0.05, where="table 1", tolerance=0.2, unit="points"),
        Number(name="ratio", paper=64, where="table 1", tolerance=0.5, side="at least", unit="x"),
    ),
)
