"""The operators that can be imported: a builder for each makes a module of a node."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gossamer.errors import BadInput

Module = nn.Module


@dataclass(frozen=True)
class OnnxNode:
    """A node of a graph. inputs: names, "" where one is left out. constants: values of inputs that are known, by name.
    graphs: subgraphs by attribute, already built. domain: "" for ONNX's own operators. opset: that of the domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    constants: Mapping[str, Any]
    graphs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""

    def get(self, name: str, usual: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, usual)

    def has(self, index: int) -> bool:
        """Whether this input is given."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def known(self, index: int) -> bool:
        """Whether the value of this input is a constant of the file."""
        return self.has(index) and self.inputs[index] in self.constants

    def value(self, index: int, usual: Any = None) -> Any:
        """The constant value of an input; `usual` where the input is left out. BadInput where it is computed."""
        if not self.has(index):
            return usual
        if not self.known(index):
            self.refuse(f"its input {index} is computed in the graph; it must be a constant")
        return self.constants[self.inputs[index]]

    def refuse(self, why: str) -> Any:
        """Raise BadInput with the node in its words."""
        raise BadInput(f"node {self.name[:80]!r} ({self.op}): {why}")


@dataclass(frozen=True)
class Built:
    """What a builder gives: the module, and the names of the values that its forward takes."""

    module: Module
    inputs: Sequence[str]


Builder = Callable[[OnnxNode], Built]
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
BUILDERS: dict[str, Builder] = {}


def operator(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder for operators of these names."""

    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


class Function(nn.Module):
    """A node without weights. Keyword arguments become attributes, so that the widths among them can follow a
    pruning."""

    def __init__(self, function: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.function, self.names = function, tuple(attributes)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *values: Any) -> Any:
        return self.function(*values, **{name: getattr(self, name) for name in self.names})

    def extra_repr(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)}" for name in self.names)
        return f"{self.function.__name__.strip('_')}{', ' if shown else ''}{shown}"


def function(node: OnnxNode, call: Callable[..., Any], **attributes: Any) -> Built:
    """A node that takes all its inputs as values."""
    return Built(Function(call, **attributes), [name for name in node.inputs if name])


def unknown_operator(op: str) -> str:
    """Why an operator that has no builder cannot be imported."""
    if op.startswith("QLinear") or op in QUANTIZED:
        return f"{op[:80]} is of a network in int8; give the float32 file that it was made from"
    return f"the operator {op[:80]} cannot be imported; it is none of the {len(BUILDERS)} that are known"
