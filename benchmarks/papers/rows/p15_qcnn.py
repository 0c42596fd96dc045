"""[15] on 784-1000-10."""

from benchmarks.papers._mnist import LENET300, apply, error, mlp, ratio, task, trained
from benchmarks.papers._row import Number, Numbers, Order, Row


def measure(seed: int) -> Numbers:
    """Errors with and without correction on calibration data."""
    dense, data = trained("mlp-1000", lambda: mlp(784, 1000, 10), LENET300, seed), task(seed)
    plain = apply("share.qcnn", dense, seed, width=4, entries=32, rounds=0)
    corrected = apply("share.qcnn", dense, seed, width=4, entries=32, rounds=2)
    return {
        "error of the dense network": error(dense, data),
        "error, not corrected": error(plain, data),
        "error, corrected": error(corrected, data),
        "ratio": ratio(corrected, dense, data),
    }


ROW = Row(
    title="Q-CNN: product quantization with error correction, 784-1000-10",
    paper="Wu, Leng, Wang, Hu, Cheng 2016, arXiv:1512.06473; numbers from memory of its table on MNIST",
    setting="784-1000-10, sub-spaces of 4 inputs, 32 codewords, without training",
    ours="the same; 512 calibration images without labels; the ratio is of the whole file with entropy codes",
    minutes=2,
    measure=measure,
    numbers=(
        Number(name="error of the dense network", paper=1.35, where="MNIST, 784-1000-10", tolerance=0.2),
        Number(name="error, not corrected", paper=1.42, where="MNIST, 784-1000-10", tolerance=0.2),
        Number(name="error, corrected", paper=1.39, where="MNIST, 784-1000-10", tolerance=0.2),
        Number(name="ratio", paper=12.1, where="MNIST, 784-1000-10", tolerance=0.5, side="at least", unit="x"),
    ),
    orders=(
        Order(
            says="corrected before not corrected",
            names=("error, corrected", "error, not corrected"),
            where="section 4",
        ),
    ),
)
