"""N:M structured sparsity: keep the n largest of every m weights along the inputs (2:4 for sparse tensor cores).

What it does: in every group of m consecutive inputs of an output, keeps the n largest weights and sets the others to
zero, where they stay in later training. `to_semi_structured` converts linear layers in half precision to the storage
that sparse tensor cores read.
Cost: one sort of each group. No data.
When it fails: a layer whose number of inputs is not a multiple of m is refused; list it under `ignore`. Without
hardware for it, the network is not faster than a dense one.
Equation: keep the n largest |w| of each m along the input dimension.
Source: Mishra et al. 2021, arXiv:2104.08378.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from gossamer.constraints.apply import materialize
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Settings
from gossamer.methods.prune._masks import mask_weights


def n_of_m_mask(scores_OI: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest of every m consecutive scores along the last dimension.

    Args:
        scores_OI: any shape whose last dimension is a multiple of m.
        n: how many stay of each group.
        m: size of a group.

    Returns:
        Bool tensor of the same shape; True keeps. Among equal scores the last ones stay.
    """
    groups = scores_OI.reshape(-1, m)
    ranks = groups.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks >= m - n).view(scores_OI.shape)


def layer_mask(layer: nn.Module, weight: Tensor, n: int, m: int) -> Tensor:
    """Return the n-of-m mask of a layer's weight along its inputs.

    Args:
        layer: a linear layer or a convolution; of transposed convolutions the inputs are dimension 0.
        weight: the layer's weight, shape (O, I, ...), or (I, O, ...) for transposed convolutions.
        n, m: keep n of every m.

    Returns:
        Bool tensor of the weight's shape; True keeps.

    Raises:
        BadInput: the number of inputs is not a multiple of m.
    """
    inputs = 0 if getattr(layer, "transposed", False) else 1
    size = weight.shape[inputs] // (getattr(layer, "groups", 1) if inputs == 0 else 1)
    if size % m:
        shared = math.gcd(size, m)
        fix = f"use m={shared}, or " if shared > n else ""
        raise BadInput(f"{size} inputs are not a multiple of m={m}; {fix}list the layer under `ignore`")
    return n_of_m_mask(weight.abs().movedim(inputs, -1), n, m).movedim(-1, inputs)


def to_semi_structured(model: nn.Module) -> nn.Module:
    """Convert linear layers that keep 2 of every 4 weights to the storage of sparse tensor cores.

    Args:
        model: on a CUDA device of capability 8.0 or higher, in half precision (float16 or bfloat16).

    Returns:
        A copy for inference only; other layers are as before.

    Raises:
        BadInput: the model is not on such a device.
        NoEffect: no linear layer has the pattern, the precision, and sizes that are multiples of 64.
    """
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
    """N:M structured sparsity (Mishra et al. 2021).

    Args:
        n: weights that stay of every group, in [1, 63] and smaller than m.
        m: consecutive inputs in a group, in [2, 64].
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are. Layers whose number of inputs is not a multiple of m
            must be listed here.

    Raises:
        BadInput: n is not smaller than m.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(8, 4)
        >>> pruned, edits = gossamer.methods.prune.NOfM(n=2, m=4)(model)
        >>> (pruned.weight.view(-1, 4) != 0).sum(1).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2]
    """

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
        return mask_weights(model, masks, context, self.name())
