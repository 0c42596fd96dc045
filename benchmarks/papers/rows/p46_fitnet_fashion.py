"""[46] on Fashion-MNIST."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import distilled

ROW = Row(
    title="FitNets on Fashion-MNIST",
    paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv:1412.6550",
    setting="MNIST: maxout teacher 0.55 %, thin student 1.9 % alone, 0.65 % on soft targets, 0.51 % with a hint",
    ours="Fashion-MNIST; the paper's networks, 10 epochs each and 3 for the hint, for all alike",
    minutes=28,
    measure=lambda seed: distilled(
        "fitnet",
        seed,
        {f"errors, {name}": (name, "errors") for name in ("hints", "soft targets", "alone", "teacher")},
    ),
    orders=(
        Order(
            says="a hint before soft targets, soft targets before labels alone",
            names=("errors, hints", "errors, soft targets", "errors, alone"),
            where="table 4",
            unit="errors",
        ),
    ),
    taken="benchmarks/results/distill.json",
    command="python -m benchmarks.distill.compare",
)
