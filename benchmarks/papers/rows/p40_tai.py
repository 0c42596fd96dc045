"""[40] on LeNet-5."""

from benchmarks.papers._lowrank import row
from benchmarks.papers._row import Number, Order

ROW = row(
    "The best pair of filters in closed form, against CP at equal MACs",
    "Tai, Xiao, Zhang, Wang, E 2016, arXiv:1511.06067",
    "AlexNet: the pair with batch norms 80.56 % top-5 at 4.94 times, CP 79.66 % at 5 times, dense 80.03 %",
    "rank 12 of the pair and 46 terms of CP, both at 5 times fewer MACs",
    {
        "pair 5x": ("lowrank.spatial", {"ranks": {"conv2": 12}, "norm": True}),
        "CP 5x": ("lowrank.cp", {"ranks": {"conv2": 46}}),
    },
    numbers=(
        Number(name="lost, pair 5x, tuned", paper=-0.53, where="table 3, AlexNet", tolerance=0.6, unit="points"),
        Number(name="lost, CP 5x, tuned", paper=0.37, where="table 3, AlexNet", tolerance=0.2, unit="points"),
    ),
    orders=(
        Order(
            says="the pair before CP",
            names=("lost, pair 5x, tuned", "lost, CP 5x, tuned"),
            where="table 3, AlexNet",
            unit="points",
        ),
    ),
    reason="LeNet-5's layer loses nothing at 5x in either way: the difference is one of five images in 10,000.",
)
