"""Value: `--preprocessing` and what an `.onnx` file says of its input decide how images become inputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from gossamer.cli.image_fields import fields_of_onnx, parse_fields
from gossamer.cli.loading_data import Consumer, load_data, usual_batch
from gossamer.errors import BadInput, CorruptFile


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("size=48x64", {"size": 48, "width": 64}),
        ("size=48", {"size": 48, "width": None}),
        ("numbers=0-255,order=bgr", {"mean": (0.0,), "std": (1 / 255,), "order": "bgr"}),
        ("mean=0.1/0.2/0.3,crop=none,layout=nhwc", {"mean": (0.1, 0.2, 0.3), "crop": None, "layout": "nhwc"}),
    ],
)
def test_fields_are_read_as_they_are_written(text: str, fields: dict[str, object]) -> None:
    assert parse_fields(text) == fields


def test_fields_come_from_a_file_as_well(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"size": 9, "mean": [0.5], "classes": ["a"]}')
    assert parse_fields(str(tmp_path / "p.json")) == {"size": 9, "mean": (0.5,)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size", "no field=value"),
        ("size=big", "cannot be read"),
        ("sise=3", "did you mean 'size'"),
        ("numbers=x", "0-1"),
    ],
)
def test_what_is_no_field_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_fields(text)


def _file(path: Path, *sizes: int | str) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_an_onnx_file_says_its_sides_and_layout(tmp_path: Path) -> None:
    said: list[str] = []
    found = fields_of_onnx(_file(tmp_path / "a.onnx", 1, 3, 8, 6), said.append)
    assert found == {"channels": 3, "layout": "nchw", "size": 8, "width": 6} and "--preprocessing" in said[0]
    free = fields_of_onnx(_file(tmp_path / "b.onnx", "n", "h", "w", 3), said.append)
    assert free == {"channels": 3, "layout": "nhwc"}
    assert fields_of_onnx(_file(tmp_path / "c.onnx", 1, 80), said.append) == {}


def _images(folder: Path) -> str:
    folder.mkdir()
    for i in range(8):
        pixels = np.full((10, 12, 3), (200, 100, i), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


def test_images_come_as_the_file_wants_them(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.onnx", 1, 8, 6, 3)
    task = load_data(
        _images(tmp_path / "images"), consumer=Consumer(model=str(path), preprocessing="numbers=0-255,order=bgr")
    )
    [batch] = list(task.test)  # type: ignore[arg-type]
    assert tuple(batch.shape[1:]) == (8, 6, 3)
    assert batch[0, 4, 3, 1:].tolist() == pytest.approx([100, 200], abs=1e-3)
    assert task.preprocessing is not None and task.preprocessing.sides == (8, 6)


def test_grey_images_become_those_of_a_colour_network(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.onnx", 1, 3, 8, 8)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
    assert load_data(str(folder), consumer=Consumer(model=str(path))).example_inputs[0].shape[1:] == (3, 8, 8)


def test_a_call_that_is_timed_has_fewer_samples_where_they_are_large(tmp_path: Path) -> None:
    import torch

    assert usual_batch((torch.zeros(1, 3, 640, 640, device="meta"),), None) == 1
    assert usual_batch((torch.zeros(1, 3, 28, 28),), None) == 64
    assert usual_batch((torch.zeros(1, 3, 640, 640, device="meta"),), 5) == 5


def _boxes(root: Path) -> Path:
    """A folder as YOLO has it, with a box outside of its image."""
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for n in range(3):
            Image.new("RGB", (40, 30)).save(root / "images" / split / f"{n}.png")
            (root / "labels" / split / f"{n}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "labels" / "train" / "1.txt").write_text("0 0.9 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


def test_faulty_boxes_are_left_out_where_that_is_asked_for_and_images_are_as_the_fields_say(tmp_path: Path) -> None:
    folder = str(_boxes(tmp_path))
    with pytest.raises(CorruptFile) as refused:
        load_data(folder)
    assert "--skip-faulty" in str(refused.value.shell) and "--skip-faulty" not in str(refused.value)
    task = load_data(folder, consumer=Consumer(skip_faulty=True, preprocessing="size=64,channels=1"))
    assert task.example_inputs[0].shape[1:] == (1, 64, 64)
    with pytest.raises(BadInput, match="--skip-faulty is for folders with boxes; digits has none"):
        load_data("digits", consumer=Consumer(skip_faulty=True))
