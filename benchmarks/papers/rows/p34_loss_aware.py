"""[34] on MNIST."""

from benchmarks.binary.mnist import ROWS
from benchmarks.papers import _binary
from benchmarks.papers._row import Number, Order, Row

NAMES = ("float32", "binary_connect", "bwn", "lab")
ROW = Row(
    title="Loss-aware binarization and what it is compared with",
    paper="Hou, Yao, Kwok 2017, arXiv:1611.01600",
    setting="784-2048-2048-2048-10, batch norms, squared hinge loss, 50 epochs of Adam",
    ours=_binary.OURS,
    minutes=6,
    measure=lambda seed: _binary.measure(seed, NAMES),
    numbers=tuple(
        Number(name=f"error, {name}", paper=ROWS[name][2], where="table 1, first version", tolerance=0.3)
        for name in NAMES
    ),
    orders=(
        Order(
            says="loss-aware before weights with a scale, these before signs alone",
            names=("error, lab", "error, bwn", "error, binary_connect"),
            where="table 1, first version",
            tolerance=0.1,
        ),
    ),
)
