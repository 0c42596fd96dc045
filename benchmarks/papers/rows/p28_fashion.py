"""[28] on Fashion-MNIST."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import ordering

ROW = Row(
    title="HashedNets on Fashion-MNIST",
    paper="Chen, Wilson, Tyree, Weinberger, Chen 2015, arXiv:1504.04788",
    setting="MNIST and its variants, 784-1000-10 with an eighth and a 64th of its weights",
    ours="Fashion-MNIST, 2 epochs from scratch for hashed and dense alike; top-1",
    minutes=3,
    measure=lambda seed: ordering("hashed-dense", seed),
    orders=tuple(
        Order(
            says=f"{part}: hashed before a dense network of equal size",
            names=(f"hashed, {part}", f"dense, {part}"),
            where="tables 1 and 2",
            higher=True,
            unit="points",
        )
        for part in ("1/8", "1/64")
    ),
    taken="benchmarks/results/reproduce.json",
    command="python -m benchmarks.papers.orderings hashed-dense",
)
