"""The rows of `compare.py`: each is a function of a setting that gives numbers by name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.placement import evaluating
from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.losses import kd_loss
from gossamer.measure import calibration, wilson
from gossamer.methods import catalogue
from gossamer.models import pretrained
from gossamer.models.resnet import ResNet
from gossamer.train import Distillation, Training, TrainingResult, TrainingStep, fit
from gossamer.train.hyperparameters import computes_in_bfloat16

Numbers = dict[str, Any]


class Lines(Silent):
    """Says what it does."""

    def say(self, message: str) -> None:
        print(time.strftime("%H:%M:%S"), message, flush=True)


@dataclass(frozen=True)
class Setting:
    """Where and how long a row runs."""

    data: str
    seed: int
    scale: float
    work: Path

    def task(self, *, augment: bool = True) -> Task:
        return _task(self.data, self.seed, augment)

    def epochs(self, wanted: int) -> int:
        return max(1, round(self.scale * wanted))

    def run(self, name: str, **more: Any) -> Context:
        """With a folder of its own, where finished trainings are found again."""
        folder = self.work / f"{self.data}-{self.scale:g}" / f"seed{self.seed}" / name
        folder.mkdir(parents=True, exist_ok=True)
        return Context(seed=self.seed, folder=folder, progress=Lines(), **more)

    def fitted(self, name: str, model: nn.Module, task: Task, training: Training, **more: Any) -> TrainingResult:
        run = self.run(name)
        assert run.folder is not None
        return fit(model, task, training, run, checkpoint=run.folder / "training.ckpt", label=name, **more)

    def taught(
        self, name: str, method: str, student: nn.Module, teacher: nn.Module, task: Task, **options: Any
    ) -> nn.Module:
        """The student after a method of `gossamer.methods`."""
        return catalogue()[method](**options)(student, task, self.run(name, teacher=teacher)).model.eval()


@cache
def _task(data: str, seed: int, augment: bool) -> Task:
    return load_task(data, seed=seed, augment=augment)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Fresh weights from a seed."""
    with own_randomness():
        torch.manual_seed(seed)
        return build()


def judged(model: nn.Module, task: Task) -> Numbers:
    """Errors, top-1 with its interval, negative log likelihood and calibration error on test."""
    with evaluating(model):
        logits, labels = calibration.logits_and_labels(model, task.test)
    right = (logits.argmax(1) == labels).float()
    low, high = wilson(right)
    return {
        "errors": int((1 - right).sum()),
        "top1": 100 * float(right.mean()),
        "low": low,
        "high": high,
        "nll": calibration.negative_log_likelihood(logits, labels),
        "ece": calibration.calibration_error(logits, labels),
    }


def mlp(hidden: int, pixels: int, *, dropout: bool) -> nn.Module:
    """Two hidden layers of rectified units; dropout: 0.1 of the pixels and 0.3 of the units. The paper's 0.2 and 0.5
    are too much for 60 epochs of Fashion-MNIST: such a teacher is worse than its student."""

    def drop(p: float) -> list[nn.Module]:
        return [nn.Dropout(p)] if dropout else []

    return nn.Sequential(
        nn.Flatten(), *drop(0.1), nn.Linear(pixels, hidden), nn.ReLU(), *drop(0.3), nn.Linear(hidden, hidden),
        nn.ReLU(), *drop(0.3), nn.Linear(hidden, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """Hold the weights into each unit within a length (the weight constraint of dropout's paper)."""

    length: float

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        for module in step.model.modules():
            if isinstance(module, nn.Linear):
                norms = module.weight.norm(dim=1, keepdim=True)
                module.weight.mul_((self.length / norms.clamp_min(1e-12)).clamp_max(1.0))


def hinton(setting: Setting) -> Numbers:
    """Hinton et al. 2015, section 3: 2x1200 with dropout and weight constraint; 2x800 with nothing, alone and with soft
    targets at temperature 20. Without the paper's jitter, which costs both networks accuracy on Fashion-MNIST."""
    task = setting.task(augment=False)
    pixels = task.example_inputs[0][0].numel()
    teacher = seeded(lambda: mlp(1200, pixels, dropout=True), setting.seed)
    # All three keep the epoch that is best on validation data, as `distill.kd` does.
    long = Training(epochs=setting.epochs(60), lr=0.05, weight_decay=0.0)
    teacher = setting.fitted("hinton-teacher", teacher, task, long, after_step=Limit(3.0)).model
    short = {"epochs": setting.epochs(30), "lr": 0.05, "weight_decay": 0.0}

    def student() -> nn.Module:
        return seeded(lambda: mlp(800, pixels, dropout=False), setting.seed + 100)

    alone = setting.fitted("hinton-alone", student(), task, Training(**short)).model
    taught = setting.taught(
        "hinton-soft-targets", "distill.kd", student(), teacher, task, temperature=20.0, alpha=0.1, **short
    )
    found = {"teacher": judged(teacher, task), "alone": judged(alone, task), "soft targets": judged(taught, task)}
    gap = found["alone"]["errors"] - found["teacher"]["errors"]
    won = found["alone"]["errors"] - found["soft targets"]["errors"]
    return {**found, "gap closed, %": 100 * won / gap if gap else None}


def quarter(setting: Setting) -> Numbers:
    """ResNet-20 of a quarter of the width: fresh, alone and with soft targets; and cut out of the teacher (a quarter of
    its channels, layers fitted again), alone and taught by relations. Equal epochs."""
    task = setting.task()
    teacher = _teacher(setting)

    def fresh() -> nn.Module:
        return seeded(lambda: ResNet(3, widths=(4, 8, 16), in_channels=_channels(task)), setting.seed)

    def cut() -> nn.Module:
        return catalogue()["prune.channels"](sparsity=0.75)(teacher, task, setting.run("quarter-cut")).model

    found = {"teacher": judged(teacher, task)}
    for name, student, lr, method in (
        ("alone", fresh, 0.2, None),
        ("soft targets", fresh, 0.2, "distill.kd"),
        ("cut, alone", cut, 0.1, None),
        ("cut, DIST", cut, 0.1, "distill.dist"),
    ):
        how = {"epochs": setting.epochs(10), "lr": lr, "weight_decay": 1e-4}
        folder, model = f"quarter-{name.replace(', ', '-').replace(' ', '-')}", student()
        if method:
            taught = setting.taught(folder, method, model, teacher, task, **how)
        else:
            taught = setting.fitted(folder, model, task, Training(**how)).model
        parameters = sum(p.numel() for p in taught.parameters())
        found[name] = judged(taught, task) | {"parameters": parameters}
    best = max(found[name]["top1"] for name in ("soft targets", "cut, DIST"))
    return {**found, "best over alone, points": best - found["alone"]["top1"]}


def _channels(task: Task) -> int:
    return int(task.example_inputs[0].shape[1])


def _teacher(setting: Setting) -> nn.Module:
    """The shipped ResNet-20, or one that is trained for data without."""
    if setting.data == "fashion-mnist":
        return pretrained("resnet20", setting.data)
    task = setting.task()
    model = seeded(lambda: ResNet(3, in_channels=_channels(task)), 0)
    return setting.fitted("resnet20", model, task, Training(epochs=setting.epochs(12), lr=0.2)).model.eval()


class Maxout(nn.Module):
    """A convolution whose units are the larger of two pieces."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, kernel, padding=kernel // 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        first, second = self.conv(x_NCHW).chunk(2, dim=1)
        return torch.maximum(first, second)  # amax over a view takes twice the time of a step


def maxout(widths: tuple[tuple[int, ...], ...], kernel: int, example: Tensor) -> nn.Module:
    """Stages of maxout convolutions, each ended by a pooling of 4, 4 and 2 pixels with a stride of 2; then a linear
    layer over all positions."""
    layers: list[nn.Module] = []
    before = example.shape[1]
    for stage, pool in zip(widths, (4, 4, 2), strict=True):
        for width in stage:
            layers.append(Maxout(before, width, kernel))
            before = width
        layers.append(nn.MaxPool2d(pool, 2, padding=pool // 2 - 1))
    features = nn.Sequential(*layers)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features(example).flatten(1).shape[1], 10))


def fitnet(setting: Setting) -> Numbers:
    """Romero et al. 2015, table 4 (MNIST): a maxout teacher of three wide layers (here of 5x5 kernels), a student of
    six thin ones (3x3); alone, with soft targets, and with a hint first (the teacher's second layer for the student's
    fourth)."""
    task = setting.task(augment=False)
    example = task.example_inputs[0]
    wide = seeded(lambda: maxout(((48,), (48,), (24,)), 5, example), setting.seed)
    epochs = setting.epochs(10)
    training = Training(epochs=epochs, lr=0.03, weight_decay=5e-4, clip=1.0)
    teacher = setting.fitted("fitnet-teacher", wide, task, training).model.eval()

    def thin() -> nn.Module:
        return seeded(lambda: maxout(((16, 16), (16, 16), (12, 12)), 3, example), setting.seed + 100)

    alone = setting.fitted("fitnet-alone", thin(), task, training)
    found = {"teacher": judged(teacher, task), "alone": judged(alone.model, task)}
    # The paper weighs the soft loss, without the temperature's square, with 4 at first and 1 in the end.
    weights = {"temperature": 3.0, "alpha": 9 / (9 + 4), "alpha_end": 9 / (9 + 1)}
    how = {"epochs": epochs, "lr": 0.03, "weight_decay": 5e-4, "clip": 1.0, **weights}
    # Modules are counted with the poolings: the second layer of the teacher is "2", the fourth of the student "4".
    hint = {"layers": {"4": "2"}, "hint_epochs": setting.epochs(3)}
    for name, method, options in (("soft targets", "distill.kd", {}), ("hints", "distill.hints", hint)):
        model = setting.taught(f"fitnet-{name.replace(' ', '-')}", method, thin(), teacher, task, **how, **options)
        found[name] = judged(model, task)
    order = [found[name]["errors"] for name in ("hints", "soft targets", "alone")]
    return {**found, "ordering of the paper": order == sorted(order)}


def bayesian(setting: Setting) -> Numbers:
    """`_bayesian.py`: SGD, an ensemble of Langevin draws, and their student."""
    from benchmarks.distill._bayesian import table

    found: Numbers = table(setting.seed)
    ensemble = next(value for name, value in found.items() if name.startswith("SGLD, mean"))
    return {**found, "NLL over the ensemble": found["student"]["nll"] - ensemble["nll"]}


def net2net(setting: Setting) -> Numbers:
    """`_net2net.py`: wider and deeper networks grown out of trained ones, against fresh ones."""
    from benchmarks.distill._net2net import table

    return table(setting.seed)


def step(setting: Setting, rounds: int = 30) -> Numbers:
    """Milliseconds of a training step of ResNet-20 of a quarter of the width: alone, and with ResNet-20 as its teacher,
    asked (in float32 and bfloat16, as it is and compiled) and remembered. Interleaved; medians."""
    task, teacher = setting.task(augment=False), _teacher(setting)
    student = seeded(lambda: ResNet(3, widths=(4, 8, 16), in_channels=_channels(task)), setting.seed).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    batches = [batch for batch, _ in zip(task.train, range(8))]
    remembered = Distillation(teacher)
    remembered.cache_outputs(setting.work / "answers")
    ways: dict[str, Callable[[Tensor], Tensor] | None] = {
        "alone": None,
        "asked": _asked(teacher),
        "asked in bfloat16": _asked(teacher, half=True),
        "asked, compiled": _asked(teacher, compiled=True),
        "asked, compiled in bfloat16": _asked(teacher, compiled=True, half=True),
        "remembered": lambda x: remembered.expected((x,)),
    }
    for x, _ in batches:  # compiles, and remembers
        for expected in ways.values():
            if expected is not None:
                expected(x)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        x, y = batches[number % len(batches)]
        for name, expected in ways.items():
            start = time.perf_counter()
            z = student(x)
            loss = nn.functional.cross_entropy(z, y)
            if expected is not None:
                loss = 0.1 * loss + 0.9 * kd_loss(z, expected(x), 4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent[name].append(1000 * (time.perf_counter() - start))
    found: Numbers = {f"{name}, ms": median(times) for name, times in spent.items()}
    for name, times in spent.items():
        if name != "alone":
            found[f"{name} over alone"] = median(t / a for t, a in zip(times, spent["alone"]))
    hardware = computes_in_bfloat16(torch.device("cpu"))
    return {**found, "batch": len(batches[0][0]), "bfloat16 in hardware": hardware}


def _asked(teacher: nn.Module, *, compiled: bool = False, half: bool = False) -> Callable[[Tensor], Tensor]:
    """The teacher's logits, as a training asks for them."""
    term = Distillation(teacher)
    term.compiled = compiled

    def ask(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits: Tensor = term.expected((x,))
        return logits.float()

    return ask


def losses(setting: Setting) -> Numbers:
    """The loss classes of torchdistill on the same random tensors."""
    from benchmarks.distill._torchdistill import compared

    return compared(setting.seed)


ROWS: dict[str, Callable[[Setting], Numbers]] = {
    row.__name__: row for row in (hinton, quarter, fitnet, bayesian, net2net, losses, step)
}
