"""[20] on MNIST."""

from benchmarks.papers import _binary
from benchmarks.papers._row import Number, Row

ROW = Row(
    title="Binary weights and activations",
    paper="Courbariaux, Hubara, Soudry, El-Yaniv, Bengio 2016, arXiv:1602.02830",
    setting="784-4096-4096-4096-10, dropout, batch norms, squared hinge loss, 1,000 epochs: 0.96 %; 1.40 % with 2,048 "
    "units",
    ours=_binary.OURS,
    minutes=2,
    measure=lambda seed: _binary.measure(seed, ("bnn",)),
    numbers=(Number(name="error, bnn", paper=1.40, where="table 1, Torch", tolerance=0.3),),
)
