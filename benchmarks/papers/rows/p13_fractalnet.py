"""[13]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "fractalnet20_wide",
    32,
    "FractalNet of 20 layers",
    "Larsson, Maire, Shakhnarovich 2017, arXiv:1605.07648, as DenseNet's paper prints it",
    "DenseNet, table 2",
    parameters=38.6,
    reason="The network of FractalNet's paper, five blocks of three columns with 64 to 512 filters, has 33.7 M by our "
    "count; no count of its own is printed there. DenseNet's table says 38.6 M of 21 layers.",
)
