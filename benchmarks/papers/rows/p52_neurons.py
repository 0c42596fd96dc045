"""[52] on LeNet-5."""

from benchmarks.papers._mnist import apply, error, lenet, task
from benchmarks.papers._row import Number, Numbers, Row
from gossamer.modules.cost import total_params

LEFT = 0.2  # of the parameters
HOW = {"epochs": 6, "lr": 0.02, "weight_decay": 5e-4}


def measure(seed: int) -> Numbers:
    """Errors before and after, with the group penalty alone and with the sparse one; both act once an epoch."""
    dense = lenet("lenet5", seed)
    whole = total_params(dense)
    found: Numbers = {"error of the dense network": error(dense, task(seed))}
    for name, sparse in (("groups", 0.0), ("sparse groups", 0.5)):
        options = {**HOW, "params": round(LEFT * whole), "sparse": sparse, "proximal": "epoch"}
        small = apply("prune.group_lasso", dense, seed, **options)
        found[f"points lost, {name}"] = error(small, task(seed)) - found["error of the dense network"]
        found[f"parameters gone, {name}"] = 100 * (1 - total_params(small) / whole)
    return found


ROW = Row(
    title="The number of neurons found by a group penalty, LeNet-5",
    paper="Alvarez, Salzmann 2016, NIPS; numbers from memory of the abstract",
    setting="large convolutional networks from scratch; up to 80 % of the parameters gone without a loss",
    ours="LeNet-5 on MNIST, trained, then 6 epochs under the penalty, steered to a fifth of the parameters; proximal "
    "steps once an epoch as in the paper",
    minutes=8,
    measure=measure,
    numbers=(
        *(
            Number(name=f"points lost, {name}", paper=0, where="abstract", tolerance=0.3, side="at most", unit="points")
            for name in ("groups", "sparse groups")
        ),
        *(
            Number(name=f"parameters gone, {name}", paper=80, where="abstract", tolerance=1, side="at least", unit="%")
            for name in ("groups", "sparse groups")
        ),
    ),
)
