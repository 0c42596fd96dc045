"""[23] on LeNet-300-100."""

from benchmarks.papers._mnist import apply, error, lenet, task
from benchmarks.papers._row import Numbers, Order, Row
from gossamer.modules.cost import total_params

LEFT = 0.2  # of the parameters
HOW = {"epochs": 8, "lr": 0.02}
BIASES = ("hyperbolic", "exponential")


def measure(seed: int) -> Numbers:
    """Errors at a fifth of the parameters: units died while it trained, or the smallest were removed afterwards."""
    dense, data = lenet("lenet300", seed), task(seed)
    wanted = round(LEFT * total_params(dense))
    found: Numbers = {"error of the dense network": error(dense, data)}
    for bias in BIASES:
        small = apply("prune.biased_decay", dense, seed, bias=bias, params=wanted, weight_decay=0.0, **HOW)
        found[f"error, {bias}"] = error(small, data)
    plain = apply("distill.recover", dense, seed, alpha=1.0, weight_decay=5e-4, **HOW)
    cuts = (
        apply("prune.channels", plain, seed, sparsity=k / 50, criterion="l1", reconstruct=False) for k in range(20, 50)
    )
    cut = next(one for one in cuts if total_params(one) <= wanted)
    found["error, plain decay, smallest removed"] = error(cut, data)
    return found


ROW = Row(
    title="Weight decay that lets small units die",
    paper="Hanson, Pratt 1988, NIPS 1",
    setting="multi-layer perceptrons for parity and speech; biased decay leaves fewer hidden units than plain decay",
    ours="LeNet-300-100 on MNIST, trained, then 8 epochs each; a fifth of the parameters is left; what plain decay "
    "made small is removed without further training",
    minutes=3,
    measure=measure,
    orders=tuple(
        Order(
            says=f"{bias} before plain decay",
            names=(f"error, {bias}", "error, plain decay, smallest removed"),
            where="section 4",
            tolerance=0,
        )
        for bias in BIASES
    ),
)
