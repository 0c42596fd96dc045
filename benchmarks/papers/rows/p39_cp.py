"""[39] on LeNet-5."""

from benchmarks.papers._lowrank import row
from benchmarks.papers._row import Number

ROW = row(
    "CP decomposition of a convolution",
    "Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky 2015, arXiv:1412.6553",
    "AlexNet's second convolution 4 times as fast for one point of top-5 error; a network for characters 8.5 times for "
    "one point",
    "58 terms (4 times fewer MACs) and 27 terms (8.6 times)",
    {
        "4x": ("lowrank.cp", {"ranks": {"conv2": 58}}),
        "8.5x": ("lowrank.cp", {"ranks": {"conv2": 27}}),
    },
    numbers=(
        Number(name="lost, 4x, tuned", paper=1.0, where="abstract", tolerance=0.0, unit="points"),
        Number(name="lost, 8.5x, tuned", paper=1.0, where="abstract", tolerance=0.0, unit="points"),
    ),
)
