"""[37] on LeNet-5."""

from benchmarks.papers._lowrank import row
from benchmarks.papers._row import Number

ROW = row(
    "Biclustered convolutions",
    "Denton, Zaremba, Bruna, LeCun, Fergus 2014, arXiv:1404.0736",
    "the second convolution of a network for ImageNet 2 to 2.5 times as fast within one point",
    "two groups of inputs and outputs, singular vectors, 45 % of the MACs",
    {"2.2x": ("lowrank.biclustered", {"macs": 0.45, "data": "inputs"})},
    numbers=(Number(name="lost, 2.2x, tuned", paper=1.0, where="abstract", tolerance=0.0, unit="points"),),
)
