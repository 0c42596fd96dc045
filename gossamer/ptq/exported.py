"""Rounding for the quantizers of other runtimes: weights that already lie on the grid that such a quantizer chooses.

ExecuTorch's and LiteRT's quantizers round each weight to the nearest code of a step per output channel. What is given
to them here is rounded by GPTQ to codes of the same step, so that nothing is left for them to round; channels have even
ranges before, and biases make up for the shift of means after.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from gossamer.core.copies import copy_network
from gossamer.core.progress import Silent
from gossamer.ptq import activation_ranges, equalization, rounding
from gossamer.ptq.weights import LARGEST, Weights, widest_steps
from gossamer.runtime.onnx_export import export_onnx

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default)
LAYERS = (*CONVOLUTIONS, ATEN.linear.default)
TOLERANCE = 1e-3  # of the largest output: what a folded network may differ by, and what is simulated


@dataclass(frozen=True)
class RoundedProgram:
    """A network whose weights lie on a grid.

    Attributes:
        network: computes what its rounded weights give, in float32.
        steps: of each output channel, by the name of the weight, shape (O,).
        left: names of the weights of layers that keep their floats.
    """

    network: GraphModule
    steps: dict[str, Tensor]
    left: tuple[str, ...]


def program_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The network as a graph of operations, with the batch norms behind convolutions folded into them.

    Args:
        model: in eval mode.
        inputs: give the shapes, which become fixed.

    Returns:
        A network of its own.
    """
    program: Any = torch.export.export(copy_network(model), inputs).module(check_guards=False)
    with torch.no_grad():
        for node in list(program.graph.nodes):
            if node.target == ATEN.batch_norm.default and _foldable(node):
                _fold(program, node)
    for module in program.modules():
        module.training = False  # `eval` is refused by what `torch.export` gives
    program.graph.eliminate_dead_code()
    program.recompile()
    return program  # type: ignore[no-any-return]


def _foldable(norm: Node) -> bool:
    """Whether a batch norm is all that reads a convolution whose weights nothing else reads."""
    layer, statistics, training = norm.args[0], norm.args[3:5], norm.args[5]
    if not isinstance(layer, Node) or layer.target not in CONVOLUTIONS or training or None in statistics:
        return False
    weight: Any = layer.args[1]
    return len(layer.users) == len(weight.users) == 1 and weight.op == "get_attr"


def _fold(program: GraphModule, norm: Node) -> None:
    layer: Any = norm.args[0]
    bias = layer.args[2] if len(layer.args) > 2 else None
    gamma, beta, mean, variance = (_value(program, node) for node in norm.args[1:5])
    scale = (variance.double() + norm.args[7]).rsqrt()
    scale = scale if gamma is None else scale * gamma.double()
    shift = -mean.double() if bias is None else _value(program, bias).double() - mean.double()
    shift = shift * scale if beta is None else shift * scale + beta.double()
    weight = _value(program, layer.args[1])
    weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
    _set_bias(program, layer, shift.to(weight.dtype))
    norm.replace_all_uses_with(layer)
    program.graph.erase_node(norm)


def _value(program: GraphModule, node: Any) -> Any:
    """What a node that gets an attribute gets; None for None."""
    if node is None:
        return None
    owner, _, name = str(node.target).rpartition(".")
    return getattr(program.get_submodule(owner), name)


def _set_bias(program: GraphModule, layer: Node, bias: Tensor) -> None:
    """Give a layer a bias of its own."""
    weight: Any = layer.args[1]
    owner, _, key = str(weight.target).rpartition(".")
    program.get_submodule(owner).register_parameter(f"{key}_bias", nn.Parameter(bias, requires_grad=False))
    with program.graph.inserting_before(layer):
        node = program.graph.get_attr(f"{weight.target}_bias")
    layer.args = (*layer.args[:2], node, *layer.args[3:])


def _layers(program: GraphModule) -> dict[str, Node]:
    """Convolutions and linear layers by the names of their weights, which they alone read."""
    weights = [(node, node.args[1]) for node in program.graph.nodes if node.target in LAYERS]
    return {str(w.target): node for node, w in weights if w.op == "get_attr" and len(w.users) == 1}


def rounded_program(
    program: GraphModule,
    inputs: tuple[Tensor, ...],
    samples: Sequence[tuple[Tensor, ...]],
    *,
    even: bool = True,
    least_step: float = 0.0,
) -> RoundedProgram:
    """Round weights by GPTQ to codes of the step max |w| / 127 of each output channel, and correct biases.

    The largest weight of a channel stays what it is, so that whoever takes the step from the weights finds the same
    one. Layers whose weight others read, too, and operations that are none of `Conv`, `Gemm` and `MatMul` of ONNX are
    left as they are.

    Args:
        program: of `program_of`; is not touched.
        inputs: that it takes.
        samples: inputs to calibrate on, of one sample each.
        even: whether the ranges of channels are made even before (`equalization.equalize`).
        least_step: the smallest step that the quantizer takes.

    Returns:
        The network, its steps, and the weights that are left.

    Raises:
        BadInput: the network cannot be followed in ONNX.

    Source: Frantar et al. 2022, arXiv:2210.17323; Nagel et al. 2019, arXiv:1906.04721, sections 4.1 and 4.2.
    """
    batches = [(one, None) for one in samples]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        network = onnx.load(export_onnx(program, inputs, folder / "net.onnx", dynamic_batch=False))
        if even and _all_known(program, network) and (names := equalization.channel_values(network)):
            largest = activation_ranges.channel_ranges(network, names, batches, folder, threads=1)
            network = equalization.equalize(network, largest)
        rule = rounding.StepRule(lambda rows: widest_steps(rows, least_step), 2 * LARGEST, largest_kept=True)
        network, steps = rounding.round_weights(
            network, batches, folder, threads=1, samples=None, progress=Silent(), rule=rule
        )
        return _transferred(program, network, steps)


def _transferred(program: GraphModule, network: onnx.ModelProto, steps: Mapping[str, Any]) -> RoundedProgram:
    """The program with the weights and biases of the ONNX network, which has its names."""
    rounded: Any = copy_network(program)
    weights, layers = Weights(network.graph), _layers(rounded)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in rounding.rounded_layers(network):
            name = node.input[1]
            if name in layers and weights.linear(node):
                _value(rounded, layers[name].args[1]).copy_(torch.from_numpy(weights[name]))
                _set_bias(rounded, layers[name], torch.from_numpy(weights[node.input[2]]))
                found[name] = torch.from_numpy(steps[name])
    rounded.graph.eliminate_dead_code()
    rounded.recompile()
    read = dict.fromkeys(str(node.args[1].target) for node in program.graph.nodes if node.target in LAYERS)
    return RoundedProgram(rounded, found, tuple(name for name in read if name not in found))


def _all_known(program: GraphModule, network: onnx.ModelProto) -> bool:
    """Whether the program has the names of all weights that may be scaled."""
    weights, layers = Weights(network.graph), _layers(program)
    return all(node.input[1] in layers for node in network.graph.node if weights.linear(node))
