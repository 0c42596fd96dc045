"""[19] on Fashion-MNIST."""

from benchmarks.papers._row import Numbers, Order, Row
from benchmarks.papers._taken import ordering

NETS = ("LeNet-300-100, 8 %", "LeNet-5")


def measure(seed: int) -> Numbers:
    """Both claims."""
    return {**ordering("uniform-kmeans", seed), **ordering("kmeans-importance", seed)}


def order(says: str, *names: str) -> Order:
    """By top-1, in points."""
    return Order(says=says, names=names, where="table 1", tolerance=0.2, higher=True, unit="points")


ROW = Row(
    title="Uniform steps, ECSQ and k-means by the Hessian under one codebook",
    paper="Choi, El-Khamy, Lee 2017, arXiv:1612.01543",
    setting="LeNet at 8.55 % on MNIST: k-means 44.6x, by the Hessian 47.2x, ECSQ 49.0x, uniform 51.3x",
    ours="Fashion-MNIST; equal entropy instead of equal accuracy, no training of the centers; top-1",
    minutes=20,
    measure=measure,
    orders=(
        *(
            order(
                f"{net}, {bits} bits: {one} before k-means",
                f"{one}, {net}, {bits} bits",
                f"k-means, {net}, {bits} bits",
            )
            for net in NETS
            for bits in (2, 3)
            for one in ("uniform", "ecsq")
        ),
        *(
            order(
                f"{net}, one codebook, {bits} bits: by the Hessian before not",
                f"hessian, {net}, one codebook, {bits} bits",
                f"none, {net}, one codebook, {bits} bits",
            )
            for net in NETS
            for bits in (2, 3)
        ),
    ),
    seeds=(0,),
    taken="benchmarks/results/reproduce.json",
    command="python -m benchmarks.papers.orderings uniform-kmeans kmeans-importance",
)
