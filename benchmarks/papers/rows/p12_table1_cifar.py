"""Table 1 of the survey on CIFAR-10."""

from benchmarks.papers import _cifar
from benchmarks.papers._row import Number, Row

NETWORKS = {
    "resnet110a": ("ResNet-110", 6.41),
    "resnet110_stochastic": ("stochastic depth", 5.23),
    "fractalnet20_wide": ("FractalNet", 4.60),
    "densenet_bc100_12": ("DenseNet-BC", 4.51),
}
ROW = Row(
    title="ResNet, stochastic depth, FractalNet, DenseNet-BC",
    paper="Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993",
    setting="CIFAR-10 with shifts and mirrors, 300 to 500 epochs",
    ours="the same networks, 300 epochs for all, validation images choose the epoch",
    minutes=3000,
    measure=lambda seed: _cifar.errors_of(
        {name: title for name, (title, _) in NETWORKS.items()},
        seed,
        _cifar.Training(epochs=300, lr=0.1, weight_decay=1e-4),
    ),
    needs="CIFAR-10, about 30 GPU hours a seed",
    numbers=tuple(
        Number(name=f"error, {title}", paper=printed, where="table 2", tolerance=0.3)
        for title, printed in NETWORKS.values()
    ),
)
