"""[56]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "nasnet_cifar",
    32,
    "NASNet-A (6 @ 768)",
    "Zoph, Vasudevan, Shlens, Le 2018, arXiv:1707.07012",
    "table 1",
    parameters=3.3,
)
