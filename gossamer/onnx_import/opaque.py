"""Operators without a translation, among them ONNX Runtime's own fused ones: each stays one call of ONNX Runtime.

Such a call is whole: what is around it keeps its channels, no gradient flows through it, and an export writes the node
as it was. Only operators are taken whose outputs are bounded by their inputs and whose sizes do not depend on values.
"""

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from gossamer.errors import BadInput, first_line, require
from gossamer.onnx_import.registry import Built, OnnxNode
from gossamer.onnx_import.values import as_tensor, bounded

OWN = "com.microsoft"  # the domain of ONNX Runtime's operators
TAKEN = {
    # Of ONNX itself only those that mean the same in every opset: an export may have another one than the file.
    "": "Acosh Asinh Atanh Celu DeformConv Det GlobalLpPool IsInf LpPool MeanVarianceNormalization ReverseSequence "
    "Shrink SimplifiedLayerNormalization ThresholdedRelu",
    OWN: "Attention BiasGelu BiasSoftmax BiasSplitGelu CDist DynamicQuantizeMatMul EmbedLayerNormalization FastGelu "
    "FusedConv FusedGemm FusedMatMul FusedMatMulActivation Gelu GemmFastGelu GridSample GroupNorm GroupQueryAttention "
    "Inverse MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool QAttention QuickGelu RotaryEmbedding "
    "SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul",
}
OPAQUE = {(domain, name) for domain, names in TAKEN.items() for name in names.split()}
WINDOW = ("pads", "strides", "dilations", "kernel_shape")
LARGEST_WINDOW = 1024  # of such an attribute: larger ones ask for more memory than any network does
PROBE = 4  # a size in the place of one that is free
IR_VERSION = 9


class OpaqueNode(nn.Module):
    """A node that ONNX Runtime computes.

    Args:
        node: the node and the opset of its domain, as text.
        name: that of the node in its file.
    """

    def __init__(self, node: str, name: str) -> None:
        super().__init__()
        self.node, self.name = node, name

    def forward(self, *values: Any) -> Any:
        tensors = [as_tensor(value) for value in values]
        found = (_symbolic if torch.onnx.is_in_onnx_export() else onnx_node)(tensors, self.node)
        return tuple(found) if len(found) > 1 else found[0]

    def extra_repr(self) -> str:
        return f"{_read(self.node)[0].op_type} {self.name[:80]!r}, by ONNX Runtime"


def is_opaque(node: OnnxNode) -> bool:
    """Whether a node without a translation can stay as one call."""
    return (node.domain, node.op) in OPAQUE and not node.graphs


def opaque(node: OnnxNode) -> Built:
    """A node as one call of ONNX Runtime.

    Raises:
        BadInput: it has a tensor as an attribute, or a window that is too large. What ONNX Runtime does not know is
            said when the node runs.
    """
    require("onnxruntime")
    if any(isinstance(value, Tensor) for value in node.attributes.values()):
        node.refuse("it has a tensor as an attribute; no operator that is kept whole has one")
    for key in WINDOW:
        if any(abs(size) > LARGEST_WINDOW for size in node.get(key, ())):
            node.refuse(f"its {key} {list(node.get(key))[:4]} are larger than {LARGEST_WINDOW}")
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name, domain=node.domain, **node.attributes)
    text = base64.b64encode(proto.SerializeToString()).decode()
    return Built(OpaqueNode(f"{node.opset}:{text}", node.name), [name for name in node.inputs if name])


@lru_cache(maxsize=1024)
def _read(node: str) -> tuple[onnx.NodeProto, int]:
    opset, _, text = node.partition(":")
    return onnx.NodeProto.FromString(base64.b64decode(text)), int(opset)


@lru_cache(maxsize=256)
def _session(node: str, dtypes: tuple[int, ...], ranks: tuple[int, ...]) -> Any:
    """The node alone, as a network of its own."""
    onnxruntime = require("onnxruntime")
    proto, opset = _read(node)
    known = iter(zip(dtypes, ranks))
    inputs = [
        helper.make_tensor_value_info(f"input_{number}", dtype, [None] * rank)
        for number, name in enumerate(proto.input)
        if name
        for dtype, rank in [next(known)]
    ]
    alone = onnx.NodeProto()
    alone.CopyFrom(proto)
    del alone.input[:], alone.output[:]
    alone.input.extend(f"input_{number}" if name else "" for number, name in enumerate(proto.input))
    alone.output.extend(f"output_{number}" if name else "" for number, name in enumerate(proto.output))
    outputs = [helper.make_empty_tensor_value_info(name) for name in alone.output if name]
    opsets = [helper.make_opsetid("", opset if not proto.domain else 17)]
    opsets += [helper.make_opsetid(proto.domain, opset)] if proto.domain else []
    graph = helper.make_graph([alone], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@torch.library.custom_op("gossamer::onnx_node", mutates_args=())
def onnx_node(values: list[Tensor], node: str) -> list[Tensor]:
    """The outputs of a node, by ONNX Runtime."""
    return _run(values, node)


def _run(values: Sequence[Tensor], node: str) -> list[Tensor]:
    arrays = [value.detach().cpu().numpy() for value in values]
    dtypes = tuple(helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays)
    proto, _ = _read(node)
    try:
        session = _session(node, dtypes, tuple(array.ndim for array in arrays))
        found = session.run(None, {one.name: array for one, array in zip(session.get_inputs(), arrays)})
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        raise BadInput(
            f"ONNX Runtime cannot run the node {proto.name[:80]!r} ({proto.op_type}) on {shapes}: {first_line(error)}"
        ) from error
    results = iter(found)
    device = values[0].device if values else torch.device("cpu")
    made = [torch.from_numpy(np.array(next(results))).to(device) if name else torch.empty(0) for name in proto.output]
    bounded(sum(one.numel() for one in made))
    return made


@onnx_node.register_fake
def _fake(values: Sequence[Tensor], node: str) -> list[Tensor]:
    """The outputs without their numbers: sizes are those of a run on zeros. A size that is free is tried as two."""
    free = {str(size): size for value in values for size in value.shape if not isinstance(size, int)}
    base = dict.fromkeys(free, PROBE)
    first = _run_on_zeros(values, base, node)
    shapes: list[list[Any]] = [list(one.shape) for one in first]
    for name, size in free.items():
        for shape, one, other in zip(shapes, first, _run_on_zeros(values, base | {name: PROBE + 1}, node)):
            for axis, (before, after) in enumerate(zip(one.shape, other.shape)):
                if after == before:
                    continue
                if not isinstance(shape[axis], int) or before != PROBE * (after - before):
                    proto, _ = _read(node)
                    raise BadInput(
                        f"node {proto.name[:80]!r} ({proto.op_type}): how its sizes follow {name} was not found"
                    )
                shape[axis] = size * (after - before)
    return [
        values[0].new_empty(shape, dtype=one.dtype) if values else torch.empty(shape, dtype=one.dtype)
        for shape, one in zip(shapes, first)
    ]


def _run_on_zeros(values: Sequence[Tensor], sizes: dict[str, int], node: str) -> list[Tensor]:
    shapes = [[size if isinstance(size, int) else sizes[str(size)] for size in value.shape] for value in values]
    with torch.utils._python_dispatch._disable_current_modes():
        return _run([torch.zeros(shape, dtype=value.dtype) for shape, value in zip(shapes, values)], node)


def _symbolic(values: Sequence[Tensor], node: str) -> Sequence[Tensor]:
    """The node for an exporter, which writes it as it was."""
    proto, opset = _read(node)
    given = iter(values)
    inputs: list[Tensor | None] = [next(given) if name else None for name in proto.input]
    outputs = _fake(values, node)
    attributes = {one.name: _plain(helper.get_attribute_value(one)) for one in proto.attribute}
    found: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        f"{proto.domain}::{proto.op_type}" if proto.domain else proto.op_type,
        inputs,
        attributes,
        dtypes=[one.dtype for one in outputs],
        shapes=[one.shape for one in outputs],
        version=opset if proto.domain else None,
    )
    return found


def _plain(value: Any) -> Any:
    """An attribute as exporters take it: text as such."""
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _no_gradient(context: Any, *gradients: Any) -> Any:
    why = f"no gradient flows through {context.what}, which ONNX Runtime computes: what is before it cannot be trained"
    raise BadInput(f"{why}; take train=False", shell=f"{why}; take --no-train")


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    proto, _ = _read(inputs[1])
    ctx.what = f"the node {proto.name[:80]!r} ({proto.op_type})"


onnx_node.register_autograd(_no_gradient, setup_context=_remember)
