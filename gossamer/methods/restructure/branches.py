"""RepVGG training branches (structural re-parameterization): add branches next to convolutions, for training only.

What it does: gives every convolution a 1 x 1 branch and an identity branch, each with a batch norm that starts at zero.
The network computes what it did before, and trains as a wider one. After the training `restructure.fold` makes one
convolution of it again, exactly; the norms behind it are folded when it is applied once more.
Cost: a tenth more multiply-adds while training; none after folding.
When it fails: it is of use only together with training. Even kernels, groups, dilations and paddings that move the
output are left.
Equation: W x becomes W x + N1(V x) + N2(x), N1 and N2 batch norms with gain 0 at first.
Source: Ding et al. 2021, arXiv:2101.03697, section 3.2 (there all branches from the start, and a norm for each).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Settings
from gossamer.methods.restructure._rewrite import Unfit, dense_convolution, diagram, padding_of, pointwise_convolution
from gossamer.modules.inserted import Branched


def branched(layer: Any, generator: torch.Generator) -> Branched:
    """Return the convolution with branches.

    Raises:
        Unfit: their sum would not be one convolution.
    """
    conv = dense_convolution(layer, planar=True)
    if set(conv.dilation) != {1} or conv.padding_mode != "zeros":
        raise Unfit("it is dilated, or does not pad with zeros")
    if any(size % 2 == 0 or pad != size // 2 for size, pad in zip(conv.kernel_size, padding_of(conv))):
        raise Unfit("its padding is not half of its kernel, so 1x1 convolutions see other places")
    weight = torch.randn(conv.out_channels, conv.in_channels, generator=generator) / conv.in_channels**0.5
    point: Any = pointwise_convolution(conv, weight)
    point.stride = conv.stride
    return Branched(conv, point)


@dataclass(frozen=True, kw_only=True)
class TrainingBranches(Method):
    """Add training branches to convolutions.

    Args:
        layers: patterns of layers. A layer that is named in full and cannot have branches raises BadInput.
        ignore: patterns of layers to leave.

    Raises:
        NoEffect: no convolution can have branches.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> wider, edits = gossamer.methods.restructure.TrainingBranches(layers=("conv2",))(model, inputs)
        >>> torch.equal(wider(inputs), model(inputs))
        True
    """

    stage: ClassVar[int | None] = 10
    example: ClassVar[Settings] = {}

    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        own, generator = swap(model, {}), torch.Generator().manual_seed(context.seed)
        new: dict[str, nn.Module] = {}
        for name in map(layer_name, weights_of(model, self.layers, self.ignore)):
            try:
                new[name] = branched(own.get_submodule(name), generator).train(model.get_submodule(name).training)
            except Unfit as reason:
                if name in self.layers:
                    raise BadInput(f"{self.name()}: layer {name!r}: {reason}; list it under `ignore`") from reason
                continue
            shown = diagram(model, name, new[name], task, context)
            after = "convolution and branches"
            self.note(context, EditKind.SWAP, name, before="convolution", after=after, proof=0.0, swapped=shown)
        if not new:
            raise NoEffect(f"{self.name()}: layers={list(self.layers)} has no convolution that can have branches")
        return swap(model, new)
