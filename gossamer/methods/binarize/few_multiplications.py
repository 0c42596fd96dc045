"""Neural networks with few multiplications: stochastic binary or ternary weights, and shifts in the backward pass.

What it does: draws binary or ternary weights in every forward pass of the training (binary connect, ternary connect).
In the backward pass, the inputs of a layer are rounded to powers of two before they are multiplied with the gradient,
so that the products are shifts (quantized back-propagation). The result has the values that are nearest to the real
weights, or the real weights, as the source tests it; its batch norms are estimated again.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: with few exponents small inputs vanish from the gradient. With weights "real" the result is not smaller.
Equation: ternary: w > 0 gives 1 with probability w, else 0; w < 0 gives -1 with probability -w; w clipped to [-1, 1],
    in
units of the layer's range. dW = (delta h'(z)) Q(x)^T, Q(x) = sign(x) 2^clamp(round(log2 |x|)).
Source: Lin et al. 2015, arXiv:1510.03009, sections 4 and 5.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import Signs
from gossamer.core.layer_names import layer_name
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.binarize._weights import BinaryWeights, glorot_limit


def power_of_two(x: Tensor, exponents: int) -> Tensor:
    """Return sign(x) 2^e, e the integer nearest to log2 |x| among -exponents + 1 .. 0 above the largest one of x.

    Args:
        x: any shape; zeros stay zero.
        exponents: how many there are: the largest is that of max |x|. What is below half of the smallest becomes zero.

    Source: Lin et al. 2015, arXiv:1510.03009, section 5.
    """
    sizes = x.abs()
    exponent = sizes.clamp_min(torch.finfo(x.dtype).tiny).log2().round()
    smallest = exponent.max() - exponents + 1
    rounded = x.sign() * exponent.clamp_min(smallest).exp2()
    return rounded * (sizes >= smallest.exp2() / 2).to(x.dtype)


class _ShiftedInputs:
    """Hooks of one layer: what it saves of its input for the backward pass is rounded to powers of two."""

    def __init__(self, exponents: int) -> None:
        self.exponents = exponents
        self.saved: list[Any] = []

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]

        def pack(tensor: Tensor) -> Tensor:
            same = tensor.data_ptr() == x.data_ptr() and tensor.numel() == x.numel()
            return power_of_two(tensor, self.exponents) if same else tensor

        self.saved.append(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        self.saved[-1].__enter__()

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.saved.pop().__exit__(None, None, None)


@contextmanager
def quantized_backward(model: nn.Module, layers: Sequence[str], exponents: int) -> Iterator[None]:
    """Within, gradients of the weights of these layers are computed from inputs rounded to powers of two."""
    hooks = []
    for layer in layers:
        module, rounding = model.get_submodule(layer), _ShiftedInputs(exponents)
        hooks.append(module.register_forward_pre_hook(rounding.before))
        hooks.append(module.register_forward_hook(rounding.after, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, kw_only=True)
class FewMultiplications(BinaryWeights):
    """Neural networks with few multiplications (Lin et al. 2015).

    Args:
        connect: "ternary" or "binary": the values that are drawn while the network trains.
        exponents: number of powers of two of the inputs in the backward pass. None: the backward pass is exact.
        weights: of the result. "nearest": two or three values; "real": the real weights, as published.
        ends: binarize the first and the last layer, too.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.FewMultiplications(layers=("fc1",), epochs=1, lr=0.001)
        >>> ternary, edits = method(model, task)
        >>> len(ternary.fc1.weight.unique())
        3
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    connect: Literal["ternary", "binary"] = "ternary"
    exponents: Annotated[int | None, Range(1, 64)] = 8
    weights: Literal["nearest", "real"] = "nearest"

    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        limit, ternary = glorot_limit(weight), self.connect == "ternary"
        real = self.weights == "real"
        return Signs(limit, limit=limit, stochastic=True, ternary=ternary, real=real, keep_zeros=masked)

    def while_training(self, model: nn.Module, weights: Sequence[str]) -> AbstractContextManager[None]:
        if self.exponents is None:
            return nullcontext()
        return quantized_backward(model, [layer_name(name) for name in weights], self.exponents)
