"""What the rows on MNIST share: the data, trained networks, which rows reuse, and errors."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import paths
from benchmarks.common.progress import Lines
from gossamer.compact.writing import save
from gossamer.constraints.apply import materialize
from gossamer.core.batches import unaugmented
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.methods import catalogue
from gossamer.models import build_for, load_weights, save_weights
from gossamer.modules.cost import dense_bytes
from gossamer.train import Training, fit

# Trained networks that several rows start from; deleting it costs time only.
WORK = paths.ROOT / "build" / "papers"
LENET300 = Training(epochs=15, lr=0.1, weight_decay=5e-4)
LENET5 = Training(epochs=3, lr=0.1, weight_decay=5e-4)
# Densities of Han et al. 2015, tables 3 and 4.
SPARSITIES: Mapping[str, dict[str, float]] = {
    "lenet300": {"fc1": 0.92, "fc2": 0.91, "fc3": 0.74},
    "lenet5": {"conv1": 0.34, "conv2": 0.88, "fc1": 0.92, "fc2": 0.81},
}


@cache
def task(seed: int, name: str = "mnist") -> Task:
    """All of a data set, without shifts; the seed is that of the order of training samples."""
    return load_task(name, seed=seed, augment=False)


def error(model: nn.Module, data: Task) -> float:
    """Percent of the test images."""
    with torch.no_grad():
        return 100 - 100 * data.metric.score(materialize(model).eval(), data.test)


class Mapped:
    """The batches of a loader after a function; epochs are told to the loader."""

    def __init__(self, loader: Any, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.loader, self.change = loader, change

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.change(x, y) for x, y in self.loader)

    def unaugmented(self) -> "Mapped | None":
        """The same over the loader's samples as they are."""
        plain = unaugmented(self.loader)
        if plain is None or plain is self.loader:
            return None if plain is None else self
        return Mapped(plain, self.change)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader."""
        self.loader.set_epoch(epoch)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Fresh weights from a seed."""
    with own_randomness():
        torch.manual_seed(seed)
        return build()


def trained(name: str, build: Callable[[], nn.Module], training: Training, seed: int, data: Task | None = None) -> Any:
    """A network from scratch, kept on disk under its name, training and seed for rows and runs that start from it."""
    data = data or task(seed)
    how = hashlib.sha256(json.dumps([data.name, asdict(training)], sort_keys=True).encode()).hexdigest()[:8]
    path = WORK / f"{name}-{how}-{seed}.safetensors"
    model = seeded(build, seed)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run = Context(seed=seed, progress=Lines())
        fit(model, data, training, run, checkpoint=path.with_suffix(".ckpt"), label=name)
        save_weights(model, path, {})
    return load_weights(model, path).eval()


def lenet(name: str, seed: int) -> nn.Module:
    """LeNet-300-100 or LeNet-5, trained on MNIST."""
    return trained(name, lambda: build_for(name, task(seed)), LENET300 if name == "lenet300" else LENET5, seed)  # type: ignore[no-any-return]


def mlp(*widths: int) -> nn.Sequential:
    """Pixels to the last width, rectified units between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def apply(method: str, model: nn.Module, seed: int, on: Task | None = None, /, **options: Any) -> Any:
    """A method by its name in a recipe."""
    teacher = options.pop("teacher", None)
    run = Context(seed=seed, progress=Lines(), teacher=teacher)
    return catalogue()[method](**options)(model, on or task(seed), run).model


def pruned(name: str, seed: int, epochs: int) -> nn.Module:
    """A LeNet at the densities of Han et al., retrained at a tenth of the learning rate; still constrained."""
    model = apply("prune.magnitude", lenet(name, seed), seed, sparsities=SPARSITIES[name])
    lr = (LENET300 if name == "lenet300" else LENET5).lr
    return apply(  # type: ignore[no-any-return]
        "distill.recover", model, seed, epochs=epochs, lr=(lr or 0.1) / 10, alpha=1.0, weight_decay=5e-4
    )


def ratio(model: nn.Module, original: nn.Module, data: Task) -> float:
    """Bytes of the original in float32 over those of the whole file; constrained weights are stored as their rule."""
    with TemporaryDirectory() as folder:
        size = save(model, Path(folder) / "model.gsr", data.example_inputs).stat().st_size
    return dense_bytes(original) / size
