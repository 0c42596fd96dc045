"""Linear bottleneck for mimic learning: factor wide linear layers in two and train on the teacher's logits.

What it does: replaces linear layers by W = U V, without an activation between, and trains the student to give the
teacher's logits. Wide shallow students learn many times faster this way, and are smaller.
Cost: a singular value decomposition of each layer; one forward pass of the teacher for each batch.
When it fails: a rank that is too low for what the layer has to pass on. Small layers do not need it.
Equation: |z - v|^2 / 2 with W ~ U V, U (outputs, rank) and V (rank, inputs), at first the best such approximation.
Source: Ba & Caruana 2014, arXiv:1312.6184, section 2.3.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.swap import swap
from gossamer.errors import NoEffect
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, regression


def factored(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Return V, then U: the nearest layer of this rank; at full rank the same function."""
    left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    roots = values[:rank].sqrt()
    like = dict[str, Any](device=layer.weight.device, dtype=layer.weight.dtype)
    first = nn.Linear(layer.in_features, rank, bias=False, **like)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **like)
    with torch.no_grad():
        first.weight.copy_(roots[:, None] * right[:rank])
        second.weight.copy_(left[:, :rank] * roots)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


@dataclass(frozen=True, kw_only=True)
class LinearBottleneck(Student):
    """Replace wide linear layers by two thin ones and train on the teacher's logits.

    `temperature` has no effect. The other options are those of `Student` and `Retrain`.

    Args:
        rank: features between U and V, at least 1. Layers that would not become smaller stay as they are.
        alpha: weight of the task loss, in [0, 1]; 0 trains on the logits alone.
        lr: peak of the learning rate, in (0, 10].
        layers: patterns of layers.
        ignore: patterns of layers to leave.

    Raises:
        BadInput: there is no teacher.
        NoEffect: no layer would become smaller.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.LinearBottleneck(rank=4, epochs=1)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [tuple(layer.weight.shape) for layer in trained.fc1]
        [(4, 16), (16, 4)]
    """

    stage: ClassVar[int | None] = 20
    saves: ClassVar[tuple[str, ...]] = ("macs", "params")
    example: ClassVar[Settings] = {"rank": 1, "epochs": 1}

    rank: Annotated[int, Range(1, 65_536)]
    alpha: Annotated[float, Range(0, 1)] = 0.0
    lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.01
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        names = [layer_name(key) for key in weights_of(model, self.layers, self.ignore)]
        large: dict[str, nn.Linear] = {}
        for name in names:
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Linear) and self.rank * sum(layer.weight.shape) < layer.weight.numel():
                large[name] = layer
        if not large:
            raise NoEffect(f"{self.name()}: rank = {self.rank} makes no linear layer of {names} smaller")
        student = swap(model, {name: factored(layer, self.rank) for name, layer in large.items()})
        for name, layer in large.items():
            before = f"linear, {layer.in_features} to {layer.out_features}"
            after = f"two, with {self.rank} features between"
            self.note(context, EditKind.SWAP, name, before=before, after=after)
        term = self.distillation(self.teacher(context), regression)
        return self.learn([term], student, task, context).model
