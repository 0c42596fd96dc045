"""[7]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "shufflenet_g3",
    224,
    "ShuffleNet, three groups",
    "Zhang, Zhou, Lin, Sun 2017, arXiv:1707.01083; from memory",
    "table 1",
    multiply_adds=137,
)
