"""What programs rely on in a file that was imported is there again in what gossamer writes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gossamer.onnx_import import import_onnx
from gossamer.ptq.qdq import quantize_graph
from gossamer.runtime.onnx_export import export_onnx


def written(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str]) -> Path:
    """A file with a weight `w` of shape (2, 3, 3, 3) and metadata, whose values are float32."""
    weight = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", given, made, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"character": "a\nb"})
    onnx.save(model, path)
    return path


def sizes(values: object) -> list[list[int | str]]:
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]  # type: ignore[attr-defined]


def test_an_export_has_the_names_the_free_sizes_and_the_metadata_of_the_file(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["1"]), helper.make_node("Relu", ["1"], ["0"])]
    path = written(tmp_path / "a.onnx", nodes, {"x": ["n", 3, 8, "width"]}, ["0"])
    again = export_onnx(import_onnx(path), torch.rand(2, 3, 8, 10), tmp_path / "b.onnx")
    model = onnx.load(again)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "0"]
    assert sizes(model.graph.input) == [["n", 3, 8, "width"]]
    image = np.random.default_rng(1).random((1, 3, 8, 23), dtype=np.float32)
    first, second = (onnxruntime.InferenceSession(file).run(["0"], {"x": image})[0] for file in (path, again))
    np.testing.assert_allclose(first, second, atol=1e-6)
    int8 = quantize_graph(model, {}, exclude=[node.name for node in model.graph.node])
    assert [{p.key: p.value for p in m.metadata_props} for m in (model, int8)] == [{"character": "a\nb"}] * 2


def test_a_size_that_the_network_computes_with_is_not_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Constant", [], ["to"], value=numpy_helper.from_array(np.array([-1, 2 * 6 * 8]))),
        helper.make_node("Reshape", ["c", "to"], ["y"]),
    ]
    path = written(tmp_path / "a.onnx", nodes, {"x": ["n", 3, 8, "width"]}, ["y"])
    model = onnx.load(export_onnx(import_onnx(path), torch.rand(2, 3, 8, 10), tmp_path / "b.onnx"))
    assert sizes(model.graph.input)[0][1:3] == [3, 8]
    onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("batch, n", [(1, 1), ("n", 2), ("n", 3)])
def test_states_whose_samples_are_in_another_dimension_are_exported(tmp_path: Path, batch: int | str, n: int) -> None:
    """A state is (layers, samples, width), as recurrent layers have it, with two layers."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Unsqueeze", ["f", "zero"], ["u"]),
        helper.make_node("Concat", ["state", "u"], ["y"], axis=0),
    ]
    path = written(tmp_path / "a.onnx", nodes, {"x": [batch, 3, 8, 8], "state": [2, batch, 2]}, ["y"])
    again = export_onnx(import_onnx(path), (torch.rand(n, 3, 8, 8), torch.rand(2, n, 2)), tmp_path / "b.onnx")
    for samples in {n, n if batch == 1 else 5}:
        feed = {"x": np.ones((samples, 3, 8, 8), np.float32), "state": np.ones((2, samples, 2), np.float32)}
        first, second = (onnxruntime.InferenceSession(file).run(["y"], feed)[0] for file in (path, again))
        np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_recurrent_layer_takes_sequences_of_any_length_after_an_export(tmp_path: Path, direction: str) -> None:
    directions, rng = (2 if direction == "bidirectional" else 1), np.random.default_rng(0)
    shapes = {"weight": (directions, 16, 3), "hidden": (directions, 16, 4), "first": (directions, 1, 4)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    given = ["x", "weight", "hidden", "", "", "first", "first"]
    node = helper.make_node("LSTM", given, ["y", "h", "c"], hidden_size=4, direction=direction)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", 1, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "h")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    again = export_onnx(import_onnx(path), torch.rand(5, 1, 3), tmp_path / "b.onnx")
    assert sizes(onnx.load(again).graph.input) == [["time", 1, 3]]
    for length in (5, 9):
        feed = {"x": np.ones((length, 1, 3), np.float32)}
        first, second = (onnxruntime.InferenceSession(file).run(["y", "h"], feed) for file in (path, again))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_short_names_of_an_int8_file_are_none_of_its_inputs_and_outputs(tmp_path: Path) -> None:
    """Older exporters call values by number, and recurrent layers have inputs h and c."""
    nodes = [helper.make_node("Conv", ["c", "w"], ["m"]), helper.make_node("Relu", ["m"], ["0"])]
    path = written(tmp_path / "a.onnx", nodes, {"c": ["n", 3, 8, 8]}, ["0"])
    model = onnx.load(export_onnx(import_onnx(path), torch.rand(2, 3, 8, 8), tmp_path / "b.onnx"))
    values = {"c", *(name for node in model.graph.node for name in node.output)}
    int8 = quantize_graph(model, {**dict.fromkeys(values, (-16.0, 16.0)), "0": (0.0, 16.0)})
    image = np.random.default_rng(1).random((1, 3, 8, 8), dtype=np.float32)
    first, second = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(["0"], {"c": image})[0] for one in (model, int8)
    )
    np.testing.assert_allclose(first, second, atol=0.4)
