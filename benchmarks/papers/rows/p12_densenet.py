"""[12]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "densenet_bc100_12",
    32,
    "DenseNet-BC (100, 12)",
    "Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993",
    "table 2",
    parameters=0.8,
)
