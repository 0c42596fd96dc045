"""[32] on LeNet-5."""

from benchmarks.papers import _ssl
from benchmarks.papers._row import Number, Row

ROW = Row(
    title="Structured sparsity learning, LeNet-5",
    paper="Wen, Wu, Wang, Chen, Li 2016, arXiv:1608.03665; numbers from memory of table 1",
    setting="LeNet-5 from 0.9 % to 0.8 % with 5 and 19 filters of 1 and 4 channels",
    ours="the same network, as many multiply-adds as the paper's (344,800); 3 epochs dense and 15 under the penalty",
    minutes=9,
    measure=lambda seed: _ssl.measure("lenet5", 3, 15, seed),
    numbers=(
        Number(name="error of the dense network", paper=0.9, where="table 1", tolerance=0.2),
        Number(name="error, sparse", paper=0.8, where="table 1, second network", tolerance=0.2),
        Number(name="multiply-adds", paper=344800, where="table 1, second network", tolerance=0, unit="multiply-adds"),
    ),
    reason="The strength is controlled to the paper's multiply-adds and lands 1 to 1.7 % above them: a target is hit "
    "within 2 %.",
)
