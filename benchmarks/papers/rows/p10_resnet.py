"""[10]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "resnet110a",
    32,
    "ResNet-110 for CIFAR",
    "He, Zhang, Ren, Sun 2016, arXiv:1512.03385",
    "table 6",
    parameters=1.7,
)
