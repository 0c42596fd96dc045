"""[26] on LeNet-300-100."""

from benchmarks.papers import _merging
from benchmarks.papers._row import Row

ROW = Row(
    title="Data-free merging of neurons, the first layer of LeNet-300-100",
    paper="Srinivas, Babu 2015, arXiv:1507.06149",
    setting="the 500 hidden units of Caffe's LeNet, neither data nor retraining",
    ours="the 300 units of the first layer of another network; only the orders can be compared",
    minutes=1,
    measure=lambda seed: _merging.measure(seed, "lenet300"),
    orders=_merging.ORDERS,
)
