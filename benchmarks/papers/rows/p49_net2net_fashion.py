"""[49] on Fashion-MNIST."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import distilled

NAMES = (
    "small, 10 epochs", "wider, as it grew", "wider, 5 epochs more", "wider, from scratch, 10 epochs",
    "deeper, 5 epochs more", "deeper, from scratch, 10 epochs",
)  # fmt: skip
ROW = Row(
    title="Net2Net: LeNet-5 of half the width, grown",
    paper="Chen, Goodfellow, Shlens 2016, arXiv:1511.05641",
    setting="Inception on ImageNet: a grown network is where a fresh one gets in about a third of the time",
    ours="Fashion-MNIST; a grown network with 5 epochs more against a fresh one with 10, at the same rate; top-1",
    minutes=6,
    measure=lambda seed: distilled("net2net", seed, {name: (name,) for name in NAMES}),
    orders=(
        *(
            Order(
                says=f"{kind} with half the epochs not behind a fresh network",
                names=(f"{kind}, 5 epochs more", f"{kind}, from scratch, 10 epochs"),
                where="section 3",
                tolerance=0.1,
                higher=True,
                unit="points",
            )
            for kind in ("wider", "deeper")
        ),
        Order(
            says="what grew gives the small network's outputs",
            names=("wider, as it grew", "small, 10 epochs"),
            where="section 2",
            higher=True,
            unit="points",
        ),
    ),
    taken="benchmarks/results/distill.json",
    command="python -m benchmarks.distill.compare",
)
