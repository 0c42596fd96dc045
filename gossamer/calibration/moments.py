"""What goes into a layer: its inputs as rows of a matrix product, and their second moments in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from gossamer.core.task import split
from gossamer.errors import BadInput

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

# Unfolded inputs are made for so many samples at a time that they take about this much.
UNFOLDED_BYTES = 64 << 20


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """The rows that the layer multiplies with its weights, shape (samples, groups, positions, D).

    D runs as `weight.flatten(1)` does: over input features, or over input channels of a group times kernel positions.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(x.shape[0] if x.dim() > 1 else 1, 1, -1, layer.in_features)
    spatial = len(layer.kernel_size)
    if x.dim() == spatial + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation)):
        x = x.unfold(dim + 2, gap * (size - 1) + 1, step)[..., ::gap]
    n, channels, positions = x.shape[0], x.shape[1], x.shape[2 : 2 + spatial].numel()
    x = x.reshape(n, layer.groups, channels // layer.groups, positions, -1)
    return x.transpose(2, 3).reshape(n, layer.groups, positions, -1)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """An output of the layer, or its gradient, beside `input_rows`: shape (samples, groups, positions, O / groups)."""
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
    per_sample = max(tensors[0][0].numel() * window * 4, 1)
    return zip(*(torch.split(t, max(UNFOLDED_BYTES // per_sample, 1)) for t in tensors))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def place(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The inputs of a batch on the model's device."""
    device = device_of(model)
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in split(batch)[0])


def place_whole(model: nn.Module, batch: Any) -> Any:
    """A batch on the model's device, as it is."""
    device = device_of(model)
    return apply_to_collection(batch, Tensor, lambda x: x.to(device))


@torch.no_grad()
def call_order(model: nn.Module, example_inputs: tuple[Any, ...], layers: Sequence[str]) -> list[str]:
    """The layers in the order in which a run calls them first. Raises BadInput for one that it never calls."""
    with evaluating(model), layer_inputs(model, layers) as seen:
        model(*place(model, (example_inputs, None)))
    for name in layers:
        if name not in seen:
            raise BadInput(f"layer {name!r} is not called in a run on the example inputs; list it under `ignore`")
    return list(seen)


@torch.no_grad()
def input_moments(
    model: nn.Module, layers: Sequence[str], loader: Iterable[Any], batches: int | None = None
) -> dict[str, Tensor]:
    """X^T X of every layer's input rows, shape (groups, D, D), float64: summed over positions, mean over samples.

    With it, sum(dW @ moments * dW) is the mean squared change of the layer's outputs that a change dW of its weights
    makes. Memory: one batch's activations and the moments, whatever the loader's length.
    """
    return {name: same for name, (same, _) in moments(model, None, layers, loader, batches).items()}


@torch.no_grad()
def moments(
    model: nn.Module,
    original: nn.Module | None,
    layers: Sequence[str],
    loader: Iterable[Any],
    batches: int | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(X^T X, Z^T X) of every layer, X its input rows in `model`, Z those in `original` (X itself where it is None)."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    samples = dict.fromkeys(layers, 0)
    others = original if original is not None else nn.Identity()
    names = layers if original is not None else ()
    with evaluating(model), evaluating(others), layer_inputs(model, layers) as xs, layer_inputs(others, names) as zs:
        for batch in islice(loader, batches):
            inputs = place(model, batch)
            size = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), 1)
            model(*inputs)
            if original is not None:
                original(*inputs)
            for name, given in xs.items():
                layer: Any = model.get_submodule(name)
                samples[name] += size
                for x, z in zip(given, zs.get(name, given), strict=True):
                    _accumulate(sums, name, layer, x, z)
            xs.clear()
            zs.clear()
    for name in layers:
        if name not in sums:
            raise BadInput(
                f"layer {name!r} saw no input: the calibration loader gave no batch, or a run skips the layer"
            )
    return {name: (a / samples[name], b / samples[name]) for name, (a, b) in sums.items()}


def _accumulate(sums: dict[str, tuple[Tensor, Tensor]], name: str, layer: Layer, x: Tensor, z: Tensor) -> None:
    for part_x, part_z in sample_chunks(layer, x, z):
        rows_x = input_rows(layer, part_x).transpose(0, 1).flatten(1, 2)
        same = (rows_x.mT @ rows_x).double()
        cross = same
        if z is not x:
            cross = (input_rows(layer, part_z).transpose(0, 1).flatten(1, 2).mT @ rows_x).double()
        if name in sums:
            before = sums[name]
            same, cross = before[0] + same, before[1] + cross
        sums[name] = (same, cross)
