"""[2]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "vgg16",
    224,
    "VGG-16",
    "Simonyan, Zisserman 2015, arXiv:1409.1556",
    "table 2",
    parameters=138,
)
