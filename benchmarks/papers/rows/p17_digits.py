"""[17] on digits."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import ordering

ROW = Row(
    title="Training in 16-bit fixed point on small digits",
    paper="Gupta, Agrawal, Gopalakrishnan, Narayanan 2015, arXiv:1502.02551",
    setting="MNIST, 784-1000-1000-10; rounding to nearest fails with 10 and fewer bits after the point",
    ours="scikit-learn's digits, 49-64-10, 20 epochs; top-1; stochastic rounding is asked to lead by a point",
    minutes=1,
    measure=lambda seed: ordering("stochastic-nearest", seed),
    orders=tuple(
        Order(
            says=f"{form}: stochastic before nearest",
            names=(f"stochastic, {form}", f"nearest, {form}"),
            where="section 4.1, figure 1",
            tolerance=-1,
            higher=True,
            unit="points",
        )
        for form in ("<8,8>", "<6,10>")
    ),
    taken="benchmarks/results/reproduce.json",
    command="python -m benchmarks.papers.orderings stochastic-nearest",
    reason="The fewest bits fail as in the paper. With 10 bits the updates of this small network with momentum 0.9 are "
    "seldom below half a step of 2^-10: the failure begins at fewer bits than in the paper.",
)
