"""ONNX files of others: refused in one message that names the file and what is wrong, before a runtime opens them."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gossamer.cli.file_summary import read_contents
from gossamer.errors import CorruptFile
from gossamer.runtime.metadata import STRUCTURE
from gossamer.runtime.runners import open_runner

RUNTIMES = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def model(*, domain: str = "") -> onnx.ModelProto:
    """y = x + w, with w of four values."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], domain=domain)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def outside(made: onnx.ModelProto, location: str, **more: int) -> None:
    """Put the weight into another file."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))


def change(made: onnx.ModelProto, how: str) -> None:
    tensor = made.graph.initializer[0]
    match how.partition(" ")[0]:
        case "outside":
            outside(made, how.partition(" ")[2])
        case "short":
            tensor.dims[0] = 5
        case "huge":
            tensor.ClearField("raw_data")
            tensor.dims[0] = 1 << 50
        case "negative":
            tensor.dims[0] = -4
        case "type":
            tensor.data_type = 99
        case "empty":
            made.Clear()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("outside ../../etc/passwd", "only files in the folder of the .onnx"),
        ("outside /etc/passwd", "only files in the folder of the .onnx"),
        ("outside a\\..\\..\\b", "only files in the folder of the .onnx"),
        ("outside link", "a link that leads out"),
        ("outside none.data", "which is missing next to the .onnx"),
        ("outside short.data", "reaches over the end of"),
        ("short", "has 16 bytes; its shape needs 20"),
        ("huge", "more than the file holds for it"),
        ("negative", "has the shape [-4]"),
        ("type", "has the type 99, which does not exist"),
        ("empty", "it has no graph"),
    ],
)
def test_a_file_that_asks_for_what_it_does_not_hold_is_refused(how: str, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short.data").write_bytes(bytes(15))
    made, path = model(), folder / "net.onnx"
    change(made, how)
    path.write_bytes(made.SerializeToString())
    for act in (lambda: read_contents(path), lambda: open_runner("onnxruntime", path)):
        with pytest.raises(CorruptFile) as error:
            act()
        assert words in str(error.value) and "net.onnx" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("text", ["{not JSON", '{"a": 7}', '{"a": "b"}', "[" * 5000, "[" * 40 + "0" + "]" * 40])
def test_metadata_that_gossamer_does_not_write_is_refused(text: str, runtime: str, tmp_path: Path) -> None:
    made, path = model(), tmp_path / "net.onnx"
    made.metadata_props.add(key=STRUCTURE, value=text)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(CorruptFile, match=r"net\.onnx: its metadata about outputs"):
        open_runner(runtime, path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_operators_that_nobody_knows_and_files_cut_short_are_refused(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model(domain="my.own").SerializeToString())
    with pytest.raises(CorruptFile, match=r"calls 'Add' of 'my\.own', which no runtime here knows"):
        open_runner(runtime, path)
    path.write_bytes(model().SerializeToString()[:-30])
    with pytest.raises(CorruptFile, match=r"net\.onnx"):
        open_runner(runtime, path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_long_name_out_of_a_file_does_not_fill_the_message(runtime: str, tmp_path: Path) -> None:
    damaged = model()
    damaged.graph.node[0].op_type = "Add" * 3000
    path = tmp_path / "net.onnx"
    path.write_bytes(damaged.SerializeToString())
    with pytest.raises(CorruptFile) as error:
        open_runner(runtime, path, threads=1)
    assert len(str(error.value)) < 300 + len(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_in_a_file_beside_it_are_read(runtime: str, tmp_path: Path) -> None:
    made, path = model(), tmp_path / "net.onnx"
    outside(made, "data/w", offset=4096, length=16)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w").write_bytes(bytes(4096) + np.full(4, 2, np.float32).tobytes())
    path.write_bytes(made.SerializeToString())
    assert torch.equal(open_runner(runtime, path)(torch.ones(2, 4)), torch.full((2, 4), 3.0))
    assert read_contents(path).file_bytes == path.stat().st_size + 4096 + 16


def test_the_keys_of_metadata_are_those_of_files_written_before() -> None:
    from gossamer.runtime import metadata

    assert (metadata.STRUCTURE, metadata.PREPROCESSING) == ("gossamer.outputs", "gossamer.preprocessing")
