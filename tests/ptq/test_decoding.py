"""What detectors do with their boxes behind the last layer stays in float32."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gossamer.ptq.qdq import decoding


def graph(nodes: list[tuple[str, list[str], str]], outputs: list[str]) -> onnx.GraphProto:
    """Nodes are named as their outputs; `w` and `c` are stored."""
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes]
    stored = [numpy_helper.from_array(np.ones((2, 2), dtype=np.float32), name) for name in ("w", "c")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *outputs)]
    return helper.make_graph(made, "g", values[:1], values[1:], stored)


def test_sums_and_products_behind_the_last_layers_are_found() -> None:
    nodes = [
        ("Conv", ["x", "w"], "body"),
        ("Add", ["body", "x"], "shortcut"),
        ("Conv", ["shortcut", "w"], "head"),
        ("Softmax", ["head"], "soft"),
        ("Mul", ["soft", "c"], "scaled"),
        ("Reshape", ["scaled", "c"], "shaped"),
        ("Add", ["shaped", "c"], "moved"),
        ("Concat", ["moved", "shaped"], "boxes"),
        ("Sigmoid", ["head"], "scores"),
    ]
    assert decoding(graph(nodes, ["boxes", "scores"])) == {"scaled", "moved", "boxes"}


def test_classifiers_stay_as_they_are() -> None:
    residual = [
        ("Conv", ["x", "w"], "one"),
        ("Add", ["one", "x"], "sum"),
        ("GlobalAveragePool", ["sum"], "pool"),
        ("MatMul", ["pool", "w"], "product"),
        ("Add", ["product", "c"], "logits"),
    ]
    assert decoding(graph(residual, ["logits"])) == set()
    assert decoding(graph([("Conv", ["x", "w"], "one"), ("GlobalAveragePool", ["one"], "pool")], ["pool"])) == set()
