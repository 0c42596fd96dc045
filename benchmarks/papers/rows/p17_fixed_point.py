"""[17] on its MLP."""

from benchmarks.papers._mnist import apply, error, mlp, seeded, task
from benchmarks.papers._row import Number, Numbers, Order, Row
from gossamer.errors import Diverged

BITS = (8, 10, 14)
HOW = {"epochs": 5, "lr": 0.02, "weight_decay": 0.0}
GUESS = 90.0  # the error of a training that diverges


def fixed(seed: int, bits: int, rounding: str) -> float:
    """The error after a training from scratch with so many of 16 bits after the point."""
    model = seeded(lambda: mlp(784, 1000, 1000, 10), seed)
    how = {**HOW, "integer_bits": 16 - bits, "fraction_bits": bits, "rounding": rounding}
    try:
        return error(apply("quantize.fixed_point", model, seed, **how), task(seed))
    except Diverged:
        return GUESS


def measure(seed: int) -> Numbers:
    """Errors of float32 and of both ways to round, at each number of bits after the point."""
    model = seeded(lambda: mlp(784, 1000, 1000, 10), seed)
    plain = apply("distill.recover", model, seed, **HOW, alpha=1.0)
    found = {"error, float32": error(plain, task(seed))}
    for bits in BITS:
        found |= {f"error, {bits} bits, {kind}": fixed(seed, bits, kind) for kind in ("stochastic", "nearest")}
    return found


ROW = Row(
    title="Training in 16-bit fixed point, rounded stochastically or to nearest",
    paper="Gupta, Agrawal, Gopalakrishnan, Narayanan 2015, arXiv:1502.02551; numbers from memory",
    setting="784-1000-1000-10, batches of 100, rates that fall for some tens of epochs; 8, 10 and 14 of 16 bits "
    "after the "
    "point; rounding to nearest fails with 10 and fewer",
    ours="the same network, batches of 128, 5 epochs of SGD with momentum and a cosine schedule for all; values "
    "that saturate have no gradient (with one, 14 bits after the point end at 68 %); a training that diverges counts "
    "as 90 %",
    minutes=7,
    measure=measure,
    numbers=(
        Number(name="error, float32", paper=1.4, where="section 4.1", tolerance=0.3),
        *(
            Number(name=f"error, {bits} bits, stochastic", paper=1.4, where="section 4.1", tolerance=0.3)
            for bits in BITS
        ),
    ),
    orders=tuple(
        Order(
            says=f"{bits} bits after the point: stochastic before nearest",
            names=(f"error, {bits} bits, stochastic", f"error, {bits} bits, nearest"),
            where="section 4.1, figure 1",
            tolerance=-0.3,
        )
        for bits in (8, 10)
    ),
)
