"""Second moments of the inputs of layers, gathered in one run of the data and in bounded memory."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, input_rows, layer_inputs, sample_chunks
from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput


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
            # All inputs share the first dimension; a network without tensors counts as one sample.
            size = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), 1)
            model(*inputs)
            if original is not None:
                original(*inputs)
            for name, given in xs.items():
                layer: Any = model.get_submodule(name)
                samples[name] += size
                # A layer that is called several times sums the moments of its calls: they share the weights.
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
        # The products are in the layer's own precision, which is fast; the sum over batches is in float64.
        same = (rows_x.mT @ rows_x).double()
        cross = same
        if z is not x:
            cross = (input_rows(layer, part_z).transpose(0, 1).flatten(1, 2).mT @ rows_x).double()
        if name in sums:
            before = sums[name]
            same, cross = before[0] + same, before[1] + cross
        sums[name] = (same, cross)
