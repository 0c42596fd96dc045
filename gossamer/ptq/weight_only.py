"""An ONNX network whose weights are 4 or 8 bits by groups, and whose activations stay as they are: for transformers,
which spend their time on reading weights when one token runs.

Products by a matrix become ONNX Runtime's `MatMulNBits`, tables that rows are taken from `GatherBlockQuantized`. A
group of 32 weights of one output has a scale and a zero point. No data are needed.

Source: Dettmers et al. 2022, arXiv:2208.07339 (steps for parts of a row); Frantar et al. 2023, arXiv:2210.17323,
section 4 (groups); the shrunk range is that of Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range by error).
"""

from collections.abc import Collection
from itertools import product

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gossamer.errors import BadInput
from gossamer.ptq.weights import Weights, as_rows, attributes
from gossamer.runtime import onnx_clean

DOMAIN = "com.microsoft"
GROUP = 32
# Of 4 bits: shares of a group's range and moves of its zero point that are tried, and how often a scale is fitted.
SHARES, MOVES, REFITS = (1.0, 0.9, 0.8), (0, -1, 1), 2
INT8_PRODUCTS = 4  # "accuracy_level": activations are rounded to 8 bits inside of the product, by groups
LEAST_TABLE = 2**14  # numbers; smaller tables stay float32

Codes = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]


def quantize_groups(rows: NDArray[np.float32], bits: int, group: int = GROUP) -> Codes:
    """Codes, scales and zero points: a weight is (code - zero point) * scale.

    8 bits are spread over the range of a group, from its smallest weight or 0 to its largest or 0. Of 4 bits, several
    ranges and zero points are tried, each with the scale of the least squared error for its codes; the best counts.

    Args:
        rows: (N, K).
        bits: of a code, 4 or 8.
        group: weights in a group; the last of a row may have fewer.

    Returns:
        Codes (N, groups, group), padded with the zero point; scales (N, groups); zero points (N, groups).

    Example:
        >>> codes, scales, zeros = quantize_groups(np.array([[0.0, 1.5]], np.float32), 4, group=2)
        >>> codes.tolist(), scales.round(4).tolist(), zeros.tolist()
        ([[[0, 15]]], [[0.10000000149011612]], [[0]])
    """
    top = (1 << bits) - 1
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group))).reshape(len(rows), -1, group)
    low, high = np.minimum(padded.min(2), 0), np.maximum(padded.max(2), 0)
    shares, moves, refits = ((1.0,), (0,), 0) if bits == 8 else (SHARES, MOVES, REFITS)
    best: list[NDArray[np.float32]] = []
    for share, move in product(shares, moves):
        scales = np.where(high > low, share * (high - low) / top, 1)
        zeros = np.clip(np.rint(-share * low / scales) + move, 0, top)
        codes = _codes(padded, scales, zeros, top)
        for _ in range(refits):
            levels = codes - zeros[..., None]
            squares = np.square(levels).sum(2)
            fitted = (levels * padded).sum(2) / np.maximum(squares, 1)
            scales = np.where((squares > 0) & (fitted > 0), fitted, scales)
            codes = _codes(padded, scales, zeros, top)
        errors = np.square((codes - zeros[..., None]) * scales[..., None] - padded).sum(2)
        tried = [codes, scales, zeros, errors]
        if best:
            better = errors < best[3]
            tried = [
                np.where(better[..., None] if one.ndim == 3 else better, one, old) for one, old in zip(tried, best)
            ]
        best = tried
    return best[0].astype(np.uint8), best[1].astype(np.float32), best[2].astype(np.uint8)


def _codes(
    padded: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32], top: int
) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.clip(np.rint(padded / scales[..., None] + zeros[..., None]), 0, top)
    return found


def packed_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of 4 bits two in a byte along the last dimension, the first one in the low half; those of 8 as they are."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return (even[..., ::2] | even[..., 1::2] << 4).astype(np.uint8)


def quantize_weights(model: onnx.ModelProto, bits: int, *, exclude: Collection[str] = ()) -> onnx.ModelProto:
    """The network with weights of so many bits.

    Args:
        model: the float32 network.
        bits: 4 or 8.
        exclude: names of nodes that stay in float32.

    Returns:
        A copy.

    Raises:
        BadInput: no product or table has weights of its own.

    Example:
        >>> import gossamer, tempfile, torch
        >>> from pathlib import Path
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     file = gossamer.runtime.onnx_export.export_onnx(net, (x,), Path(place) / "net.onnx")
        ...     [node.op_type for node in quantize_weights(onnx.load(file), 4).graph.node]
        ['MatMulNBits']
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph, weights = copied.graph, Weights(copied.graph)
    nodes, count = list[onnx.NodeProto](), 0
    for node in graph.node:
        made = (
            None if node.name in exclude else _product(graph, weights, node, bits) or _table(graph, weights, node, bits)
        )
        nodes.append(made or node)
        count += made is not None
    if not count:
        raise BadInput(
            "no product by a matrix and no table has weights of its own, so nothing can be stored in "
            f"{bits} bits; convolutions are quantized together with their activations (int8)"
        )
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    if all(entry.domain != DOMAIN for entry in copied.opset_import):
        copied.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx_clean.strip(copied)
    return copied


def _product(graph: onnx.GraphProto, weights: Weights, node: onnx.NodeProto, bits: int) -> onnx.NodeProto | None:
    """The product that takes the place of a MatMul or Gemm by a matrix of its own; None for other nodes."""
    if not (weights.product(node) or (node.op_type == "Gemm" and weights.linear(node))):
        return None
    rows = as_rows(node, weights[node.input[1]])[0]
    codes, scales, zeros = quantize_groups(rows, bits)
    inputs = [node.input[0], *_store(graph, node.input[1], (codes, scales, zeros), bits)]
    if node.op_type == "Gemm" and len(node.input) > 2:
        inputs += ["", node.input[2]]
    return helper.make_node(
        "MatMulNBits",
        inputs,
        list(node.output),
        name=node.name,
        domain=DOMAIN,
        K=rows.shape[1],
        N=len(rows),
        bits=bits,
        block_size=GROUP,
        accuracy_level=INT8_PRODUCTS,
    )


def _table(graph: onnx.GraphProto, weights: Weights, node: onnx.NodeProto, bits: int) -> onnx.NodeProto | None:
    """What takes rows from a table of codes in the place of a Gather; None for other nodes."""
    if node.op_type != "Gather" or node.input[0] not in weights or attributes(node).get("axis", 0):
        return None
    tensor = weights.tensors[node.input[0]]
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < LEAST_TABLE:
        return None
    name, rows = node.input[0], weights[node.input[0]]
    codes, scales, zeros = quantize_groups(rows, bits)
    codes = codes.reshape(len(rows), -1)[:, : rows.shape[1]]
    table, *steps = _store(graph, name, (codes, scales, zeros), bits)
    inputs = [table, node.input[1], *steps]
    return helper.make_node(
        "GatherBlockQuantized",
        inputs,
        list(node.output),
        name=node.name,
        domain=DOMAIN,
        gather_axis=0,
        quantize_axis=1,
        block_size=GROUP,
        bits=bits,
    )


def _store(graph: onnx.GraphProto, name: str, quantized: Codes, bits: int) -> list[str]:
    """The names of codes, scales and zero points of a weight, which are put into the graph."""
    codes, scales, zeros = quantized
    parts = {"codes": packed_codes(codes, bits), "scales": scales, "zeros": packed_codes(zeros, bits)}
    for part, value in parts.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}/{part}"))
    return [f"{name}/{part}" for part in parts]
