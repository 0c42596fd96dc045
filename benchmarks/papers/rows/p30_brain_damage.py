"""[30] on LeNet-5."""

from benchmarks.papers._mnist import apply, error, lenet, task
from benchmarks.papers._row import Number, Numbers, Row
from gossamer.modules.cost import total_macs

TIMES = 5  # fewer columns of the second convolution
HOW = {"epochs": 6, "lr": 0.02, "weight_decay": 5e-4}


def measure(seed: int) -> Numbers:
    """What is lost when the second convolution has a fifth of its columns."""
    dense, data = lenet("lenet5", seed), task(seed)
    weight = dense.get_parameter("conv2.weight")
    inputs = data.example_inputs
    second = weight.numel() * 8 * 8  # positions of its map
    whole = total_macs(dense, inputs)
    speedup = whole / (whole - second * (1 - 1 / TIMES))
    small = apply("prune.brain_damage", dense, seed, layers=("conv2",), speedup=speedup, **HOW)
    before = error(dense, data)
    left = second - (whole - total_macs(small, inputs))
    return {
        "error of the dense network": before,
        "points lost": error(small, data) - before,
        "times fewer columns": second / left,
    }


ROW = Row(
    title="Group-wise brain damage of LeNet-5's second convolution",
    paper="Lebedev, Lempitsky 2016, CVPR; numbers from memory of the abstract",
    setting="AlexNet's second convolution about 9 times faster, all of them 3.2 times, at about one point of top-5",
    ours="the second convolution of LeNet-5 on MNIST, trained, then 6 epochs under the penalty, steered to a fifth of "
    "the columns; a really thinner product of matrices",
    minutes=5,
    measure=measure,
    numbers=(
        Number(name="points lost", paper=1, where="abstract", tolerance=0, side="at most", unit="points"),
        Number(
            name="times fewer columns",
            paper=TIMES,
            where="half of section 4's 9",
            tolerance=0.1,
            side="at least",
            unit="x",
        ),
    ),
)
