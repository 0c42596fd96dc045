"""Binary codes: replace every weight by one of two values, by its sign.

What it does: constrains the weights of a layer to -a and a by their signs, without data and without training. a is the
mean absolute weight, which has the least squared error, or 1, as published. Later training moves the two values.
Weights that are zero stay zero.
Cost: one pass over the weights. The file stores one bit per weight, and two numbers per layer.
When it fails: without training nearly always; the source finds it far behind product quantization at 32 times. a = 1
changes the size of a layer's outputs, which only networks with a norm behind the layer ignore.
Equation: w_ij -> a sign(w_ij), sign(0) = 0; a = mean |w_ij| minimizes sum (w_ij - a sign(w_ij))^2; rate 32 m n / (m n +
64).
Source: Gong et al. 2014, arXiv:1412.6115, section 3.1 (binarization).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.methods._base import Method, Settings
from gossamer.methods.share._decoded import shared_values

Scale = Literal["mean", "none"]


def binary_rate(m: int, n: int) -> float:
    """Return the compression ratio of binary codes of an (m, n) matrix: float32 bits over stored bits.

    Source: Gong et al. 2014, arXiv:1412.6115, section 3.1; with the two values.
    """
    return 32 * m * n / (m * n + 64)


def binary_values(weight: Tensor, scale: Scale) -> Tensor:
    """Return the two values of the weights, shape (2,), ascending; empty if all weights are zero.

    Args:
        weight: any shape; weights that are zero are not counted.
        scale: "mean": -a and a with a the mean absolute weight; "none": -1 and 1.
    """
    alive = weight.detach()[weight.detach() != 0]
    if not len(alive):
        return alive
    a = alive.double().abs().mean() if scale == "mean" else torch.ones((), dtype=torch.float64, device=alive.device)
    return torch.stack([-a, a]).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class BinaryCodes(Method):
    """Binary codes (Gong et al. 2014).

    Args:
        scale: "mean": the two values are minus and plus the layer's mean absolute weight; "none": -1 and 1, as
            published.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(64, 4)
        >>> shared, edits = gossamer.methods.share.BinaryCodes()(model)
        >>> len(shared.weight.unique())
        2
    """

    stage: ClassVar[int | None] = 60
    example: ClassVar[Settings] = {"layers": ("*",)}

    scale: Scale = "mean"
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        codes: dict[str, Codebook] = {}
        for name in weights_of(model, self.layers, self.ignore):
            w = effective_weight(model, name)
            codes |= shared_values({name: w}, binary_values(w, self.scale))
            values = sorted(codes[name].codebook.detach().tolist())
            after = f"values {', '.join(f'{v:.3g}' for v in values)}"
            self.note(context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=after)
        return constrain(model, codes)
