"""Kernel factorization into small kernels (VGG, Inception-v3): replace a large kernel by a stack of small ones.

What it does: replaces a k x k convolution (k odd) by a stack of (k - 1) / 2 convolutions of 3 x 3, or any k x k by one
of 1 x k and one of k x 1. There is no activation between them, so a kernel that is such a composition is reproduced.
The new kernels are fitted to the old one, then to the old outputs on calibration data, without labels.
Cost: "3x3": `iterations` of L-BFGS on the kernel, each about k^2 C H N multiply-adds; "1xn": one singular value
decomposition. Then two runs of the calibration data and `steps` runs of single batches.
When it fails: 3 x 3 kernels have no smaller stack; 1 x 3 and 3 x 1 save a third at most.
Equation: K[n, c, t] = sum_{h, v} second[n, h, v] first[h, c, t - v]; two 3 x 3 for 5 x 5 take 18 / 25, three for 7 x 7
27 / 49, 1 x k and k x 1 2 / k of the multiply-adds at equal channels.
Source: Simonyan and Zisserman 2014, arXiv:1409.1556, section 2.3; Szegedy et al. 2016, arXiv:1512.00567, section 3.2.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.restructure._rewrite import (
    BlockReplacement,
    Unfit,
    bias_of,
    convolution_like,
    dense_convolution,
    padding_of,
)

Form = Literal["3x3", "1xn"]


def composed(first_HCab: Tensor, second_NHcd: Tensor) -> Tensor:
    """Return the kernel (N, C, a + c - 1, b + d - 1) of the second convolution of the first."""
    more = (second_NHcd.shape[2] - 1, second_NHcd.shape[3] - 1)
    return F.conv2d(first_HCab.transpose(0, 1), second_NHcd.flip(2, 3), padding=more).transpose(0, 1)


def composition(kernels: list[Tensor]) -> Tensor:
    """Return the kernel of a stack, the first convolution first."""
    result = kernels[0]
    for kernel in kernels[1:]:
        result = composed(result, kernel)
    return result


def small_kernels(weight_NCkk: Tensor, channels: int, iterations: int, generator: torch.Generator) -> list[Tensor]:
    """Return 3 x 3 kernels whose composition is near to the weight, float64.

    They start at random kernels that keep the scale of the signal.

    Args:
        weight_NCkk: the kernel.
        channels: between the new convolutions.
        iterations: of L-BFGS.
        generator: of the random start.
    """
    weight = weight_NCkk.double()
    outputs, inputs, size = weight.shape[:3]
    scale = weight.norm().clamp_min(1e-30)
    widths = [inputs, *[channels] * ((size - 3) // 2), outputs]
    kernels = []
    for i, o in pairwise(widths):
        kernel = torch.randn(o, i, 3, 3, generator=generator, dtype=torch.float64) / (9 * i) ** 0.5
        kernels.append(kernel.to(weight.device).requires_grad_())
    optimizer = torch.optim.LBFGS(
        kernels,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    target = weight / scale

    def closure() -> float:
        optimizer.zero_grad()
        loss = (composition(kernels) - target).square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    share = scale ** (1 / len(kernels))
    return [kernel.detach() * share for kernel in kernels]


def row_and_column(weight_NCyx: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return the nearest kernels (H, C, 1, x) and (N, H, y, 1); H is `channels` or the number of directions."""
    n, c, y, x = weight_NCyx.shape
    u, s, v = torch.linalg.svd(weight_NCyx.double().permute(0, 2, 1, 3).reshape(n * y, c * x), full_matrices=False)
    root = s.sqrt()[:channels]
    row = (root[:, None] * v[:channels]).view(-1, c, 1, x)
    column = (u[:, :channels] * root).view(n, y, -1, 1).transpose(1, 2)
    return row, column


def three_by_three(layer: Any, channels: int | None, iterations: int, generator: torch.Generator) -> FittedBlock:
    """Return the stack of 3 x 3 for a convolution. Raises Unfit where there is none.

    All padding is in the first and the stride in the last convolution, so that the stack sees the same borders.
    """
    layer, dense = dense_convolution(layer, planar=True), layer.weight.detach()
    size = layer.kernel_size[0]
    if size % 2 == 0 or size < 5 or size != layer.kernel_size[1]:
        raise Unfit(f"its kernel is {'x'.join(map(str, layer.kernel_size))}; a stack of 3x3 makes 5x5, 7x7, 9x9, ...")
    kernels = small_kernels(dense, channels or layer.out_channels, iterations, generator)
    parts = []
    for number, kernel in enumerate(kernels, 1):
        where: dict[str, Any] = {"dilation": layer.dilation}
        if number == 1:
            where |= {"padding": padding_of(layer), "padding_mode": layer.padding_mode}
        end = number == len(kernels)
        where |= {"stride": layer.stride} if end else {}
        parts.append(convolution_like(layer, kernel, bias_of(layer) if end else None, **where))
    return FittedBlock(nn.Sequential(*parts), {str(len(parts) - 1): None})


def one_by_n(layer: Any, channels: int | None) -> FittedBlock:
    """Return 1 x k and k x 1 for a convolution. Raises Unfit where there are none."""
    layer, dense = dense_convolution(layer, planar=True), layer.weight.detach()
    if 1 in layer.kernel_size:
        raise Unfit(f"its kernel is {'x'.join(map(str, layer.kernel_size))} already")
    row, column = row_and_column(dense, channels or layer.out_channels)
    padding, mode = padding_of(layer), layer.padding_mode
    (sy, sx), (dy, dx) = layer.stride, layer.dilation
    first = convolution_like(layer, row, stride=(1, sx), dilation=(1, dx), padding=(0, padding[1]), padding_mode=mode)
    second = convolution_like(
        layer, column, bias_of(layer), stride=(sy, 1), dilation=(dy, 1), padding=(padding[0], 0), padding_mode=mode
    )
    return FittedBlock(nn.Sequential(first, second), {"1": None})


@dataclass(frozen=True, kw_only=True)
class KernelStacking(BlockReplacement):
    """Replace convolutions of large kernels by stacks of small ones.

    The other options are those of `BlockReplacement`.

    Args:
        form: "3x3" or "1xn".
        channels: between the new convolutions; None: as many as outputs.
        iterations: of the fit of 3 x 3 kernels, at least 1.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.KernelStacking(form="1xn", channels=4, layers=("conv2",), steps=2)
        >>> print(method(model, task).edits[0].after)
        1x3 8-4, 3x1 4-16
    """

    example: ClassVar[Settings] = {"form": "1xn", "channels": 4, "steps": 2, "batches": 2, "ignore": ("stem",)}

    form: Form = "3x3"
    channels: Annotated[int | None, Range(1, 1_000_000)] = None
    iterations: Annotated[int, Range(1, 1_000_000)] = 200

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        generator = torch.Generator().manual_seed(context.seed)

        def build(layer: Any) -> FittedBlock:
            if self.form == "1xn":
                return one_by_n(layer, self.channels)
            return three_by_three(layer, self.channels, self.iterations, generator)

        return self.rewrite(model, task, context, build)
