"""[42] with 100 classes: pairs of digits."""

import torch
from torch import Tensor, nn

from benchmarks.papers._mnist import Mapped, apply, error, mlp, seeded, task
from benchmarks.papers._row import Number, Numbers, Row
from gossamer.core.task import Task
from gossamer.modules.cost import total_params

HOW = {"epochs": 8, "lr": 0.1, "weight_decay": 1e-4, "alpha": 1.0}
RANK = 64


def paired(x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each image beside the next one of its batch; the class is the number that both make."""
    return torch.cat([x_NCHW, x_NCHW.roll(-1, 0)], 3), 10 * y_N + y_N.roll(-1, 0)


def pairs(seed: int) -> Task:
    """55,000 pairs in each epoch, always others."""
    data = task(seed)
    held = [list(Mapped(loader, paired)) for loader in (data.validation, data.test)]
    return Task.from_loaders(Mapped(data.train, paired), *held, name="pairs of digits")


def measure(seed: int) -> Numbers:
    """Errors of a network with a dense and with a low-rank last layer, both from scratch."""
    data = pairs(seed)
    dense = seeded(lambda: mlp(1568, 300, 1000, 100), seed)
    flat, first, relu, second, relu2, _ = seeded(lambda: mlp(1568, 300, 1000, 100), seed)
    thin = seeded(lambda: nn.Sequential(nn.Linear(1000, RANK, bias=False), nn.Linear(RANK, 100)), seed)
    small = nn.Sequential(flat, first, relu, second, relu2, thin)
    before = error(apply("distill.recover", dense, seed, data, **HOW), data)
    after = error(apply("distill.recover", small, seed, data, **HOW), data)
    last = total_params(dense[-1]) / total_params(thin)
    return {"error, dense last layer": before, "points lost": after - before, "times fewer in the last layer": last}


ROW = Row(
    title="A low-rank last layer from scratch",
    paper="Sainath, Kingsbury, Sindhwani, Arisoy, Ramabhadran 2013, ICASSP",
    setting="speech networks with 2,220 and 9,300 targets, rank 128: 30 to 50 % fewer parameters without a loss",
    ours="pairs of digits of MNIST (100 classes), 1568-300-1000-100, rank 64 in the last layer; 8 epochs for both",
    minutes=2,
    measure=measure,
    numbers=(Number(name="points lost", paper=0.0, where="abstract", tolerance=0.2, unit="points"),),
)
