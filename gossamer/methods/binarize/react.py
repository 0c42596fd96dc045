"""ReActNet: binary layers with trained shifts, trained under distillation in two stages.

What it does: each sign has a trained threshold for each channel (RSign), which starts at the mean of its inputs. Real
shortcuts go around binary layers, and modules ReLU become PReLU with trained shifts (RPReLU). First the network trains
with binary inputs and real weights, then with both binary, on the outputs of the uncompressed network alone.
Cost: two trainings of the network, each with one forward pass of the teacher per batch.
When it fails: without a teacher the labels teach. Where a network calls F.relu, the function stays.
Equation: y = norm(sign(w) * sign(x - a)) + x; RPReLU: x - c + d where x > c, else b (x - c) + d; loss: the divergence
from the teacher's distribution.
Source: Liu et al. 2020, arXiv:2003.03488, sections 4 and 5; two stages: Martinez et al. 2020, arXiv:2003.11535.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import ScaledSigns
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.binarize._inputs import Activations, BinaryInputs, binary_layer, with_shortcut


@dataclass(frozen=True, kw_only=True)
class ReActNetwork(BinaryInputs):
    """ReActNet (Liu et al. 2020).

    Args:
        ends: binarize the first and the last layer, too; the first keeps real inputs.
        activations: what becomes of modules ReLU. See `BinaryInputs`.
        temperature: divides the logits of both networks before the softmax, > 0.
        alpha: weight of the task loss, in [0, 1]. 0: the teacher alone, as published.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip: see `BinaryTraining`; epochs are those of each stage.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.ReActNetwork(layers=("fc2",), epochs=1, lr=0.001)
        >>> binary, edits = method(model, task, teacher=model)
        >>> [edit.target for edit in edits if edit.kind == "train"]
        ['all weights, real weights', 'all weights']
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    activations: Activations = "rprelu"
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 1.0
    alpha: Annotated[float, Range(0, 1)] = 0.0

    def replacement(self, layer: nn.Module, x: Tensor) -> nn.Module:
        new = binary_layer(layer, x, shift=True, estimator="polynomial")
        shift, channels = new.sign.shift, x.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
        assert shift is not None
        with torch.no_grad():
            shift.copy_(channels.flatten(1).mean(1))
        return with_shortcut(new)

    def constraint(self, weight: Tensor) -> Constraint:
        return ScaledSigns()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        changed, names = self.swapped(model, task, context)
        part = ", real weights"
        self.noted(self.train(changed, task, context, part=part), context, part=part)
        added = {name: self.constraint(changed.get_parameter(name).detach()) for name in names}
        return self.train_constrained(changed, added, task, context)
