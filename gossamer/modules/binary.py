"""Layers with binary inputs: their exact arithmetic, which training, export and binary kernels share.

**Signs.** sign(x) = 1 where x >= 0, else -1, so that sign(0) = 1 (and sign(nan) = -1).

**A binary layer** computes, from a real input x of a `BinaryLinear` (N, ..., I) or a `BinaryConv2d` (N, C, H, W):

1. z = norm(x): a batch norm over the input channels, or `nn.Identity`.
2. s = sign(z), or sign(z - shift_c) with a shift of each input channel c (`Sign`). In IEEE arithmetic z - shift >= 0
and
   z >= shift are the same.
3. A convolution pads s by its padding mode. In the mode "zeros" the places outside of the image count as **+1**, not 0,
   so that every padded input is -1 or 1.
4. y = product of s and `weight`, without bias. Stride, dilation and groups are those of the layer.
5. Where `input_scale` is set, y is multiplied by K: the mean of |z| over the inputs that an output reads (channels of
its
   group and places of its kernel; places outside of the image count as |z| = 0). That is XNOR-Net's beta = A * k.
6. The bias is added.

**Weights.** While it trains, a layer holds real weights under a constraint (`gossamer.constraints`), which makes
`weight` read as scale * sign. In a finished network (after `materialize`) every output's row of `weight` is -a or a,
a > 0 the scale of that output. `binary_weight` gives signs and scales, or says that a weight is not binary. A weight
with zeros or with more values is legal and computes by the same steps, but no binary kernel can run it. With binary
weights step 4 is a_o (n - 2 popcount(s xor b)), n the number of inputs of an output: an integer times a scale. Float32
holds the integer exactly, since n is far below 2^24.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.signs import sign_of, straight_through
from gossamer.modules.shift_norm import ShiftNorm1d, ShiftNorm2d

Estimator = Literal["hard_tanh", "polynomial"]
Norm = Literal["none", "batch", "shift"]


class _SignFunction(torch.autograd.Function):
    """`sign_of` with the gradient of another function (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, estimator: Estimator) -> Tensor:
        ctx.save_for_backward(x)
        ctx.estimator = estimator
        return sign_of(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * sign_gradient(x, ctx.estimator), None


def sign_gradient(x: Tensor, estimator: Estimator) -> Tensor:
    """Return what stands for the derivative of the sign.

    Args:
        x: any shape.
        estimator: "hard_tanh": 1 where |x| <= 1, else 0. "polynomial": 2 - 2 |x| where |x| < 1, else 0.

    Source: Courbariaux et al. 2016, arXiv:1602.02830, equation 4; Liu et al. 2018, arXiv:1808.00278, equation 6.
    """
    if estimator == "hard_tanh":
        return (x.abs() <= 1).to(x.dtype)
    return (2 - 2 * x.abs()).clamp_min(0)


def per_channel(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """Values of each channel (C,), shaped to be broadcast along dimension `dim` of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return values.view(shape)


class Sign(nn.Module):
    """sign(x), or sign(x - shift) with a trained shift for each channel (RSign).

    Args:
        channels: how many shifts; None: none.
        estimator: of the gradient; see `sign_gradient`.
        dim: the dimension of the channels.

    Source: Liu et al. 2020, arXiv:2003.03488, equation 5 (RSign; here a tie gives 1).

    Example:
        >>> Sign()(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([-1.,  1.,  1.])
    """

    shift: nn.Parameter | None

    def __init__(self, channels: int | None = None, *, estimator: Estimator = "hard_tanh", dim: int = 1) -> None:
        super().__init__()
        self.estimator, self.dim = estimator, dim
        self.shift = None if channels is None else nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x - per_channel(self.shift, x, self.dim)
        if not torch.is_grad_enabled():
            return sign_of(x)
        result: Tensor = _SignFunction.apply(x, self.estimator)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        return f"estimator={self.estimator!r}" + ("" if self.shift is None else f", channels={len(self.shift)}")


class ShiftedPReLU(nn.Module):
    """RPReLU: y = x - before + after where x > before, else slope (x - before) + after, all three of each channel.

    Args:
        channels: of the input.
        slope: at first.
        dim: the dimension of the channels.

    Source: Liu et al. 2020, arXiv:2003.03488, equation 6.

    Example:
        >>> ShiftedPReLU(1)(torch.tensor([[-4.0], [2.0]])).detach()
        tensor([[-1.],
                [ 2.]])
    """

    def __init__(self, channels: int, *, slope: float = 0.25, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.before, self.after = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), slope))

    def forward(self, x: Tensor) -> Tensor:
        before, after, slope = (per_channel(p, x, self.dim) for p in (self.before, self.after, self.slope))
        moved = x - before
        return torch.where(moved > 0, moved, slope * moved) + after


class BinaryLinear(nn.Linear):
    """A linear layer on the signs of its inputs. The module's docstring has its arithmetic.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is one.
        norm: "batch": a batch norm of the inputs (N, I) before the sign; "shift": one of powers of two.
        shift: whether the sign has a trained shift for each input.
        estimator: of the gradient of the sign.
        input_scale: whether the outputs are scaled by the mean size of the inputs.

    Example:
        >>> layer = BinaryLinear(3, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -0.5, 0.5]]))
        >>> layer(torch.tensor([[0.1, -3.0, 0.0]])).detach()
        tensor([[1.5000]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        norm: Norm = "none",
        shift: bool = False,
        estimator: Estimator = "hard_tanh",
        input_scale: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.norm: nn.Module = {"none": nn.Identity, "batch": nn.BatchNorm1d, "shift": ShiftNorm1d}[norm](in_features)
        self.sign = Sign(in_features if shift else None, estimator=estimator, dim=-1)
        self.input_scale = input_scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        y = F.linear(self.sign(z), self.weight)
        if self.input_scale:
            y = y * z.abs().mean(-1, keepdim=True)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_scale={self.input_scale}"


class BinaryConv2d(nn.Conv2d):
    """A convolution of the signs of its inputs, padded by +1. The module's docstring has its arithmetic.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as of
            `torch.nn.Conv2d`.
        norm: "batch": a batch norm of the inputs before the sign; "shift": one of powers of two.
        shift: whether the sign has a trained shift for each input channel.
        estimator: of the gradient of the sign.
        input_scale: whether the outputs are scaled by the mean size of the inputs that they read.

    Example:
        >>> layer = BinaryConv2d(1, 1, 3, padding=1, bias=False)
        >>> torch.nn.init.ones_(layer.weight).shape
        torch.Size([1, 1, 3, 3])
        >>> layer(torch.full((1, 1, 2, 2), -0.1)).detach().flatten()
        tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        *args: Any,
        norm: Norm = "none",
        shift: bool = False,
        estimator: Estimator = "hard_tanh",
        input_scale: bool = False,
        **named: Any,
    ) -> None:
        super().__init__(*args, **named)
        kind = {"none": nn.Identity, "batch": nn.BatchNorm2d, "shift": ShiftNorm2d}[norm]
        self.norm: nn.Module = kind(self.in_channels)
        self.sign = Sign(self.in_channels if shift else None, estimator=estimator)
        self.input_scale = input_scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        y = self._product(self.sign(z), self.weight, outside=1.0)
        if self.input_scale:
            y = y * self._means(z.abs())
        return y if self.bias is None else y + per_channel(self.bias, y, 1)

    def _product(self, x: Tensor, weight: Tensor, *, outside: float) -> Tensor:
        """The convolution of x without bias; outside: what counts beyond the image in the padding mode "zeros"."""
        if any(self._reversed_padding_repeated_twice):
            zeros = self.padding_mode == "zeros"
            mode, value = ("constant", outside) if zeros else (self.padding_mode, None)
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode, value=value)
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, groups)

    def _means(self, sizes: Tensor) -> Tensor:
        """K: the mean of the sizes of what each output reads, shape (N, 1, H', W'), or of each channel of groups."""
        by_group = sizes.reshape(sizes.shape[0], self.groups, -1, *sizes.shape[2:]).mean(2)
        kernel = sizes.new_full((self.groups, 1, *self.kernel_size), 1 / (self.kernel_size[0] * self.kernel_size[1]))
        means = self._product(by_group, kernel, outside=0.0)
        return means if self.groups == 1 else means.repeat_interleave(self.out_channels // self.groups, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_scale={self.input_scale}"  # type: ignore[no-untyped-call]


class FixedPointInput(nn.Module):
    """Inputs rounded to fixed-point numbers: step * clamp(round(x / step), -2^(bits-1), 2^(bits-1) - 1).

    The gradient passes straight through.

    Args:
        bits: of a number.
        step: between two numbers, a power of two.

    Example:
        >>> FixedPointInput(8, 0.5)(torch.tensor([0.3, 1.6, 99.0]))
        tensor([ 0.5000,  1.5000, 63.5000])
    """

    def __init__(self, bits: int, step: float) -> None:
        super().__init__()
        self.bits, self.step = bits, step

    def forward(self, x: Tensor) -> Tensor:
        half = 1 << (self.bits - 1)
        rounded = self.step * (x / self.step).round().clamp(-half, half - 1)
        return rounded if not torch.is_grad_enabled() else straight_through(rounded.detach(), x)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, step={self.step:g}"


class Repeat(nn.Module):
    """The channels (dimension 1) of the input, several times in a row.

    Example:
        >>> Repeat(2)(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2., 1., 2.]])
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x if self.times == 1 else torch.cat([x] * self.times, 1)


class BinaryBlock(nn.Module):
    """norm(layer(x)) + shortcut(x): real values go around a binary layer.

    Args:
        layer: a binary layer.
        norm: a batch norm of its outputs.
        shortcut: gives the shape of the outputs.

    Source: Liu et al. 2018, arXiv:1808.00278, section 3.1; Liu et al. 2020, arXiv:2003.03488, figure 4 (repeated
    channels and average pools).

    Example:
        >>> block = BinaryBlock(BinaryLinear(2, 2), nn.BatchNorm1d(2), nn.Identity()).eval()
        >>> block(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.shortcut = layer, norm, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) + self.shortcut(x)  # type: ignore[no-any-return]


BinaryLayer = BinaryLinear | BinaryConv2d


def binary_weight(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Split a finished binary weight into signs and scales.

    Args:
        weight: shape (O, ...), plain.

    Returns:
        Signs as bool of the same shape, True for +1, and scales (O,) > 0, so that weight = scale * (2 sign - 1)
        exactly; None where a row has zeros or more than one absolute value.

    Example:
        >>> signs, scales = binary_weight(torch.tensor([[0.5, -0.5], [2.0, 2.0]]))
        >>> signs.tolist(), scales.tolist()
        ([[True, False], [True, True]], [0.5, 2.0])
        >>> binary_weight(torch.tensor([[0.5, 0.0]])) is None
        True
    """
    rows = weight.detach().flatten(1)
    scales = rows[:, 0].abs()
    if not bool((rows.abs() == scales[:, None]).all()) or not bool((scales > 0).all()):
        return None
    return weight.detach() > 0, scales
