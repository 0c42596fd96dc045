"""Nuclear norm regularization: train the filters of convolutions to be separable (of rank one).

What it does: trains on, and after every step lowers the singular values of every filter's kernel a little, so that
most filters come to have rank one. Afterwards `lowrank.separable` and `lowrank.spatial` lose less at the same rank.
Cost: a training, with a batch of small singular value decompositions for each step.
When it fails: too large a penalty sets whole filters to zero. Kernels along one axis have no rank to lower.
Equation: min loss + penalty sum_nc |W_nc|_*, by proximal steps: W_nc = U diag(max(s - lr penalty, 0)) V^T.
Source: Rigamonti et al. 2013, CVPR, section 3.2 (SEP-COMB, there for a convolutional dictionary of images).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.swap import swap
from gossamer.errors import NoEffect
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.train.loop import TrainingStep


def lowered(weight: Tensor, threshold: float) -> Tensor:
    """Lower the singular values of kernels by a threshold, down to 0 (the proximal step of the nuclear norm).

    Args:
        weight: kernels (O, I, k, l ...), each taken as a matrix (k, l ...).
        threshold: at least 0.

    Returns:
        Kernels of the same shape.
    """
    u, s, v = torch.linalg.svd(weight.flatten(0, 1).flatten(2), full_matrices=False)
    near: Tensor = u * (s - threshold).clamp_min(0)[:, None] @ v
    return near.view_as(weight)


def separable_share(weight: Tensor) -> float:
    """Return the fraction, in [0, 1], of the kernels' energy that their first singular values have."""
    squares = torch.linalg.svdvals(weight.detach().flatten(0, 1).flatten(2)).square()
    return float(squares[:, 0].sum() / squares.sum().clamp_min(1e-30))


@dataclass(frozen=True, kw_only=True)
class Lower:
    """A proximal step after each step of the optimizer, with its learning rate.

    Attributes:
        names: the weights.
        penalty: of the nuclear norm.
    """

    names: Sequence[str]
    penalty: float

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        rates = {id(p): group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
        for name in self.names:
            weight = step.model.get_parameter(name)
            weight.copy_(lowered(weight, float(rates[id(weight)]) * self.penalty))


@dataclass(frozen=True, kw_only=True)
class NuclearNorm(Retrain):
    """Train with a nuclear norm on every kernel, so that filters become separable.

    The options of the training are those of `Retrain`.

    Args:
        penalty: weight of the nuclear norm, against that of the loss, in (0, 1000].
        layers: patterns of layers.
        ignore: patterns of layers to leave.

    Raises:
        NoEffect: no layer has a kernel along two axes.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> trained, edits = gossamer.methods.lowrank.NuclearNorm(epochs=1, lr=0.01)(model, task)
        >>> [edit.target for edit in edits]
        ['conv1.weight', 'conv2.weight']
    """

    stage: ClassVar[int | None] = 15
    example: ClassVar[Settings] = {"penalty": 0.5, "epochs": 1, "lr": 0.01}

    penalty: Annotated[float, Range(0, 1000, open_=("low",))] = 0.01
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        found = weights_of(model, self.layers, self.ignore)
        names = [name for name, w in found.items() if w.dim() > 3 and sum(size > 1 for size in w.shape[2:]) > 1]
        if not names:
            raise NoEffect(f"{self.name()}: none of {list(found)} has a kernel along two axes")
        result = self.train(swap(model, {}), task, context, after_step=Lower(names=names, penalty=self.penalty)).model
        for name in names:
            before, after = (separable_share(m.get_parameter(name)) for m in (model, result))
            was, now = (f"{100 * share:.1f} % separable" for share in (before, after))
            self.note(context, EditKind.TRAIN, name, before=was, after=now)
        return result
