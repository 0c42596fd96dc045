"""[35] on MNIST."""

from benchmarks.papers import _binary
from benchmarks.papers._row import Number, Order, Row

ROW = Row(
    title="Ternary connect with quantized back propagation",
    paper="Lin, Courbariaux, Memisevic, Bengio 2016, arXiv:1510.03009",
    setting="784-1024-1024-1024-10, batch norms, squared hinge loss; 1.33 % in float32",
    ours=_binary.OURS + "; the weights that are kept are the real ones, as in the paper",
    minutes=3,
    measure=lambda seed: _binary.measure(seed, ("float32", "ternary_connect")),
    numbers=(
        Number(name="error, float32", paper=1.33, where="table 1", tolerance=0.3),
        Number(name="error, ternary_connect", paper=1.15, where="table 1", tolerance=0.3),
    ),
    orders=(Order(says="ternary before float32", names=("error, ternary_connect", "error, float32"), where="table 1"),),
)
