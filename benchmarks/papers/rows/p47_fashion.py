"""[47] on Fashion-MNIST."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import distilled

ROW = Row(
    title="Bayesian dark knowledge on 5,000 images of Fashion-MNIST",
    paper="Korattikara, Rathod, Murphy, Welling 2015, arXiv:1506.04416",
    setting="MNIST, 784-400-400-10: SGD 1.54 %, Langevin dynamics 1.27 %, distilled 1.31 %",
    ours="LeNet-300-100, 5,000 images without shifts, 40 epochs for all; negative log likelihood in nats",
    minutes=2,
    measure=lambda seed: distilled(
        "bayesian",
        seed,
        {
            "likelihood, distilled": ("student", "nll"),
            "likelihood, SGD": ("SGD", "nll"),
            "accuracy, distilled": ("student", "top1"),
            "accuracy, SGD": ("SGD", "top1"),
        },
    ),
    orders=(
        Order(
            says="log likelihood: distilled before SGD",
            names=("likelihood, distilled", "likelihood, SGD"),
            where="table 3",
            unit="nats",
        ),
        Order(
            says="accuracy: distilled before SGD",
            names=("accuracy, distilled", "accuracy, SGD"),
            where="table 3",
            higher=True,
        ),
    ),
    taken="benchmarks/results/distill.json",
    command="python -m benchmarks.distill.compare",
)
