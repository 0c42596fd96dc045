"""ONNX files of many networks that differ in their widths or weights alone: the graph is exported once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from gossamer.core.outputs import tensors
from gossamer.core.placement import evaluating
from gossamer.core.task import Task
from gossamer.graph.tracer import trace
from gossamer.modules.folding import norms_after, with_norm
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.sessions import open_session

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ALIKE = 1e-3  # largest difference over the largest output, in float32


@dataclass(frozen=True)
class Exported:
    """A graph that was exported, of a network with these layers. norms: batch norms that the export folds, by the layer
    before them. transposed: nodes whose weight is the transpose of their layer's."""

    layers: list[tuple[str, type]]
    proto: onnx.ModelProto
    norms: Mapping[str, str]
    transposed: frozenset[str]


@dataclass
class Exports:
    """Writes float32 ONNX files. A network with the layers of one that was exported before, or with all but some of its
    blocks, gets that graph with weights of its own, without the exporter, which takes seconds; the outputs are compared
    with the network's, and where they differ, the network is exported.

    Example: a cost_model of one job writes all its candidates with the same `Exports`.
    """

    task: Task
    known: list[Exported] = field(default_factory=list)

    def write(self, model: nn.Module, path: Path) -> Path:
        """The file of this network.

        Args:
            model: any network that can be exported; it is left alone.
            path: of the file to write.

        Returns:
            The path.

        Raises:
            BadInput: the network cannot be exported.
        """
        example, layers = self.task.example_inputs, exported_layers(model)
        for base in self.known:
            if base.layers == layers and _rewritten(base, model, example, path):
                return path
        for base in list(self.known):
            shorter = without_blocks(base, layers)
            if shorter is not None and _rewritten(shorter, model, example, path):
                self.known.append(shorter)
                return path
        export_onnx(model, example, path)
        self._note(model, layers, path)
        return path

    def _note(self, model: nn.Module, layers: list[tuple[str, type]], path: Path) -> None:
        """Keep the graph for later networks with the same layers, where its weights are known."""
        proto = onnx.load(path)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        modules, transposed = dict(model.named_modules()), set[str]()
        for node in _weighted(proto):
            weight = getattr(modules.get(node.name), "weight", None)
            if not isinstance(weight, Tensor) or node.input[1] not in shapes:
                return
            if tuple(weight.shape) != shapes[node.input[1]]:
                transposed.add(node.name)
        norms = norms_after(model, trace(model, self.task.example_inputs))
        self.known.append(Exported(layers, proto, norms, frozenset(transposed)))


def exported_layers(model: nn.Module) -> list[tuple[str, type]]:
    """Names and classes of all modules."""
    return [(name, type(module)) for name, module in model.named_modules()]


def _weighted(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type in WEIGHTED]


def _rewritten(base: Exported, model: nn.Module, example: tuple[Any, ...], path: Path) -> bool:
    """Whether the graph with the weights of this network computes what the network does; then it is in the file."""
    try:
        write_onnx(with_weights(base, model), path)
        return _agrees(path, model, example)
    except Exception:  # another graph: the exporter says what is wrong, if anything is
        return False


def without_blocks(base: Exported, layers: list[tuple[str, type]]) -> Exported | None:
    """The graph of a network with these layers, if all that they lack are blocks that give what they are given.

    The nodes of a block are known by their names, which begin with the module's; what reads the block's output reads
    its input then.

    Args:
        base: a graph that was exported.
        layers: of the other network.

    Returns:
        The shorter graph; None where the networks differ otherwise, or a block has other than one input and one output.
    """
    now, before = dict(layers), dict(base.layers)
    removed = [name for name, kind in now.items() if before.get(name) not in (None, kind)]
    inside = [name for name in before if any(name.startswith(f"{block}.") for block in removed)]
    others = [one for one in base.layers if one[0] not in inside and one[0] not in removed]
    if not removed or [one for one in layers if one[0] not in removed] != others:
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(base.proto)
    if not all(_bypassed(proto.graph, block) for block in removed):
        return None
    kept = {name: norm for name, norm in base.norms.items() if name not in inside}
    return Exported(layers, proto, kept, base.transposed - set(inside))


def _bypassed(graph: onnx.GraphProto, block: str) -> bool:
    """Take the nodes of a block out of a graph; False where it has not one input and one output."""
    own = [node for node in graph.node if node.name == block or node.name.startswith((f"{block}.", f"{block}:"))]
    made = {name for node in own for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    given = {name for node in own for name in node.input if name and name not in made and name not in stored}
    rest = [node for node in graph.node if node not in own]
    taken = {name for node in rest for name in node.input if name in made}
    if len(given) != 1 or len(taken) != 1 or made & {output.name for output in graph.output}:
        return False
    [before], [after] = given, taken
    del graph.node[:]
    for node in rest:
        for place, name in enumerate(node.input):
            if name == after:
                node.input[place] = before
    graph.node.extend(rest)
    return True


def with_weights(base: Exported, model: nn.Module) -> onnx.ModelProto:
    """The graph with the weights and biases of this network, batch norms folded as in the graph."""
    proto, modules = onnx.ModelProto(), dict(model.named_modules())
    proto.CopyFrom(base.proto)
    for number, node in enumerate(_weighted(proto)):
        layer: Any = modules[node.name]
        if node.name in base.norms:
            layer = with_norm(layer, modules[base.norms[node.name]])
        weight = layer.weight.detach()
        arrays = [weight.t() if node.name in base.transposed else weight]
        if len(node.input) > 2 and node.input[2]:
            arrays.append(layer.bias.detach())
        for place, array in enumerate(arrays, 1):
            node.input[place] = f"w{number}_{place}"
            proto.graph.initializer.append(_tensor(array, node.input[place]))
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = layer.groups
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def _tensor(values: Tensor, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values.float().cpu().numpy()), name)


@torch.no_grad()
def _agrees(path: Path, model: nn.Module, example: tuple[Any, ...]) -> bool:
    session = open_session(path, threads=1)
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), example, strict=True)}
    with evaluating(model):
        expected = [leaf.numpy() for leaf in tensors(model(*example))]
    found = session.run(None, feed)
    return len(found) == len(expected) and all(
        one.shape == other.shape and np.abs(one - other).max() <= ALIKE * max(np.abs(other).max(), 1e-6)
        for one, other in zip(found, expected)
    )
