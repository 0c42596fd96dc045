"""[26] on LeNet-5."""

from benchmarks.papers import _merging
from benchmarks.papers._row import Number, Row

ROW = Row(
    title="Data-free merging of neurons, LeNet-5's hidden layer",
    paper="Srinivas, Babu 2015, arXiv:1507.06149",
    setting="the 500 hidden units of Caffe's LeNet, neither data nor retraining; up to 85 % of the parameters go "
    "without a significant loss, which is taken as one point",
    ours="the same layer, at fixed shares instead of the stop of the paper; 84 % are 420 of 500 units",
    minutes=4,
    measure=lambda seed: _merging.measure(seed, "lenet5"),
    numbers=(Number(name="points lost, 84% merged", paper=1.0, where="abstract", tolerance=0.0, unit="points"),),
    orders=_merging.ORDERS,
    reason="Up to 60 % nothing is lost in either way: the difference is below one image in 10,000. From 70 % on, "
    "merging is ahead.",
)
