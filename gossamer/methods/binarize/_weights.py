"""What the methods that binarize weights share: which layers, the training under the constraints, and its hook."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import call_order
from gossamer.constraints.apply import constrain, constrained_stacks, constraints
from gossamer.constraints.base import Constraint
from gossamer.constraints.mask import Mask
from gossamer.constraints.signs import LossAware, Signs
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import NoEffect
from gossamer.methods._training import Retrain
from gossamer.train.hyperparameters import OptimizerName, Training
from gossamer.train.loop import TrainingStep
from gossamer.train.recalibrate import recalibrate


def glorot_limit(weight: Tensor) -> float:
    """Return sqrt(1.5 / (inputs + outputs)), places of the kernel counted: the range of the real weights of a layer.

    Source: the code of Courbariaux et al. 2015 (github.com/MatthieuCourbariaux/BinaryConnect), `W_LR_scale`.
    """
    places = weight[0][0].numel()
    return math.sqrt(1.5 / ((weight.shape[0] + weight.shape[1]) * places))


@torch.no_grad()
def after_binary_step(step: TrainingStep) -> None:
    """What follows a step of a training of binary weights: real weights back into their range, and the curvature.

    The curvature is the square root of Adam's second moment. Its factor (1 / learning rate) cancels in the values.
    """
    for stack in constrained_stacks(step.model).values():
        members: Any = stack
        for constraint in members:
            if isinstance(constraint, Signs):
                stack.original.clamp_(-constraint.limit, constraint.limit)
            moment = step.optimizer.state.get(stack.original, {}).get("exp_avg_sq")
            if isinstance(constraint, LossAware) and moment is not None:
                constraint.curvature.copy_(moment.sqrt() + 1e-8)


@dataclass(frozen=True, kw_only=True)
class BinaryTraining(Retrain):
    """The options of all methods that binarize: which layers, and the training.

    Args:
        ends: binarize the first and the last layer, too. If not, they are left unless they are named in full.
        layers: names or patterns of the layers to binarize, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        optimizer: "adamw", "adamax" or "sgd".
        weight_decay: of the optimizer, in [0, 1]; it acts on the real weights.
        epochs, lr, clip, temperature, alpha: the training; see `Retrain`.
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    usual_epochs: ClassVar[int] = 15

    ends: bool = True
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    optimizer: OptimizerName = "adamw"
    weight_decay: Annotated[float, Range(0, 1)] = 0.0

    def training(self, task: Task) -> Training:
        return replace(super().training(task), optimizer=self.optimizer)

    def selected(self, model: nn.Module, task: Task) -> dict[str, nn.Parameter]:
        """Return the raw weights to binarize by name, in the order in which a run calls their layers.

        Raises:
            NoEffect: none is left.
        """
        found = weights_of(model, self.layers, self.ignore)
        every = [layer_name(name) for name in weights_of(model)]
        called = call_order(model, task.example_inputs, every)
        left = set() if self.ends else {called[0], called[-1]} - set(self.layers)
        by_layer = {layer_name(name): (name, weight) for name, weight in found.items()}
        chosen = dict(by_layer[layer] for layer in called if layer in by_layer and layer not in left)
        if not chosen:
            raise NoEffect(
                f"{self.name()}: {', '.join(by_layer)} are the first and the last layer; set ends or name them in full"
            )
        return chosen

    def train_constrained(
        self, model: nn.Module, added: Mapping[str, Constraint], task: Task, context: Context, **changes: Any
    ) -> nn.Module:
        """Return a copy that was trained under these constraints, which stay on it.

        Norms whose statistics come from drawn weights are estimated again with the values that are kept.
        """
        changed = constrain(model, added)
        with self.while_training(changed, list(added)):
            result = self.train(changed, task, context, after_step=after_binary_step, **changes)
        if any(isinstance(one, Signs) and one.stochastic for one in added.values()):
            recalibrate(result.model, task.calibration)
        self.noted(result, context)
        for name in added:
            value = effective_weight(result.model, name)
            values = torch.unique(value)
            shown = f"{len(values):,} values in all, {int((value == 0).sum()):,} zeros"
            self.note(context, EditKind.CONSTRAIN, name, before="32-bit floats", after=shown)
        return result.model

    def while_training(self, model: nn.Module, weights: Sequence[str]) -> AbstractContextManager[None]:
        """Return what surrounds the training of these weights; nothing by default."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class BinaryWeights(BinaryTraining):
    """Base of the methods that binarize weights only: one constraint for each weight, and the training."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        masked = {name for name, stack in constraints(model).items() if any(isinstance(one, Mask) for one in stack)}
        added = {
            name: self.constraint(weight.detach(), masked=name in masked)
            for name, weight in self.selected(model, task).items()
        }
        return self.train_constrained(model, added, task, context)

    @abstractmethod
    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        """Return the constraint of one weight. masked: zeros of a mask are below, which must stay."""
