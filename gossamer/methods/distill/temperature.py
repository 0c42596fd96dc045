"""Temperature scaling: calibrate the confidence of a classifier.

What it does: finds the temperature that fits the validation data best and divides the weights of the last layer by it,
so that the logits are divided. No prediction changes, only its confidence.
Cost: one pass through the validation data.
When it fails: it cannot correct classes whose confidence is wrong in different ways. Outputs that do not come straight
from one last layer are refused.
Equation: T = argmin mean(-log softmax(z / T)_y); W <- W / T, b <- b / T.
Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constraints, unconstrained
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.layer_names import layer_name
from gossamer.core.placement import evaluating
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.measure import calibration
from gossamer.methods._base import Method, Needs, Settings


def last_layer(model: nn.Module, example_inputs: tuple[Any, ...]) -> str:
    """Return the name of the linear layer or convolution that runs last.

    Raises:
        BadInput: there is none.
    """
    ran: list[str] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    hooks = [m.register_forward_hook(partial(lambda name, *_: ran.append(name), name)) for name, m in layers.items()]
    try:
        with torch.no_grad(), evaluating(model):
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise BadInput("distill.temperature: no linear layer or convolution gives the outputs")
    return ran[-1]


def divided(model: nn.Module, temperature: float, example_inputs: tuple[Any, ...]) -> tuple[nn.Module, str]:
    """Return a copy whose outputs are divided by a temperature, and the name of the layer whose weights were divided.

    Constraints on weights stay, except on those of this layer where they do not allow the division.

    Raises:
        BadInput: no single last layer gives the outputs.
    """
    layer = last_layer(model, example_inputs)
    held = [name for name in constraints(model) if layer_name(name) == layer]
    for found in [copy_network(model), *([unconstrained(model, held)] if held else [])]:
        with torch.no_grad(), evaluating(found):
            before = found(*example_inputs)
            for parameter in found.get_submodule(layer).parameters():
                parameter.mul_(1 / temperature)
            after = found(*example_inputs)
        if isinstance(before, Tensor) and torch.allclose(after * temperature, before, rtol=1e-3, atol=1e-4):
            return found, layer
    raise BadInput("distill.temperature: the outputs do not come straight from one last linear layer or convolution")


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling(Method):
    """Divide the last layer by the temperature that fits the validation data best.

    It has no options. Apply it last: any training afterwards undoes it.

    Raises:
        BadInput: the outputs do not come straight from one last layer.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> calibrated, edits = gossamer.methods.distill.TemperatureScaling()(model, task)
        >>> edits[-1].target
        'fc2'
    """

    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        with evaluating(model):
            logits, labels = calibration.logits_and_labels(model, task.validation)
        temperature = calibration.best_temperature(logits, labels)
        found, layer = divided(model, temperature, task.example_inputs)
        before, after = (calibration.negative_log_likelihood(z, labels) for z in (logits, logits / temperature))
        said = f"negative log likelihood {before:.4f} on validation"
        self.note(context, EditKind.ASSIGN, layer, before=said, after=f"{after:.4f} at temperature {temperature:.3f}")
        return found
