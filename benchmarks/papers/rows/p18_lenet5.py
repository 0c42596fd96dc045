"""[18] on LeNet-5."""

from benchmarks.papers import _deep_compression
from benchmarks.papers._row import Number, Numbers, Row


def measure(seed: int) -> Numbers:
    """Errors and whole files of both ways."""
    return _deep_compression.measure("lenet5", seed, retraining=4, centers=2, ours={80: 6})


ROW = Row(
    title="Deep Compression of LeNet-5, and files of our own way",
    paper="Han, Mao, Dally 2016, arXiv:1510.00149",
    setting="66, 12, 8 and 19 % of the weights, codebooks of 8 bits (convolutions) and 5, centers trained, "
    "Huffman codes; the ratio "
    "is of the weights",
    ours="the same densities and codebooks, 4 epochs of retraining and 2 of the centers, our entropy coder; the "
    "ratio is "
    "of the whole file. quantize.rate: 6 epochs into a file of the given size, the dense network as teacher. The "
    "dense network had 3 epochs",
    minutes=9,
    measure=measure,
    numbers=(
        Number(name="error, Deep Compression", paper=0.74, where="table 1", tolerance=0.2),
        Number(name="ratio, Deep Compression", paper=39, where="table 1", tolerance=1, side="at least", unit="x"),
    ),
)
