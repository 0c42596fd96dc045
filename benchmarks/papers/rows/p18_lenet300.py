"""[18] on LeNet-300-100."""

from benchmarks.papers import _deep_compression
from benchmarks.papers._row import Number, Numbers, Row


def measure(seed: int) -> Numbers:
    """Errors and whole files of both ways."""
    return _deep_compression.measure("lenet300", seed, retraining=15, centers=5, ours={60: 10})


ROW = Row(
    title="Deep Compression of LeNet-300-100, and files of our own way",
    paper="Han, Mao, Dally 2016, arXiv:1510.00149",
    setting="8, 9 and 26 % of the weights, 6-bit codebooks with linear starts, centers trained, Huffman codes; "
    "the ratio "
    "is of the weights",
    ours="the same densities and codebooks, 15 epochs of retraining and 5 of the centers, our entropy coder; the "
    "ratio is "
    "of the whole file. quantize.rate: 10 epochs into a file of the given size, the dense network as teacher. The "
    "dense network had 15 epochs",
    minutes=2,
    measure=measure,
    numbers=(
        Number(name="error, Deep Compression", paper=1.58, where="table 1", tolerance=0.2),
        Number(name="ratio, Deep Compression", paper=40, where="table 1", tolerance=1, side="at least", unit="x"),
    ),
)
