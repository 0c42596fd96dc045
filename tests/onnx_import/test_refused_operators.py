"""Operators that are not imported are refused by name, in a line that can be read."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from gossamer import BadInput
from gossamer.onnx_import import import_onnx


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("QuantizeLinear", "QuantizeLinear is of a network in int8; give the float32 file that it was made from"),
        ("NonMaxSuppression", "the operator NonMaxSuppression cannot be imported; it is none of the"),
    ],
)
def test_what_is_not_imported_is_said_in_one_line(op: str, said: str, tmp_path: Path) -> None:
    boxes = op == "NonMaxSuppression"
    scale = helper.make_tensor("s", TensorProto.FLOAT, [1, 1, 4] if boxes else [], [0.5] * (4 if boxes else 1))
    kind, shape = (TensorProto.INT64, [1, 4, 4]) if boxes else (TensorProto.UINT8, [1, 4])
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "s"], ["y"], name="node")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(BadInput) as error:
        import_onnx(tmp_path / "net.onnx")
    assert said in str(error.value) and len(str(error.value)) < 200
