"""[36] on LeNet-5."""

from benchmarks.papers._lowrank import row
from benchmarks.papers._row import Number

ROW = row(
    "Shared separable filters",
    "Rigamonti, Sironi, Lepetit, Fua 2013, CVPR",
    "121 filters of 21 x 21 from 25 separable ones without a loss of accuracy in segmentation; from memory",
    "all 1,000 filters of 5 x 5 from 6 separable ones; 25 would be exact",
    {"6 filters": ("lowrank.separable", {"ranks": {"conv2": 6}, "basis": "shared", "data": "inputs"})},
    numbers=(Number(name="lost, 6 filters, tuned", paper=0.0, where="section 4", tolerance=0.1, unit="points"),),
)
