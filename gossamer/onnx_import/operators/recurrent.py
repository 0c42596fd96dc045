"""LSTM and GRU, as PyTorch's layers."""

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.onnx_import.operators.layers import fill_layer, tensor_of
from gossamer.onnx_import.registry import Built, OnnxNode, operator
from gossamer.onnx_import.values import as_tensor

# Of the gates in the order of a file, those in the order of PyTorch: i o f c to i f c o; z r h to r z h.
ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
SUFFIXES = ("", "_reverse")


class Recurrent(nn.Module):
    """A layer with the inputs and outputs that ONNX has: (time, batch, features) in; (time, directions, batch, hidden)
    and the last states out. states: which of the initial states are given."""

    def __init__(self, layer: nn.LSTM | nn.GRU, states: tuple[bool, ...]) -> None:
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        layer, more = self.layer, iter(given)
        directions = 2 if layer.bidirectional else 1
        shape = (directions, x.shape[1], layer.hidden_size)
        first = [as_tensor(next(more), x) if has else x.new_zeros(shape) for has in self.states]
        lstm = isinstance(layer, nn.LSTM)
        out, last = layer(x, tuple(first) if lstm else first[0])
        # No sizes: torch notes the example's length for what a layer gives, and an export would have it.
        size = layer.hidden_size
        out = torch.stack([out[..., i * size : (i + 1) * size] for i in range(directions)], 1)
        return (out, *last) if lstm else (out, last)


@operator("LSTM", "GRU")
def build_recurrent(node: OnnxNode) -> Built:
    lstm, direction = node.op == "LSTM", node.get("direction", "forward")
    weight, hidden = tensor_of(node, 1), tensor_of(node, 2)
    _check(node, direction, len(weight))
    with torch.device("meta"):
        layer = (nn.LSTM if lstm else nn.GRU)(
            weight.shape[2], hidden.shape[2], bias=node.has(3), bidirectional=direction == "bidirectional"
        )
    gates = len(ORDERS[node.op])
    biases = tensor_of(node, 3) if node.has(3) else None
    for i, suffix in enumerate(SUFFIXES[: len(weight)]):
        tensors: dict[str, Tensor | None] = {
            f"weight_ih_l0{suffix}": _ordered(weight[i], node.op),
            f"weight_hh_l0{suffix}": _ordered(hidden[i], node.op),
        }
        if biases is not None:
            inner, outer = biases[i].reshape(2, gates, -1).reshape(2, -1)
            tensors |= {
                f"bias_ih_l0{suffix}": _ordered(inner, node.op),
                f"bias_hh_l0{suffix}": _ordered(outer, node.op),
            }
        fill_layer(layer, **tensors)
    places = (5, 6) if lstm else (5,)
    states = tuple(node.has(i) for i in places)
    names = [node.inputs[0], *(node.inputs[i] for i, has in zip(places, states) if has)]
    return Built(Recurrent(layer, states), names)


def _check(node: OnnxNode, direction: str, directions: int) -> None:
    usual = USUAL[node.op] * directions
    if [str(x) for x in node.get("activations", usual)] != usual or node.get("clip") or node.get("input_forget", 0):
        node.refuse("other activations than the usual ones, clipping and coupled gates are not known")
    if direction == "reverse" or node.get("layout", 0):
        node.refuse("a layer that runs backwards only, or has the batch first, is not known")
    if node.op == "GRU" and not node.get("linear_before_reset", 0):
        node.refuse("linear_before_reset = 0 is not known; PyTorch's GRU is the other form")
    if node.has(7):
        node.refuse("peepholes are not known")


def _ordered(rows: Tensor, op: str) -> Tensor:
    """Rows of all gates, in PyTorch's order."""
    order = ORDERS[op]
    parts = rows.reshape(len(order), -1, *rows.shape[1:])
    return parts[list(order)].reshape(rows.shape).contiguous()
