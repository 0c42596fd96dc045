"""The network that an ONNX graph becomes: its nodes as modules, run in their order."""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as _dispatch_modes

from gossamer.errors import BadInput, GossamerError, first_line
from gossamer.onnx_import import operators
from gossamer.onnx_import.opaque import OPAQUE, OWN, TAKEN, is_opaque, opaque
from gossamer.onnx_import.registry import BUILDERS, Built, OnnxNode, unknown_operator
from gossamer.onnx_import.values import (
    MOST_ELEMENTS,
    AtMost,
    TooLarge,
    as_tensor,
    bounded,
    constant_value,
    element_count,
    is_zero,
)
from gossamer.runtime.metadata import Interface

MOST_FOLDED = 1 << 24  # elements of a constant that is computed at import
STATES = {"LSTM": 5, "GRU": 5}  # from which input on there are initial states
DEEPEST = 8  # graphs inside one another
MOVES = ("Expand", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Tile", "Transpose", "Identity", "Cast")  # zeros stay so
CHANNELED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)

assert operators  # their import has registered them


@dataclass(frozen=True)
class NodeCall:
    """One node: the module of this name takes these values and gives those. last: values that nobody needs after it."""

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class NodeGraph(nn.Module):
    """Nodes as modules, run in the order of the file.

    Attributes:
        inputs, outputs: names of the values that come in and go out.
        steps: the nodes.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.steps: tuple[NodeCall, ...] = ()
        self.numbers: dict[str, Any] = {}  # constants that are Python's
        self.buffered: dict[str, str] = {}  # names of buffers by those of the constants

    def run(self, values: dict[str, Any]) -> list[Any]:
        """The outputs, from the values that are known so far."""
        values |= self.numbers
        values |= {name: getattr(self, buffer) for name, buffer in self.buffered.items()}
        for step in self.steps:
            found = getattr(self, step.module)(*(values[name] for name in step.inputs))
            if isinstance(found, list):
                bounded(element_count(found))
            if len(step.outputs) == 1:
                values[step.outputs[0]] = found if not isinstance(found, tuple) else found[0]
            else:
                values.update((name, one) for name, one in zip(step.outputs, found) if name)
            for name in step.last:
                values.pop(name, None)
        return [values[name] for name in self.outputs]


class OnnxNetwork(NodeGraph):
    """A network out of an ONNX file, as any other module: it can be trained, cut and exported again.

    Attributes:
        inputs, outputs: names, as in the file.
        shapes: of the inputs; None for a size that is free.
        dtypes: of the inputs.
        interface: names, free dimensions and metadata of the file, which an export has again.

    Example:
        >>> import tempfile, gossamer
        >>> from pathlib import Path
        >>> from gossamer.onnx_import import import_onnx
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network = import_onnx(gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx"))
        >>> len(network.inputs), len(network.shapes), network.dtypes
        (1, 1, (torch.float32,))
    """

    shapes: tuple[tuple[int | None, ...], ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    interface = Interface()

    def forward(self, *inputs: Any) -> Any:
        if len(inputs) != len(self.inputs):
            names = ", ".join(self.inputs)
            raise BadInput(f"the network takes {len(self.inputs)} inputs ({names}), got {len(inputs)}")
        with _bounded_run(self, inputs):
            found = [as_tensor(x) for x in self.run(dict(zip(self.inputs, inputs)))]
        return found[0] if len(found) == 1 else tuple(found)


_SEEN: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()  # shapes that were run already


@contextlib.contextmanager
def _bounded_run(network: OnnxNetwork, inputs: Sequence[Any]) -> Iterator[None]:
    """The first run on inputs of these shapes makes no value that is far larger than any network's. Traces, which have
    a dispatch mode or values of their own, are left alone."""
    seen = _SEEN.setdefault(network, set())
    shapes = tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in inputs)
    plain = all(type(x) in (Tensor, nn.Parameter) for x in inputs)
    if not plain or torch.compiler.is_compiling() or _dispatch_modes() or shapes in seen:
        yield
        return
    samples = max((shape[0] for shape in shapes if shape), default=1)
    try:
        with AtMost(MOST_ELEMENTS * max(1, samples)):
            yield
    except TooLarge as large:
        bounded(large.elements / max(1, samples))
        raise
    seen.add(shapes)


class Branch(nn.Module):
    """`If`: one of two graphs, by a condition. captured: what they use of the graph around them."""

    def __init__(self, yes: NodeGraph, no: NodeGraph, captured: tuple[str, ...]) -> None:
        super().__init__()
        self.yes, self.no, self.captured = yes, no, captured

    def forward(self, condition: Any, *values: Any) -> Any:
        first = condition[0] if isinstance(condition, list) else condition
        taken = self.yes if bool(first) else self.no
        found = taken.run(dict(zip(self.captured, values)))
        return tuple(found)


G = TypeVar("G", bound=NodeGraph)


@dataclass
class GraphBuilder:
    """Builds one graph.

    Attributes:
        opsets: by domain.
        outer: constants of the graphs around it.
        missing: values that it uses and does not make.
    """

    proto: onnx.GraphProto
    opsets: Mapping[str, int]
    load: Callable[[onnx.TensorProto], np.ndarray[Any, Any]]
    outer: Mapping[str, Any]
    depth: int = 0
    constants: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    zeros: set[str] = field(default_factory=set)  # values that are zero whatever comes in

    def build(self, kind: type[G]) -> G:
        """The graph, its weights in its layers."""
        if self.depth > DEEPEST:
            raise BadInput(f"the file has more than {DEEPEST} graphs inside one another")
        own = {tensor.name: constant_value(self.load(tensor)) for tensor in self.proto.initializer}
        self.constants = {**self.outer, **own}
        self.zeros = {name for name, value in own.items() if is_zero(value)}
        inputs = [one.name for one in self.proto.input if one.name not in own]
        graph = kind(inputs, [one.name for one in self.proto.output])
        made, steps = set(inputs), list[NodeCall]()
        uses = _uses(self.proto)
        for number, proto in enumerate(self.proto.node):
            try:
                self._add(self._node(proto, number), graph, made, steps, uses)
            except GossamerError:
                raise
            except Exception as error:
                name = f"node {(proto.name or str(number))[:80]!r} ({proto.op_type[:80]})"
                raise BadInput(f"{name} cannot be imported: {first_line(error)}") from error
        if self.depth == 0 and self.missing:
            raise BadInput(
                f"value {self.missing[0][:80]!r} is used before any node makes it: the graph has a cycle or a gap"
            )
        if unmade := [name for name in graph.outputs if name not in made and name not in self.constants]:
            if self.depth == 0:
                raise BadInput(f"the output {unmade[0][:80]!r} is made by no node")
            self.missing += [name for name in unmade if name not in self.missing]
        self._finish(graph, steps)
        return graph

    def _add(
        self, node: OnnxNode, graph: NodeGraph, made: set[str], steps: list[NodeCall], uses: Mapping[str, int]
    ) -> None:
        """Add a node to the graph, or to the constants. made: values that are known when the network runs."""
        if node.op == "Constant":
            self.constants[node.outputs[0]] = _constant_node(node)
            self.zeros |= {node.outputs[0]} if is_zero(self.constants[node.outputs[0]]) else set()
            return
        built, captured = self._built(node)
        if self._fold(node, built):
            return
        if (node.op in MOVES and node.inputs[0] in self.zeros) or (
            node.op == "ConstantOfShape" and is_zero(node.get("value", 0.0))
        ):
            self.zeros.add(node.outputs[0])
        for name in built.inputs:
            if name not in made and name not in self.constants and name not in self.missing:
                self.missing.append(name)
        made.update(name for name in node.outputs if name)
        if self._absorbed(node, graph, steps, uses):
            return
        module = _unique(_module_name(node), graph)
        graph.add_module(module, built.module)
        steps.append(NodeCall(module, (*built.inputs, *captured), node.outputs))

    def _node(self, proto: onnx.NodeProto, number: int) -> OnnxNode:
        where = f"node {proto.name[:80]!r} ({proto.op_type[:80]})"
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if domain and (domain, proto.op_type) not in OPAQUE:
            raise BadInput(
                f"{where}: this operator of {domain[:80]} cannot be imported; known are those of ONNX itself, and of "
                f"{OWN} {TAKEN[OWN]}"
            )
        attributes: dict[str, Any] = {}
        graphs: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.ref_attr_name:
                raise BadInput(f"{where}: its {attribute.name[:80]} is that of a function, which it is not in")
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, onnx.GraphProto):
                graphs[attribute.name] = value
            elif isinstance(value, onnx.TensorProto):
                array = self.load(value)
                attributes[attribute.name] = torch.from_numpy(np.array(array))
            elif isinstance(value, bytes):
                attributes[attribute.name] = value.decode(errors="replace")
            elif isinstance(value, list) and value and isinstance(value[0], bytes):
                attributes[attribute.name] = [one.decode(errors="replace") for one in value]
            else:
                attributes[attribute.name] = value
        name = proto.name or f"{proto.op_type}_{number}"
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        if proto.op_type in STATES:  # states that are zero are not given: their width follows the layer's
            first = STATES[proto.op_type]
            inputs = (*inputs[:first], *("" if one in self.zeros else one for one in inputs[first:]))
        opset = self.opsets.get(domain, 1)
        return OnnxNode(proto.op_type, name, inputs, outputs, attributes, opset, self.constants, graphs, domain)

    def _built(self, node: OnnxNode) -> tuple[Built, tuple[str, ...]]:
        """The module of a node, and what its graphs use of this one."""
        if node.op == "If":
            return self._branch(node)
        if is_opaque(node):
            return opaque(node), ()
        if node.op not in BUILDERS:
            raise BadInput(f"node {node.name[:80]!r}: {unknown_operator(node.op)}")
        return BUILDERS[node.op](node), ()

    def _branch(self, node: OnnxNode) -> tuple[Built, tuple[str, ...]]:
        graphs, captured = list[NodeGraph](), dict[str, None]()
        for name in ("then_branch", "else_branch"):
            if name not in node.graphs:
                node.refuse(f"it has no {name}")
            inner = GraphBuilder(node.graphs[name], self.opsets, self.load, self.constants, self.depth + 1)
            graphs.append(inner.build(NodeGraph))
            captured.update(dict.fromkeys(inner.missing))
        names = tuple(name for name in captured if name not in self.constants)
        return Built(Branch(graphs[0], graphs[1], names), (node.inputs[0], *names)), ()

    def _fold(self, node: OnnxNode, built: Built) -> bool:
        """Compute a node whose inputs are all known, so that its result is a constant, too."""
        if not all(name in self.constants for name in built.inputs) or not node.inputs:
            return False
        if sum(element_count(self.constants[name]) for name in built.inputs) > MOST_FOLDED:
            return False
        try:
            with torch.no_grad(), AtMost(MOST_FOLDED):
                found = built.module(*(self.constants[name] for name in built.inputs))
        except GossamerError:
            raise
        except TooLarge as large:
            bounded(large.elements)
            return False  # a node that is run
        except Exception as error:
            raise BadInput(f"node {node.name[:80]!r} ({node.op}) cannot be computed: {first_line(error)}") from error
        many = found if isinstance(found, tuple) and len(node.outputs) > 1 else (found,)
        for name, value in zip(node.outputs, many):
            self.constants[name] = value[0] if isinstance(value, tuple) else value
            if is_zero(self.constants[name]):
                self.zeros.add(name)
        return True

    def _absorbed(self, node: OnnxNode, graph: NodeGraph, steps: list[NodeCall], uses: Mapping[str, int]) -> bool:
        """Make the constant that is added to a layer's output its bias: many exporters write them apart."""
        if node.op != "Add" or not steps or len(node.inputs) != 2:
            return False
        for one, other in (node.inputs, node.inputs[::-1]):
            step = steps[-1]
            layer = getattr(graph, step.module)
            if step.outputs != (one,) or uses[one] != 1 or other not in self.constants:
                continue
            if not isinstance(layer, CHANNELED) or layer.bias is not None:
                continue
            bias = _as_bias(self.constants[other], layer)
            if bias is not None:
                layer.bias = nn.Parameter(bias)
                steps[-1] = NodeCall(step.module, step.inputs, node.outputs)
                return True
        return False

    def _finish(self, graph: NodeGraph, steps: list[NodeCall]) -> None:
        """Leave out what nobody uses; find the constants that are used as values, and where each value is used last."""
        needed = set(graph.outputs)
        for step in reversed(list(steps)):
            if needed.isdisjoint(step.outputs):
                steps.remove(step)
                delattr(graph, step.module)
            needed.update(step.inputs if not needed.isdisjoint(step.outputs) else ())
        used = {name for step in steps for name in step.inputs} | set(graph.outputs)
        for name in sorted(used & self.constants.keys()):
            value = self.constants[name]
            if isinstance(value, Tensor):
                buffer = f"constant_{len(graph.buffered)}"
                graph.register_buffer(buffer, value)
                graph.buffered[name] = buffer
            else:
                graph.numbers[name] = value
        kept, final = set(graph.outputs) | set(graph.numbers) | set(graph.buffered), list[NodeCall]()
        for step in reversed(steps):
            last = tuple(name for name in dict.fromkeys((*step.inputs, *step.outputs)) if name and name not in kept)
            kept.update(last)
            final.append(NodeCall(step.module, step.inputs, step.outputs, last))
        graph.steps = tuple(reversed(final))


def _uses(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each value is used, by nodes, inner graphs and as an output."""
    found: dict[str, int] = {one.name: 1 for one in graph.output}
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            for name in node.input:
                found[name] = found.get(name, 0) + 1
            waiting += [attribute.g for attribute in node.attribute if len(attribute.g.node)]
    return found


def _constant_node(node: OnnxNode) -> Any:
    for key in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if key in node.attributes:
            value = node.attributes[key]
            array = value.numpy() if isinstance(value, Tensor) else np.array(value)
            return constant_value(array.astype(np.float32) if array.dtype == np.float64 and key != "value" else array)
    return node.refuse("its value is neither a tensor nor numbers")


def _as_bias(value: Any, layer: nn.Module) -> Tensor | None:
    """A constant as a bias of this layer; None where it is none."""
    weight = layer.weight
    if not isinstance(value, Tensor) or not isinstance(weight, Tensor) or value.dtype != weight.dtype:
        return None
    convolution = not isinstance(layer, nn.Linear)
    size = layer.out_channels if convolution else layer.out_features
    axis = -(weight.dim() - 1) if convolution else -1
    if value.dim() < -axis or value.shape[axis] != size or value.numel() != size:
        return None
    return value.reshape(-1).clone()


def _module_name(node: OnnxNode) -> str:
    name = node.name.strip("/").removesuffix(f"/{node.op}").replace(f"_{node.op}", "")
    name = re.sub(r"\W+", "_", name).strip("_")
    return name if name and not name[0].isdigit() else f"{node.op.lower()}_{name}".strip("_")


def _unique(name: str, graph: nn.Module) -> str:
    """A name that no other module of the graph has, and no attribute of modules or of what exporters make."""
    found, number = name, 1
    while hasattr(graph, found) or hasattr(torch.fx.GraphModule, found):
        number += 1
        found = f"{name}_{number}"
    return found
