"""Even ranges across the channels of a network's activations, before a runtime's own quantizer rounds them."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from gossamer.core.outputs import tensors
from gossamer.edits.swap import swap
from gossamer.graph.tracer import trace
from gossamer.modules.folding import norms_after, with_norm
from gossamer.ptq import activation_ranges
from gossamer.ptq.equalization import channel_values, equalize
from gossamer.ptq.weights import Weights
from gossamer.runtime.onnx_export import export_onnx

ALIKE = 1e-3  # largest difference of an output over its largest value


@torch.no_grad()
def even_network(model: nn.Module, samples: Sequence[tuple[Tensor, ...]], *, threads: int = 1) -> nn.Module | None:
    """A network that computes the same with more even ranges: `equalize`, in the network's own modules.

    Args:
        model: without constraints, in eval mode on the CPU; it is not touched.
        samples: inputs, one sample each, that ranges are taken from.
        threads: of the runs that take them.

    Returns:
        The other network, with batch norms in the layers before them; None where no channels can be scaled, where the
        layers of the exported graph are not those of the network, or where the outputs would differ.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, groups=2), nn.Flatten())
        >>> x = torch.rand(1, 1, 4, 4)
        >>> even = even_network(layers.eval(), [(x,)])
        >>> torch.allclose(even(x), layers(x), atol=1e-6)
        True
    """
    folded = folded_norms(model, samples[0])
    with tempfile.TemporaryDirectory() as place:
        network = onnx.load(export_onnx(folded, samples[0], Path(place) / "net.onnx"))
        names = channel_values(network)
        if not names:
            return None
        batches = [x[0] if len(x) == 1 else (x, None) for x in samples]
        largest = activation_ranges.channel_ranges(network, names, batches, Path(place), threads=threads)
    if not _take_weights(folded, network.graph, equalize(network, largest).graph):
        return None
    return folded if all(_alike(model, folded, one) for one in samples) else None


def folded_norms(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy with its batch norms in the layers before them, where that is exact."""
    copied, modules = copy.deepcopy(model), dict(model.named_modules())
    new: dict[str, nn.Module] = {}
    for layer, norm in norms_after(model, trace(model, inputs)).items():
        new |= {layer: with_norm(modules[layer], modules[norm]), norm: nn.Identity()}
    return swap(copied, new) if new else copied


def _take_weights(model: nn.Module, before: onnx.GraphProto, after: onnx.GraphProto) -> bool:
    """Write what was scaled in the graph into the modules of the same names; False where a module is not known."""
    modules, old, new = dict(model.named_modules()), Weights(before), Weights(after)
    for one, other in zip(before.node, after.node, strict=True):
        if not old.linear(one):
            continue
        layer: Any = modules.get(one.name)
        for place, parameter in ((1, "weight"), (2, "bias")):
            if place >= len(one.input) or one.input[place] not in old.tensors:
                continue
            was, now = (
                torch.from_numpy(numpy_helper.to_array(part.tensors[node.input[place]]).copy())
                for part, node in ((old, one), (new, other))
            )
            if torch.equal(was, now):
                continue
            held = getattr(layer, parameter, None)
            if not isinstance(held, Tensor):
                return False
            if was.shape != held.shape or not torch.allclose(was, held, atol=1e-6):
                return False
            held.copy_(now)
    return True


def _alike(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    return all(
        float((a - b).abs().max()) <= ALIKE * max(float(a.abs().max()), 1e-6)
        for a, b in zip(tensors(one(*inputs)), tensors(other(*inputs)), strict=True)
    )
