"""What goes into a layer: its inputs as rows of a matrix product, as they are seen in a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

# Unfolded inputs are made for so many samples at a time that they take about this much.
UNFOLDED_BYTES = 64 << 20


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """The rows that the layer multiplies with its weights, shape (samples, groups, positions, D).

    D runs as `weight.flatten(1)` does: over input features, or over input channels of a group times kernel positions.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(x.shape[0] if x.dim() > 1 else 1, 1, -1, layer.in_features)
    # im2col: the windows under the kernel as rows. The layer's output is then rows @ weight.flatten(1).T.
    spatial = len(layer.kernel_size)
    if x.dim() == spatial + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation)):
        # A window of dilated extent at every step, then every `gap`-th element of it: the taps of the kernel.
        x = x.unfold(dim + 2, gap * (size - 1) + 1, step)[..., ::gap]
    n, channels, positions = x.shape[0], x.shape[1], x.shape[2 : 2 + spatial].numel()
    x = x.reshape(n, layer.groups, channels // layer.groups, positions, -1)
    # (samples, groups, positions, channels of a group, taps): flattening the last two matches `weight.flatten(1)`.
    return x.transpose(2, 3).reshape(n, layer.groups, positions, -1)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """An output of the layer, or its gradient, next to `input_rows`: shape (samples, groups, positions, O / groups)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(y.shape[0] if y.dim() > 1 else 1, 1, -1, layer.out_features)
    if y.dim() == len(layer.kernel_size) + 1:
        y = y[None]
    return y.reshape(y.shape[0], layer.groups, layer.out_channels // layer.groups, -1).transpose(2, 3)


def groups_of(layer: Layer) -> int:
    """1, or the groups of a convolution."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def sample_chunks(layer: Layer, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, cut along the samples so that a chunk of the unfolded first one stays small."""
    window = 1 if isinstance(layer, nn.Linear) else torch.Size(layer.kernel_size).numel()
    # Four bytes an element; unfolding multiplies a sample by the taps of the kernel, at stride 1.
    per_sample = max(tensors[0][0].numel() * window * 4, 1)
    return zip(*(torch.split(t, max(UNFOLDED_BYTES // per_sample, 1)) for t in tensors))


@contextmanager
def layer_inputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The inputs of the layers, by name in the order of the calls; a list grows with every call and is the caller's
    to clear."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        return lambda _, inputs: seen.setdefault(name, []).append(inputs[0].detach())

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
