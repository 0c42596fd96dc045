"""[25] on digits."""

from benchmarks.papers._row import Order, Row
from benchmarks.papers._taken import ordering

SETTINGS = tuple(f"sparsity 0.{n}{more}" for n in (5, 7, 9) for more in ("", ", 3 epochs more"))
ROW = Row(
    title="Optimal Brain Surgeon, Optimal Brain Damage and magnitude on small digits",
    paper="Hassibi, Stork 1993, NIPS 5; LeCun, Denker, Solla 1990, NIPS 2",
    setting="MONK's problems, ZIP digits and NETtalk",
    ours="scikit-learn's digits, 49-20-10; second derivatives four times on the way, from 512 samples; top-1",
    minutes=2,
    measure=lambda seed: ordering("obs-obd-magnitude", seed),
    orders=tuple(
        Order(
            says=f"{setting}: OBS before OBD before magnitude",
            names=tuple(f"{way}, {setting}" for way in ("OBS", "OBD", "magnitude")),
            where="section 5",
            tolerance=0.5,
            higher=True,
            unit="points",
        )
        for setting in SETTINGS
    ),
    seeds=(0,),
    taken="benchmarks/results/reproduce.json",
    command="python -m benchmarks.papers.orderings obs-obd-magnitude",
)
