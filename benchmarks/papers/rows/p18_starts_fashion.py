"""[18]: starts of the codebooks."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import ordering

ROW = Row(
    title="Starts of the codebooks: linear, by density, at random",
    paper="Han, Mao, Dally 2016, arXiv:1510.00149",
    setting="AlexNet: a linear start is the best after the centers are trained",
    ours="LeNet-300-100 on Fashion-MNIST at 8 % of its weights, one epoch for the centers; top-1",
    minutes=4,
    measure=lambda seed: ordering("kmeans-start", seed),
    orders=tuple(
        Order(
            says=f"{bits} bits: linear before the better of the others",
            names=(f"linear, {bits} bits, trained", f"better of density and random, {bits} bits, trained"),
            where="section 6.2, figure 8",
            higher=True,
            unit="points",
        )
        for bits in (2, 3)
    ),
    seeds=(0, 1),
    taken="benchmarks/results/reproduce.json",
    command="python -m benchmarks.papers.orderings kmeans-start",
)
