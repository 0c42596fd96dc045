"""[1]: how large its network is."""

from benchmarks.papers._counts import row

ROW = row(
    "alexnet",
    227,
    "AlexNet",
    "Krizhevsky, Sutskever, Hinton 2012, NIPS",
    "abstract",
    parameters=60,
    reason="The abstract rounds down: the layers that the paper describes have 60,965,224.",
)
