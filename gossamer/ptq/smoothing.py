"""SmoothQuant: even the ranges of the input channels of matrix products, so that a few large ones do not set the step.

Source: Xiao, Lin, Seznec, Wu, Demouth, Han 2023, arXiv:2211.10438.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gossamer.ptq.weights import Weights

STRENGTHS = (0.5, 0.7, 0.8, 0.9)  # alpha of the paper, which tunes it to the network; 0: nothing but weights
NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


def product_inputs(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The products by matrices that each value goes into, by its name."""
    weights = Weights(model.graph)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if weights.product(node):
            found.setdefault(node.input[0], []).append(node)
    return found


def even_inputs(model: onnx.ModelProto, largest: Mapping[str, NDArray[np.float32]], strength: float) -> onnx.ModelProto:
    """The same function; inputs of products are divided by a factor per channel, their weights multiplied by it.

    A norm that nothing else reads takes the division into its parameters. Elsewhere a product by a vector is put in,
    which takes little time beside the matrix.

    Args:
        model: the float32 network.
        largest: the largest magnitude of each input channel, shape (K,), of the values of `product_inputs`.
        strength: 1: all ranges of inputs are even, 0: all ranges of weights.

    Returns:
        A copy.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    weights = Weights(graph)
    made = {name: node for node in graph.node for name in node.output}
    for name, readers in product_inputs(copied).items():
        read = np.max([np.abs(weights[node.input[1]]).max(1) for node in readers], 0)
        factors = _factors(largest[name], read, strength)
        for node in readers:
            weights[node.input[1]] = weights[node.input[1]] * factors[:, None]
        maker = made.get(name)
        if maker is None or not _absorbed(maker, readers, factors, weights):
            _divided(graph, name, readers, factors, maker)
    return copied


def _factors(seen: NDArray[np.float32], read: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Equation 4 of the paper: seen ** alpha / read ** (1 - alpha). Channels without data or weights stay."""
    used = (seen > 0) & (read > 0)
    ranges = np.where(used, seen, 1).astype(np.float64) ** strength / np.where(used, read, 1) ** (1 - strength)
    factors = np.where(used, ranges / np.exp(np.log(ranges[used]).mean() if used.any() else 0.0), 1)
    return factors.clip(1e-3, 1e3).astype(np.float32)


def _absorbed(
    norm: onnx.NodeProto, readers: list[onnx.NodeProto], factors: NDArray[np.float32], weights: Weights
) -> bool:
    """Divide the outputs of a norm by its parameters, where these products alone read them."""
    parameters = list(norm.input[1:])
    if norm.op_type not in NORMS or not parameters or not all(name in weights for name in parameters):
        return False
    read = [weights.readers.get(name, 0) for name in norm.output]
    if read[0] != len(readers) or any(read[1:]):
        return False
    if any(weights.tensors[name].dims != [len(factors)] for name in parameters):
        return False
    for name in parameters:
        weights[name] = weights[name] / factors
    return True


def _divided(
    graph: onnx.GraphProto,
    name: str,
    readers: list[onnx.NodeProto],
    factors: NDArray[np.float32],
    maker: onnx.NodeProto | None,
) -> None:
    vector, even = f"{name}/factors", f"{name}/even"
    graph.initializer.append(numpy_helper.from_array(1 / factors, vector))
    node = onnx.helper.make_node("Mul", [name, vector], [even], name=even)
    for reader in readers:
        reader.input[0] = even
    place = 0 if maker is None else next(i for i, one in enumerate(graph.node) if one == maker) + 1
    graph.node.insert(place, node)
