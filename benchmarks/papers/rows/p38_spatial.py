"""[38] on LeNet-5."""

from benchmarks.papers._lowrank import row
from benchmarks.papers._row import Number

ROW = row(
    "Pairs of k x 1 and 1 x k filters",
    "Jaderberg, Vedaldi, Zisserman 2014, arXiv:1405.3866",
    "a network of four layers for scene text: 2.5 times as fast without a loss, 4.5 times with less than one point",
    "scheme 2 at rank 25 (2.5 times fewer MACs) and 14 (4.5 times), fitted to the outputs of 512 images",
    {
        "2.5x": ("lowrank.spatial", {"ranks": {"conv2": 25}, "data": "inputs"}),
        "4.5x": ("lowrank.spatial", {"ranks": {"conv2": 14}, "data": "inputs"}),
    },
    numbers=(
        Number(name="lost, 2.5x, tuned", paper=0.0, where="abstract", tolerance=0.1, unit="points"),
        Number(name="lost, 4.5x, tuned", paper=1.0, where="abstract", tolerance=0.0, unit="points"),
    ),
)
