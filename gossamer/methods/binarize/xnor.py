"""XNOR-Net: train signs of weights and inputs, scaled for each filter and each place.

What it does: layers become the block batch norm, sign, binary convolution. Outputs are scaled by the mean size of each
filter and by the mean size of the inputs that each output reads, which is the best approximation of the real product.
Cost: a training of the network, with one forward pass of the teacher per batch. The scales of the inputs cost one more
small convolution per layer.
When it fails: accuracy drops in narrow and deep networks. The gain of the scales of the inputs is small behind a batch
norm; without them (input_scale: false) a kernel has integers and thresholds only.
Equation: I * W ~ (sign(I) xnor sign(W)) . K a, a = mean |W|, K = A * k, A = mean_c |I|, k_ij = 1 / (w h).
Source: Rastegari et al. 2016, arXiv:1603.05279, sections 3.2 and 3.3.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import ScaledSigns
from gossamer.methods._base import Settings
from gossamer.methods.binarize._inputs import Activations, BinaryInputs, binary_layer


def xnor_speedup(channels: int, places: int) -> float:
    """Return the theoretical speedup of a binary convolution, 64 operations at a time: 64 c n / (c n + 64).

    Args:
        channels: c, of the input.
        places: n, of the kernel.

    Source: Rastegari et al. 2016, arXiv:1603.05279, section 4.1.
    """
    return 64 * channels * places / (channels * places + 64)


@dataclass(frozen=True, kw_only=True)
class XnorNetwork(BinaryInputs):
    """XNOR-Net (Rastegari et al. 2016).

    Args:
        input_scale: scale outputs by the mean size of the inputs that they read.
        ends: binarize the first and the last layer, too; the first keeps real inputs.
        activations: what becomes of modules ReLU; they stay, as published. See `BinaryInputs`.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.XnorNetwork(layers=("fc2",), epochs=1, lr=0.001)
        >>> binary, edits = method(model, task)
        >>> binary.fc2.input_scale
        True
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    input_scale: bool = True
    activations: Activations = "keep"

    def replacement(self, layer: nn.Module, x: Tensor) -> nn.Module:
        return binary_layer(layer, x, norm="batch", input_scale=self.input_scale)

    def constraint(self, weight: Tensor) -> Constraint:
        return ScaledSigns()
