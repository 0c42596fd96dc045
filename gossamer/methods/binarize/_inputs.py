"""What the methods that binarize the inputs of layers share: binary layers for plain ones, and what is around them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.calibration.moments import call_order
from gossamer.constraints.apply import refuse_constrained
from gossamer.constraints.base import Constraint
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.binarize._weights import BinaryTraining
from gossamer.modules.binary import (
    BinaryBlock,
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    Repeat,
    ShiftedPReLU,
)
from gossamer.modules.shift_norm import with_plain_norms

Activations = Literal["keep", "hardtanh", "rprelu"]


class Unbinary(Exception):
    """A layer whose inputs cannot be binarized; the message is the reason."""


def binary_layer(layer: nn.Module, x: Tensor, **options: Any) -> BinaryLayer:
    """Return a binary layer with the weights of a plain one.

    Args:
        layer: a linear layer or a 2-d convolution.
        x: an input of the layer.
        options: norm, shift, estimator and input_scale of the binary layer.

    Raises:
        Unbinary: there is no such binary layer, or it would keep next to nothing of its input.
    """
    new: BinaryLayer
    if type(layer) is nn.Linear:
        if x.dim() != 2 and options.get("norm") in ("batch", "shift"):
            raise Unbinary(f"its inputs have {x.dim()} dimensions, and a batch norm of features needs 2")
        new = BinaryLinear(layer.in_features, layer.out_features, layer.bias is not None, **options)
    elif type(layer) is nn.Conv2d:
        if layer.groups > 1 and layer.in_channels == layer.groups:
            raise Unbinary("it is depthwise: an output reads one channel, of which signs keep too little")
        sizes = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
        bias = layer.bias is not None
        new = BinaryConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=bias, **sizes, **options)
    else:
        raise Unbinary(f"{type(layer).__name__} has no binary form; linear layers and 2-d convolutions have")
    new.to(layer.weight).train(layer.training)
    with torch.no_grad():
        new.weight.copy_(layer.weight)
        if layer.bias is not None and new.bias is not None:
            new.bias.copy_(layer.bias)
    return new


def shortcut_around(layer: BinaryLayer) -> nn.Module | None:
    """Return what brings the input of a layer to the shape of its output without weights; None where nothing does.

    Average pools follow strides, and channels are repeated where the outputs are a multiple of them.
    """
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * getattr(layer, "groups", 1)
    if outputs % inputs:
        return None
    if isinstance(layer, BinaryLinear):
        return Repeat(outputs // inputs)
    kept = layer.padding == "same" or (
        not isinstance(layer.padding, str)
        and all(2 * p == d * (k - 1) for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size))
    )
    if not kept:
        return None
    stride: Any = layer.stride
    pool = nn.AvgPool2d(stride, ceil_mode=True) if set(stride) != {1} else nn.Identity()
    return nn.Sequential(pool, Repeat(outputs // inputs))


def with_shortcut(layer: BinaryLayer) -> nn.Module:
    """Return a block with a real shortcut around a binary layer; the layer itself where there is no shortcut."""
    shortcut = shortcut_around(layer)
    if shortcut is None:
        return layer
    kind = nn.BatchNorm1d if isinstance(layer, BinaryLinear) else nn.BatchNorm2d
    return BinaryBlock(layer, kind(layer.weight.shape[0]).to(layer.weight), shortcut).train(layer.training)


@torch.no_grad()
def inputs_of(model: nn.Module, example_inputs: tuple[Any, ...], names: list[str]) -> dict[str, Tensor]:
    """Return what these layers get first in a run on the example inputs; layers that do not run are left out."""
    with evaluating(model), layer_inputs(model, names) as seen:
        model(*place(model, (example_inputs, None)))
    return {name: found[0] for name, found in seen.items()}


@dataclass(frozen=True, kw_only=True)
class BinaryInputs(BinaryTraining):
    """The options of all methods that binarize inputs and weights of layers.

    The first layer keeps real inputs; with `ends` its weights are binarized.

    Args:
        ends: binarize the first and the last layer, too. If not, they are left unless they are named in full.
        activations: what becomes of the network's modules ReLU, whose outputs have one sign only. "hardtanh": clipped
            to [-1, 1]; "rprelu": PReLU with trained shifts; "keep". Functions like F.relu stay: a norm or a shift
            stands in front of each sign.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.
    """

    ends: bool = False
    activations: Activations = "hardtanh"

    @abstractmethod
    def replacement(self, layer: nn.Module, x: Tensor) -> nn.Module:
        """Return what takes the place of a layer with such inputs. Raises Unbinary."""

    @abstractmethod
    def constraint(self, weight: Tensor) -> Constraint:
        """Return the constraint of one weight."""

    def swapped(self, model: nn.Module, task: Task, context: Context) -> tuple[nn.Module, list[str]]:
        """Return a copy with binary layers and other activations, and the names of the weights to constrain."""
        refuse_constrained(model, self.name())
        names = [layer_name(name) for name in self.selected(model, task)]
        relus = [name for name, module in model.named_modules() if type(module) is nn.ReLU]
        seen = inputs_of(model, task.example_inputs, [*names, *relus])
        first = self.first_layer(model, task)
        new, weights = self.new_activations({name: seen[name] for name in relus if name in seen}), list[str]()
        if first in names:
            new |= self.first_replacement(first, model.get_submodule(first), seen[first])
            weights.append(_weight_in(first, new.get(first, nn.Identity())))
        for name in names:
            if name == first:
                continue
            layer = model.get_submodule(name)
            try:
                new[name] = self.replacement(layer, seen[name])
            except Unbinary as reason:
                if name in self.layers:
                    raise BadInput(f"{self.name()}: layer {name!r}: {reason}; list it under `ignore`") from reason
                self.note(context, EditKind.SWAP, name, before=str(layer), after="left alone", note=str(reason))
                continue
            weights.append(_weight_in(name, new[name]))
            self.note(context, EditKind.SWAP, name, before=str(layer), after=type(new[name]).__name__)
        if not any(isinstance(part, BinaryLinear | BinaryConv2d) for one in new.values() for part in one.modules()):
            raise NoEffect(f"{self.name()}: no layer gets binary inputs; those selected are {', '.join(names)}")
        return swap(model, new), weights

    def first_layer(self, model: nn.Module, task: Task) -> str:
        """Return the name of the layer that a run calls first."""
        return call_order(model, task.example_inputs, [layer_name(name) for name in weights_of(model)])[0]

    def first_replacement(self, name: str, layer: nn.Module, x: Tensor) -> dict[str, nn.Module]:
        """Return what takes the place of the first layer, whose inputs stay real; nothing by default."""
        return {}

    def new_activations(self, inputs: dict[str, Tensor]) -> dict[str, nn.Module]:
        """Return what takes the place of each ReLU, by its name."""
        match self.activations:
            case "keep":
                return {}
            case "hardtanh":
                return {name: nn.Hardtanh() for name in inputs}
            case "rprelu":
                return {name: ShiftedPReLU(x.shape[1]).to(x) for name, x in inputs.items()}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        changed, names = self.swapped(model, task, context)
        added = {name: self.constraint(changed.get_parameter(name).detach()) for name in names}
        return with_plain_norms(self.train_constrained(changed, added, task, context))


def _weight_in(name: str, module: nn.Module) -> str:
    """The name of the weight of the layer in what took the place of `name`."""
    kinds = (nn.Linear, nn.Conv2d)
    inner = next((path for path, part in module.named_modules() if path and isinstance(part, kinds)), "")
    return ".".join(part for part in (name, inner, "weight") if part)
