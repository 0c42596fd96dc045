"""The MONK's problems (Thrun et al. 1991): their rules, networks for them, and three ways to prune these."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers._mnist import apply, seeded
from benchmarks.papers._row import Numbers, Order
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.train import Training, fit

VALUES = (3, 3, 2, 3, 4, 2)
# Problem -> samples to train with, hidden units, share of the weights that goes.
PROBLEMS = {1: (124, 3, 0.76), 2: (169, 2, 0.62), 3: (122, 2, 0.90)}
WAYS = ("OBS", "OBD", "magnitude")
STARTS = 10
# Parts of the share that is gone after each step, and epochs of training after it.
STEPS, EPOCHS = (0.5, 0.8, 0.9, 1.0), 50
DECAY = 1e-3
ORDERS = tuple(
    Order(
        says=f"problem {number}: OBS before OBD before magnitude",
        names=tuple(f"accuracy, problem {number}, {way}" for way in WAYS),
        where="table 1 and section 5",
        tolerance=0.5,
        higher=True,
    )
    for number in PROBLEMS
)


def label(problem: int, a: tuple[int, ...]) -> int:
    """The rule of a problem for the values of the six attributes, counted from 1."""
    if problem == 1:
        return int(a[0] == a[1] or a[4] == 1)
    if problem == 2:
        return int(sum(value == 1 for value in a) == 2)
    return int((a[4] == 3 and a[3] == 1) or (a[4] != 4 and a[1] != 3))


def samples(problem: int) -> tuple[Tensor, Tensor]:
    """All 432 samples, one input for each value of each attribute, and their labels."""
    every = list(itertools.product(*(range(1, n + 1) for n in VALUES)))
    inputs = [[float(v == value) for v, n in zip(a, VALUES, strict=True) for value in range(1, n + 1)] for a in every]
    return torch.tensor(inputs), torch.tensor([label(problem, a) for a in every])


class OneUnit(nn.Module):
    """17-hidden-1; the class that is not zero has the unit's value as its logit."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(17, hidden), nn.Linear(hidden, 1)

    def forward(self, x_NF: Tensor) -> Tensor:
        z_N1 = self.fc2(torch.tanh(self.fc1(x_NF)))
        return torch.cat([torch.zeros_like(z_N1), z_N1], dim=1)


def problem_task(problem: int, seed: int) -> Task:
    """Training samples drawn by the seed; the epoch is chosen on them, as the paper has no others."""
    x, y = samples(problem)
    draw = torch.Generator().manual_seed(seed)
    count = PROBLEMS[problem][0]
    chosen = torch.randperm(len(x), generator=draw)[:count]
    labels = y[chosen].clone()
    if problem == 3:
        labels[: round(0.05 * count)] = 1 - labels[: round(0.05 * count)]
    batches = [(x[chosen][i : i + 32], labels[i : i + 32]) for i in range(0, count, 32)]
    return Task.from_loaders(batches, batches, [(x, y)], name=f"monk{problem}")


def accuracy(model: nn.Module, data: Task, split: str = "test") -> float:
    """Percent."""
    with torch.no_grad():
        return 100 * data.metric.score(model.eval(), getattr(data, split))


def network(problem: int, data: Task, seed: int) -> nn.Module:
    """The best of ten starts, by training error."""
    training = Training(epochs=400, lr=0.2, weight_decay=DECAY, warmup=0.02, evaluate_every=100)
    best: Any = None
    for start in range(STARTS):
        model = seeded(lambda: OneUnit(PROBLEMS[problem][1]), 100 * seed + start)
        fit(model, data, training, Context(seed=seed, accelerator="cpu"))
        found = accuracy(model, data, "train")
        if best is None or found > best[0]:
            best = (found, model)
        if found == 100:
            break
    return best[1]  # type: ignore[no-any-return]


def pruned(way: str, dense: nn.Module, sparsity: float, seed: int, data: Task) -> nn.Module:
    """In steps, with training after each."""
    method = {"OBS": "prune.obs", "OBD": "prune.obd", "magnitude": "prune.magnitude"}[way]
    options: dict[str, Any] = {"scope": "global"} if way == "magnitude" else {"rounds": 3}
    model = dense
    for part in STEPS:
        model = apply(method, model, seed, data, sparsity=part * sparsity, **options)
        model = apply("distill.recover", model, seed, data, epochs=EPOCHS, lr=0.05, alpha=1.0, weight_decay=DECAY)
    return model


def measure(seed: int) -> Numbers:
    """Test accuracy of all three problems, dense and pruned in three ways."""
    found: dict[str, float] = {}
    for problem, (_, _, sparsity) in PROBLEMS.items():
        data = problem_task(problem, seed)
        dense = network(problem, data, seed)
        found[f"accuracy, problem {problem}, dense"] = accuracy(dense, data)
        for way in WAYS:
            found[f"accuracy, problem {problem}, {way}"] = accuracy(pruned(way, dense, sparsity, seed, data), data)
    return found
