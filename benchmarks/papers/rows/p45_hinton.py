"""[45] on MNIST."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.progress import Lines
from benchmarks.distill._rows import Limit
from benchmarks.papers._mnist import WORK, Mapped, apply, mlp, seeded, task
from benchmarks.papers._row import Number, Numbers, Order, Row
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.models import load_weights, save_weights
from gossamer.train import Training, fit

OF_TEACHER, OF_STUDENTS = 100, 40  # epochs; 20 each left the teacher at 125 errors and a student at 134
HOW: dict[str, Any] = {"epochs": OF_STUDENTS, "lr": 0.05, "weight_decay": 0.0}
ABSENT = 3


def dropped() -> nn.Module:
    """784-1200-1200-10 with dropout of a fifth of the pixels and half of the units."""
    drop = (nn.Dropout(0.2), nn.Dropout(0.5), nn.Dropout(0.5))
    flat, first, relu, second, relu2, last = mlp(784, 1200, 1200, 10)
    return nn.Sequential(flat, drop[0], first, relu, drop[1], second, relu2, drop[2], last)


def teacher(seed: int) -> nn.Module:
    """With dropout, weight constraint and shifts of up to two pixels; kept on disk."""
    model, path = seeded(dropped, seed), WORK / f"hinton-teacher-{OF_TEACHER}-{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shifted = load_task("mnist", seed=seed, augment=True)
        run = Context(seed=seed, accelerator="cpu", progress=Lines())
        fit(
            model,
            shifted,
            Training(**(HOW | {"epochs": OF_TEACHER})),
            run,
            after_step=Limit(3.0),
            checkpoint=path.with_suffix(".ckpt"),
        )
        save_weights(model, path, {})
    return load_weights(model, path).eval()


def hits(model: nn.Module, data: Task) -> tuple[Any, Any]:
    """Whether each test image is right, and its label."""
    found = [(model(x).argmax(1) == y, y) for x, y in data.test]
    return tuple(map(list, zip(*found, strict=True)))


def errors(model: nn.Module, data: Task, digit: int | None = None) -> float:
    """Wrong test images, of all or of one digit."""
    with torch.no_grad():
        right, labels = (torch.cat(part) for part in hits(model.eval(), data))
    return float((~right & ((labels == digit) if digit is not None else True)).sum())


def without(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch without the absent digit."""
    return x[y != ABSENT], y[y != ABSENT]


def raised(model: nn.Module, data: Task) -> nn.Module:
    """The model with the absent digit's bias raised to what is best on the validation images of all digits."""
    best: Any = None
    for step in range(17):
        candidate = copy.deepcopy(model)
        candidate[-1].bias.data[ABSENT] += 0.5 * step  # type: ignore[index]
        found = data.metric.score(candidate.eval(), data.validation)
        if best is None or found > best[0]:
            best = (found, candidate)
    return best[1]  # type: ignore[no-any-return]


def measure(seed: int) -> Numbers:
    """Wrong test images of teacher and students."""
    data, taught_by = task(seed), teacher(seed)
    student = seeded(lambda: mlp(784, 800, 800, 10), seed + 100)
    alone = apply("distill.recover", student, seed, **HOW, alpha=1.0)
    how = {**HOW, "temperature": 20.0, "alpha": 0.1, "teacher": taught_by}
    soft = apply("distill.kd", student, seed, **how)
    partial = replace(data, train=Mapped(data.train, without), validation=list(Mapped(data.validation, without)))
    unseen = apply("distill.kd", student, seed, partial, **{**how, "alpha": 0.0})
    mended = raised(unseen, data)
    return {
        "errors, teacher": errors(taught_by, data),
        "errors, student alone": errors(alone, data),
        "errors, distilled": errors(soft, data),
        "errors, no 3 seen": errors(unseen, data),
        "errors on 3, no 3 seen": errors(unseen, data, ABSENT),
        "errors, no 3 seen, bias raised": errors(mended, data),
        "errors on 3, no 3 seen, bias raised": errors(mended, data, ABSENT),
    }


ROW = Row(
    title="Distillation into 784-800-800-10, and without the digit 3",
    paper="Hinton, Vinyals, Dean 2015, arXiv:1503.02531",
    setting="a teacher 784-1200-1200-10 with dropout, weight constraint and shifts of two pixels; students "
    "without any of "
    "these; temperature 20; then a transfer set without a 3, and the bias of 3 raised by what is best on test",
    ours="the same networks; 100 epochs of the teacher and 40 of each student, SGD with a cosine schedule; "
    "alpha 0.1; the bias is raised by what is best on validation images, not test images",
    minutes=25,
    measure=measure,
    numbers=(
        Number(name="errors, teacher", paper=67, where="section 3", tolerance=15, unit="errors"),
        Number(name="errors, distilled", paper=74, where="section 3", tolerance=15, unit="errors"),
        Number(name="errors, no 3 seen", paper=206, where="section 3", tolerance=20, unit="errors"),
        Number(name="errors, no 3 seen, bias raised", paper=109, where="section 3", tolerance=20, unit="errors"),
    ),
    orders=(
        Order(
            says="distilled before alone (74 and 146)",
            names=("errors, distilled", "errors, student alone"),
            where="section 3",
            tolerance=-20,
            unit="errors",
        ),
    ),
    reason="Length of training: with 20 epochs each, the teacher made 125 errors and the distilled student 134; with "
    "100 and 40 they make 97 and 107. The student alone stays where the paper has it.",
)
