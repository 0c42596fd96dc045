"""Weight reconstruction (He et al. 2017): after pruning, fit the weights of the following layers to their old outputs.

Least squares, one layer after the other, each on the inputs that it now has: the asymmetric form, in which the error of
one layer is corrected by the next. No labels and no training.

Source: He et al. 2017, arXiv:1707.06168, section 3.1 and 3.2 (reconstruction behind pruned channels).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.calibration.least_squares import Normal, add_correction, add_system
from gossamer.core.placement import evaluating, place
from gossamer.graph.tracer import LAYER_OPS, Trace

ROWS = 2  # rows of a least-squares problem for each of its unknowns, where the data has so many
LEAST, MOST = 4, 64  # batches
# More than the default: nearly equal features give large weights of opposite signs, which train badly afterwards.
DAMPENING = 1e-3

# What a layer's output lacks besides its own error: of the pruned network, the original and a batch.
Missing = Callable[[nn.Module, nn.Module, Any], Tensor]
Track = Callable[[Iterable[str]], Iterable[str]]


def reading_layers(t: Trace, modules: Collection[str]) -> list[str]:
    """The layers with weights, by name in the order of the run, that read what these modules make: directly, or with
    nothing but operations without weights between. The modules themselves are not among them."""
    changed, found = set[int](), list[str]()
    # `changed`: tensors that carry what the modules produce, through operations without weights. The first weighted
    # operation on each way reads them, and ends the way.
    for op in t.ops:
        reads = any(ref.index in changed for ref in op.refs())
        inside = not set(modules).isdisjoint(op.modules)
        weighted = op.name in LAYER_OPS and bool(op.modules)
        if inside or (reads and not weighted):
            changed.update(out.index for out in op.outs if out is not None)
        elif reads:
            found.append(op.modules[-1])
    return list(dict.fromkeys(found))


def layers_of(t: Trace) -> list[str]:
    """The layers with weights, by name in the order of the run."""
    return list(dict.fromkeys(op.modules[-1] for op in t.ops if op.name in LAYER_OPS and op.modules))


def owners(model: nn.Module, parameter: Tensor) -> int:
    """How many places of the network have this parameter."""
    return sum(parameter is own for module in model.modules() for own in module._parameters.values())


@torch.no_grad()
def reconstruct_weights(
    model: nn.Module,
    original: nn.Module,
    layers: Sequence[str],
    loader: Iterable[Any],
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    track: Track = iter,
) -> list[str]:
    """Fit the outputs of layers of `model` to those of the same layers of `original`, in place.

    Layers that a run calls more than once or not at all, and those with a shared weight, stay as they are.

    Args:
        model: the pruned network.
        original: the network before.
        layers: linear layers and convolutions, in the order of the run.
        loader: data to fit on; as much is used as the largest problem needs.
        kept: the output channels of the original that the layer still has, by layer; None for all.
        track: wraps the layers, for a progress bar.

    Returns:
        The layers that were reconstructed.
    """
    reconstructed = []
    for name in track(layers):
        layer = model.get_submodule(name)
        if isinstance(layer, Layer) and owners(model, layer.weight) == 1:
            system = layer_system(model, original, name, loader, (kept or {}).get(name))
            if system is not None:
                add_correction(layer, system, dampening=DAMPENING)
                reconstructed.append(name)
    return reconstructed


@torch.no_grad()
def layer_system(
    model: nn.Module,
    original: nn.Module,
    name: str,
    loader: Iterable[Any],
    kept: Sequence[int] | None,
    missing: Missing | None = None,
) -> Normal | None:
    """The normal equations of the correction that brings a layer's outputs to those of the original.

    Args:
        model: the pruned network.
        original: the network before.
        name: of the layer.
        loader: data; as much is used as the problem needs.
        kept: the output channels of the original that the layer still has; None for all.
        missing: what the layer's output has to make up for besides, from the pruned network, the original and a batch.

    Returns:
        The system; None where a whole run does not call the layer once.
    """
    layer, before = model.get_submodule(name), original.get_submodule(name)
    assert isinstance(layer, Layer)
    system, rows = None, 0
    for number, batch in enumerate(islice(loader, MOST)):
        # Enough equations: with twice as many rows as unknowns, noise of the data does not dominate the solution.
        if number >= LEAST and rows >= ROWS * layer.weight[0].numel():
            break
        x, x_before = (layer_input(one, name, batch, whole=number == 0) for one in (model, original))
        if x is None or x_before is None:
            return None
        wanted = before(x_before)
        if kept is not None:
            channel = wanted.dim() - 1 if isinstance(layer, nn.Linear) else 1
            wanted = wanted.index_select(channel, torch.as_tensor(kept, device=wanted.device))
        # The input of the pruned network next to the output of the original one: errors from before are corrected here.
        rest = wanted - layer(x)
        system = add_system(system, layer, x, rest if missing is None else rest + missing(model, original, batch))
        rows += wanted.numel() // len(layer.weight)
    return system


class _Enough(Exception):
    """Ends a run whose rest is not needed."""


def layer_input(model: nn.Module, name: str, batch: Any, *, whole: bool) -> Tensor | None:
    """What a layer gets in a run; None where a whole run does not call it once."""
    seen = list[Tensor]()

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())  # a copy: what comes later may work in place
        if not whole:
            raise _Enough

    handle = model.get_submodule(name).register_forward_pre_hook(note)
    try:
        with evaluating(model):
            model(*place(model, batch))
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 else None
