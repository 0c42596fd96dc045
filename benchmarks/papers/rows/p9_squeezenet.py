"""[9]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "squeezenet1_0",
    224,
    "SqueezeNet",
    "Iandola et al. 2016, arXiv:1602.07360",
    "table 1",
    parameters=1.248,
)
