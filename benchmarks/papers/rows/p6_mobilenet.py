"""[6]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "mobilenet_v1",
    224,
    "MobileNet",
    "Howard et al. 2017, arXiv:1704.04861",
    "table 8",
    parameters=4.2,
    multiply_adds=569,
)
