"""[28] on 784-1000-10."""

from benchmarks.papers._mnist import LENET300, apply, error, mlp, seeded, task, trained
from benchmarks.papers._row import Number, Numbers, Order, Row
from gossamer.constraints.apply import constraints

EPOCHS = 30
HOW = {"epochs": EPOCHS, "lr": 0.1, "weight_decay": 1e-4}


def measure(seed: int) -> Numbers:
    """Errors of hashed and dense networks of equal size, on the labels and taught by the network of full size."""
    data, found = task(seed), {}
    teacher = trained("mlp-1000", lambda: mlp(784, 1000, 10), LENET300, seed)
    found["error, 784-1000-10 with all weights"] = error(teacher, data)
    for part in (8, 64):
        virtual = seeded(lambda: mlp(784, 1000, 10), seed)
        hashed = apply("share.hashed", virtual, seed, share=1 / part, fresh=True)
        stored = sum(p.numel() for [held] in constraints(hashed).values() for p in held.parameters())
        small = seeded(lambda: mlp(784, round(stored / 794), 10), seed)  # noqa: B023  # called at once
        found[f"stored weights, 1/{part}"] = stored
        for name, model in (("hashed", hashed), ("dense of equal size", small)):
            alone = apply("distill.recover", model, seed, **HOW, alpha=1.0)
            taught = apply("distill.recover", model, seed, **HOW, teacher=teacher)
            found[f"error, 1/{part}, {name}"] = error(alone, data)
            found[f"error, 1/{part}, {name}, dark knowledge"] = error(taught, data)
    return found


def numbers(part: int, hashed: float, taught: float) -> tuple[Number, ...]:
    """What the paper has for a part."""
    table = f"table {1 if part == 8 else 2}, MNIST, 3 layers"
    return (
        Number(name=f"error, 1/{part}, hashed", paper=hashed, where=table, tolerance=0.2),
        Number(name=f"error, 1/{part}, hashed, dark knowledge", paper=taught, where=table, tolerance=0.2),
    )


ROW = Row(
    title="HashedNets: 784-1000-10 with an eighth and a 64th of its weights",
    paper="Chen, Wilson, Tyree, Weinberger, Chen 2015, arXiv:1504.04788; numbers from memory of tables 1 and 2",
    setting="784-1000-10 from scratch, dropout, settings found by Bayesian optimization, up to 1000 epochs",
    ours="the same sizes, 30 epochs of SGD with a cosine schedule and no dropout, for hashed and dense networks alike; "
    "dense: 784-h-10 with as many weights; taught: alpha 0.1, temperature 4, the network of full size as teacher",
    minutes=20,
    measure=measure,
    numbers=(*numbers(8, 1.45, 1.43), *numbers(64, 2.79, 2.65)),
    orders=tuple(
        Order(
            says=f"1/{part}: hashed before a dense network of equal size",
            names=(f"error, 1/{part}, hashed", f"error, 1/{part}, dense of equal size"),
            where=f"table {1 if part == 8 else 2}",
        )
        for part in (8, 64)
    ),
    reason="Length of training is a part of it: with 10 epochs the errors of hashed networks were 2.01 and 1.83 % at "
    "1/8, and 3.08 and 2.54 % at 1/64. The paper has up to 1000 epochs, and dropout.",
)
