"""Keep n of every m weights along the inputs: 2 of 4 runs on hardware that has it.

What it does: in every group of m consecutive inputs of an output, keeps the n largest weights and holds the others at
zero. `to_semi_structured` gives linear layers in half precision the storage that sparse tensor cores read.
Cost: one sort of each group.
When it fails: a layer whose inputs are not a multiple of m is refused; list it under `ignore`. Without such hardware it
is no faster than dense.
Equation: keep the n largest |w| of each m along the input dimension.
Source: Mishra et al. 2021, arXiv:2104.08378.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from gossamer.constraints.base import effective_weight, materialize, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Settings
from gossamer.methods.prune._masks import hold


def n_of_m_mask(scores_OI: Tensor, n: int, m: int) -> Tensor:
    """Bool: True at the n largest of every m consecutive scores along the last dim; of equal ones the last stay."""
    groups = scores_OI.reshape(-1, m)
    ranks = groups.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks >= m - n).view(scores_OI.shape)


def layer_mask(layer: nn.Module, weight: Tensor, n: int, m: int) -> Tensor:
    """The mask of a layer's weight, along its inputs. Raises BadInput if they are not a multiple of m."""
    inputs = 0 if getattr(layer, "transposed", False) else 1
    size = weight.shape[inputs] // (getattr(layer, "groups", 1) if inputs == 0 else 1)
    if size % m:
        shared = math.gcd(size, m)
        fix = f"use m={shared}, or " if shared > n else ""
        raise BadInput(f"{size} inputs are not a multiple of m={m}; {fix}list the layer under `ignore`")
    return n_of_m_mask(weight.abs().movedim(inputs, -1), n, m).movedim(-1, inputs)


def to_semi_structured(model: nn.Module) -> nn.Module:
    """A copy on its CUDA device in which linear layers that keep 2 of every 4 weights are stored as sparse tensor cores
    read them. For half precision (float16, bfloat16); for inference only. Raises BadInput without such a device, and
    NoEffect if no layer has the pattern, the precision and sizes in multiples of 64."""
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise BadInput(
            f"to_semi_structured: the model is on {device}; sparse tensor cores are in CUDA devices of capability 8.0 "
            "or higher: model.cuda().half()"
        )
    result = materialize(model).eval()
    changed = [name for name, layer in result.named_modules() if _convert(layer)]
    if not changed:
        raise NoEffect(
            "to_semi_structured: no linear layer keeps 2 of 4 in half precision with sizes in multiples of 64"
        )
    return result


def _convert(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear) or layer.weight.dtype not in (torch.float16, torch.bfloat16):
        return False
    weight = layer.weight.detach()
    if any(size % 64 for size in weight.shape) or int((weight.view(-1, 4) != 0).sum(1).max()) > 2:
        return False
    sparse: Any = to_sparse_semi_structured(weight)
    layer.weight = nn.Parameter(sparse, requires_grad=False)
    return True


@dataclass(frozen=True, kw_only=True)
class NOfM(Method):
    """n, m: how many of how many stay. Layers whose inputs are not a multiple of m must be listed under `ignore`."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"ignore": ("stem",)}

    n: Annotated[int, Range(1, 63)] = 2
    m: Annotated[int, Range(2, 64)] = 4
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise BadInput(f"{self.name()}: n = {self.n} must be smaller than m = {self.m}")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        masks = {}
        for name in weights_of(model, self.layers, self.ignore):
            layer = model.get_submodule(layer_name(name))
            try:
                masks[name] = layer_mask(layer, effective_weight(model, name), self.n, self.m)
            except BadInput as error:
                raise BadInput(f"{self.name()}: {name}: {error}") from error
        return hold(model, masks, context, self.name())
