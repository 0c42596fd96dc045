"""Rows of `benchmarks.sparse.structured`: from its JSON where the seed is there, else trained."""

from argparse import Namespace

from benchmarks.papers import _taken
from benchmarks.papers._row import Numbers
from benchmarks.sparse import structured


def measure(network: str, dense: int, epochs: int, seed: int) -> Numbers:
    """Errors before and after, and what is left. dense, epochs: of the two trainings."""
    points = _taken.document("structured.json")["points"]
    found = points.get(f"{network}, {dense} and {epochs} epochs, seed {seed}") or structured.measure(
        network, seed, Namespace(data=None, dense_epochs=dense, epochs=epochs)
    )
    return {
        "error of the dense network": found["dense error"],
        "error, sparse": found["error"],
        "parameters": found["sparse"]["params"],
        "multiply-adds": found["sparse"]["macs"],
    }
