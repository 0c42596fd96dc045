"""[32] on the MLP."""

from benchmarks.papers import _ssl
from benchmarks.papers._row import Number, Row

ROW = Row(
    title="Structured sparsity learning, 784-500-300-10",
    paper="Wen, Wu, Wang, Chen, Li 2016, arXiv:1608.03665; numbers from memory of table 2",
    setting="784-500-300-10 from 1.43 % to 434-174-78-10 at 1.53 %",
    ours="the same network, as many parameters as the paper's (90,182); 6 epochs dense and 10 under the penalty",
    minutes=2,
    measure=lambda seed: _ssl.measure("mlp", 6, 10, seed),
    numbers=(
        Number(name="error of the dense network", paper=1.43, where="table 2", tolerance=0.2),
        Number(name="error, sparse", paper=1.53, where="table 2, MLP 2", tolerance=0.2),
        Number(name="parameters", paper=90182, where="table 2, MLP 2", tolerance=0, unit="parameters"),
    ),
)
