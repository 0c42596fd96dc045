"""Operators with weights, as the layers of PyTorch that compute the same: the methods find them there."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.onnx_import.operators.shapes import pad_axes
from gossamer.onnx_import.registry import Built, Function, OnnxNode, operator
from gossamer.onnx_import.values import as_tensor

CONVOLUTIONS: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOLS: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGES: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Padded(nn.Module):
    """Padding that differs between the two ends of an axis, or depends on the input's size, before a layer."""

    def __init__(self, layer: nn.Module, pads: list[int] | None, window: "Window", value: float = 0.0) -> None:
        super().__init__()
        self.layer, self.pads, self.window, self.value = layer, pads, window, value

    def forward(self, x: Tensor) -> Any:
        pads = self.pads if self.pads is not None else self.window.same(x.shape[2:])
        rank = len(pads) // 2
        sides = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
        return self.layer(pad_axes(x, pads=sides, value=self.value, mode="constant"))


class Window:
    """Kernel, stride, dilation and padding of a convolution or pool.

    Attributes:
        symmetric: padding of each axis where it is the same at both ends and known, else None.
        pads: the padding before all axes, then after them; None where it depends on the input's size.
    """

    def __init__(self, node: OnnxNode, kernel: tuple[int, ...]) -> None:
        rank = len(kernel)
        self.kernel = kernel
        self.stride = tuple(node.get("strides", [1] * rank))
        self.dilation = tuple(node.get("dilations", [1] * rank))
        self.auto = node.get("auto_pad", "NOTSET")
        pads = list(node.get("pads", [0] * (2 * rank))) if self.auto == "NOTSET" else [0] * (2 * rank)
        self.pads: list[int] | None = None if self.auto.startswith("SAME") else pads
        if self.pads is None and all(s == 1 for s in self.stride):
            totals = [d * (k - 1) for k, d in zip(self.kernel, self.dilation)]
            self.pads = self._shared(totals)
        even = self.pads is not None and self.pads[:rank] == self.pads[rank:]
        self.symmetric = tuple(self.pads[:rank]) if even and self.pads is not None else None

    def same(self, sizes: Any) -> list[int]:
        """The padding with which the output has the size of the input over the stride, rounded up."""
        totals = []
        for n, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation):
            totals.append(max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0))
        return self._shared(totals)

    def _shared(self, totals: list[int]) -> list[int]:
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return large + small if self.auto == "SAME_LOWER" else small + large


def tensor_of(node: OnnxNode, index: int) -> Tensor:
    """A constant input as a tensor of its own."""
    return as_tensor(node.value(index)).detach().clone()


def fill_layer(layer: nn.Module, **tensors: Tensor | None) -> None:
    """Give a layer its weights, in their own precision."""
    for name, tensor in tensors.items():
        if tensor is not None:
            old = getattr(layer, name)
            kept = nn.Parameter(tensor) if isinstance(old, nn.Parameter) else tensor
            setattr(layer, name, kept)


@operator("Conv")
def build_conv(node: OnnxNode) -> Built:
    if not node.known(1):
        return _convolution_of_values(node)
    weight, bias = tensor_of(node, 1), tensor_of(node, 2) if node.has(2) else None
    rank, groups = weight.dim() - 2, int(node.get("group", 1))
    if rank not in CONVOLUTIONS:
        node.refuse(f"a convolution over {rank} axes is not known")
    window = Window(node, tuple(weight.shape[2:]))
    with torch.device("meta"):
        layer = CONVOLUTIONS[rank](
            weight.shape[1] * groups,
            weight.shape[0],
            window.kernel,
            window.stride,
            window.symmetric or 0,
            window.dilation,
            groups,
            bias=bias is not None,
        )
    fill_layer(layer, weight=weight, bias=bias)
    whole = layer if window.symmetric is not None else Padded(layer, window.pads, window)
    return Built(whole, node.inputs[:1])


def _convolution_of_values(node: OnnxNode) -> Built:
    kernel = node.get("kernel_shape")
    if kernel is None:
        node.refuse("its weight is computed in the graph and no kernel_shape is given")
    window = Window(node, tuple(kernel))
    if window.symmetric is None:
        node.refuse("its weight is computed in the graph and its padding is not symmetric")
    call = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    options = {"stride": window.stride, "padding": window.symmetric, "dilation": window.dilation}
    return Built(Function(call, **options, groups=int(node.get("group", 1))), [name for name in node.inputs if name])


@operator("ConvTranspose")
def build_conv_transpose(node: OnnxNode) -> Built:
    weight, bias = tensor_of(node, 1), tensor_of(node, 2) if node.has(2) else None
    rank, groups = weight.dim() - 2, int(node.get("group", 1))
    window = Window(node, tuple(weight.shape[2:]))
    if window.symmetric is None or "output_shape" in node.attributes or rank not in TRANSPOSED:
        node.refuse("padding that is not symmetric, or a given output shape, is not known")
    with torch.device("meta"):
        layer = TRANSPOSED[rank](
            weight.shape[0],
            weight.shape[1] * groups,
            window.kernel,
            window.stride,
            window.symmetric,
            tuple(node.get("output_padding", [0] * rank)),
            groups,
            bias is not None,
            window.dilation,
        )
    fill_layer(layer, weight=weight, bias=bias)
    return Built(layer, node.inputs[:1])


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over axis 1 of inputs of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:  # the file has said of which
        pass


@operator("BatchNormalization")
def build_batch_norm(node: OnnxNode) -> Built:
    if len([name for name in node.outputs if name]) > 1:
        node.refuse("it is in training mode; export the network in eval mode")
    weight, bias, mean, var = (tensor_of(node, i).reshape(-1) for i in range(1, 5))
    momentum = 1 - float(node.get("momentum", 0.9))
    layer = AnyBatchNorm(len(weight), float(node.get("epsilon", 1e-5)), momentum)
    fill_layer(layer, weight=weight, bias=bias, running_mean=mean, running_var=var)
    return Built(layer, node.inputs[:1])


@operator("InstanceNormalization")
def build_instance_norm(node: OnnxNode) -> Built:
    scale, bias = tensor_of(node, 1), tensor_of(node, 2)
    layer = nn.GroupNorm(len(scale), len(scale), float(node.get("epsilon", 1e-5)))
    fill_layer(layer, weight=scale, bias=bias)
    return Built(layer, node.inputs[:1])


@operator("LayerNormalization")
def build_layer_norm(node: OnnxNode) -> Built:
    if int(node.get("axis", -1)) < 0 and -int(node.get("axis", -1)) != as_tensor(node.value(1)).dim():
        node.refuse("its scale has not the shape of the axes that it normalizes")
    weight = tensor_of(node, 1)
    layer = nn.LayerNorm(tuple(weight.shape), float(node.get("epsilon", 1e-5)), bias=node.has(2))
    fill_layer(layer, weight=weight, bias=tensor_of(node, 2) if node.has(2) else None)
    return Built(layer, node.inputs[:1])


@operator("LRN")
def build_lrn(node: OnnxNode) -> Built:
    options = {name: float(node.get(name, usual)) for name, usual in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}
    layer = nn.LocalResponseNorm(int(node.get("size")), options["alpha"], options["beta"], options["bias"])
    return Built(layer, node.inputs[:1])


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with this weight (out, in)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    fill_layer(layer, weight=weight.contiguous(), bias=bias)
    return layer


@operator("Gemm")
def build_gemm(node: OnnxNode) -> Built:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if not node.known(1) or node.get("transA", 0) or (node.has(2) and not node.known(2)):
        options = {"alpha": alpha, "beta": beta, "turn": (bool(node.get("transA", 0)), bool(node.get("transB", 0)))}
        return Built(Function(_gemm, **options), [name for name in node.inputs if name])
    weight = tensor_of(node, 1) if node.get("transB", 0) else tensor_of(node, 1).t()
    bias = None
    if node.has(2):
        bias = beta * as_tensor(node.value(2), weight).to(weight.dtype)
        if bias.dim() > 1 and bias.shape[0] != 1:
            node.refuse("its bias differs between rows")
        bias = bias.reshape(-1).expand(weight.shape[0]).clone()
    return Built(linear_layer(alpha * weight, bias), node.inputs[:1])


def _gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha: float, beta: float, turn: tuple[bool, bool]) -> Tensor:
    """`Gemm` of values."""
    product = alpha * ((a.t() if turn[0] else a) @ (b.t() if turn[1] else b))
    return product if c is None else product + beta * as_tensor(c, product)


@operator("MatMul")
def build_matmul(node: OnnxNode) -> Built:
    if node.known(1) and as_tensor(node.value(1)).dim() == 2 and as_tensor(node.value(1)).is_floating_point():
        return Built(linear_layer(tensor_of(node, 1).t(), None), node.inputs[:1])
    return Built(Function(_matmul), [name for name in node.inputs if name])


def _matmul(a: Any, b: Any) -> Any:
    """`MatMul`."""
    a = as_tensor(a)
    return a @ as_tensor(b, a)


@operator("MaxPool")
def build_max_pool(node: OnnxNode) -> Built:
    if len([name for name in node.outputs if name]) > 1:
        node.refuse("the places of the largest values are not known")
    window = Window(node, tuple(node.get("kernel_shape")))
    rank, roof = len(window.kernel), bool(node.get("ceil_mode", 0))
    options: dict[str, Any] = {
        "kernel_size": window.kernel,
        "stride": window.stride,
        "dilation": window.dilation,
        "ceil_mode": roof,
    }
    fits = window.symmetric is not None and all(2 * p <= k for p, k in zip(window.symmetric, window.kernel))
    if roof and not fits:
        node.refuse("padding that is not symmetric is not known where sizes are rounded up")
    pool = Function(POOLS[rank], **options, padding=window.symmetric if fits else 0)
    whole = pool if fits else Padded(pool, window.pads, window, value=-torch.inf)
    return Built(whole, node.inputs[:1])


@operator("AveragePool")
def build_average_pool(node: OnnxNode) -> Built:
    window = Window(node, tuple(node.get("kernel_shape")))
    rank, roof, counted = len(window.kernel), bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if any(d != 1 for d in window.dilation):
        node.refuse("a dilated mean is not known")
    options: dict[str, Any] = {"kernel_size": window.kernel, "stride": window.stride, "ceil_mode": roof}
    fits = window.symmetric is not None and all(2 * p <= k for p, k in zip(window.symmetric, window.kernel))
    if fits:
        pool = Function(AVERAGES[rank], **options, padding=window.symmetric, count_include_pad=counted)
        return Built(pool, node.inputs[:1])
    if not counted:
        node.refuse("padding that is not symmetric and does not count is not known")
    return Built(Padded(Function(AVERAGES[rank], **options), window.pads, window), node.inputs[:1])
