"""Folders with boxes that say something else: each is answered by one message that names what, where and the rule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_boxes import annotation, coco_folder, instances, voc, wider, yolo

from gossamer.data.box_folder import read_box_folder
from gossamer.data.coco_files import read_coco
from gossamer.data.load import load_task
from gossamer.errors import BadInput, CorruptFile


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (annotation(image_id=[1]), r"1 x annotation of an image that is not there: .* annotation 9 \(image \[1\]\)"),
        (annotation(category_id={}), r"1 x unknown category: .* annotation 9 \(category {}\)"),
        (annotation(category_id=True), r"1 x unknown category: .* annotation 9 \(category True\)"),
        (annotation(area="x"), r"1 x area that is no number from 0 on: .* annotation 9 \(area 'x'\)"),
        (annotation(area=float("nan")), "1 x area that is no number from 0 on: .* annotation 9"),
        (annotation(area=-5), "1 x area that is no number from 0 on: .* annotation 9"),
        (annotation(iscrowd="yes"), r"1 x iscrowd that is neither 0 nor 1: .* annotation 9 \(iscrowd 'yes'\)"),
        (annotation(bbox=[1, 1, 10**400, 3]), "1 x box with NaN or infinite numbers: .* annotation 9"),
    ],
)
def test_values_of_another_kind_in_coco_are_named_and_refused_or_left_out(
    tmp_path: Path, document: Any, message: str
) -> None:
    folder = coco_folder(tmp_path, document)
    with pytest.raises(CorruptFile, match=message):
        read_coco(folder)
    assert sum(len(one.objects.labels) for one in read_coco(folder, "skip").train) == 3


def test_categories_of_another_name_in_the_validation_file_are_refused(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path, instances(categories=[{"id": 18, "name": "cat"}, {"id": 1, "name": "person"}]))
    with pytest.raises(
        CorruptFile, match=r"instances_val2017.json: category 18 is 'dog', in the training file .* 'cat'"
    ):
        read_coco(folder)


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 9])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    folder = coco_folder(tmp_path)
    (folder / "train2017" / "000000000139.png").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"000000000139.png is not an image that can be read.*; repair or remove it"):
        list(load_task(folder).train)


def changed(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "Annotations/000005.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("<name>dog</name>", ""), "1 x object without a class: 000005.xml object 0"),
        (changed("<name>dog</name>", "<name> </name>"), "1 x object without a class: 000005.xml object 0"),
        (
            changed("<difficult>0</difficult>", "<difficult>maybe</difficult>"),
            r"1 x difficult that is neither 0 nor 1: 000005.xml object 0 \(maybe\)",
        ),
    ],
)
def test_objects_of_voc_that_lack_something_are_named(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = voc(tmp_path)
    change(folder)
    with pytest.raises(CorruptFile, match=message):
        read_box_folder(folder)


def test_a_text_file_of_yolo_whose_image_is_missing_is_named(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels/train/classes.txt").write_text("person\ndog\n")
    assert read_box_folder(tmp_path) is not None
    (tmp_path / "labels/train/7.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    with pytest.raises(CorruptFile, match=r"1 x text file without an image: .*labels/train/7.txt"):
        read_box_folder(tmp_path)


def without_training(root: Path) -> Path:
    folder = coco_folder(root)
    (folder / "annotations/instances_train2017.json").unlink()
    return folder


def captions(root: Path) -> Path:
    (root / "annotations").mkdir()
    (root / "annotations/captions_train2017.json").write_text(json.dumps({"annotations": []}))
    return root


def without_lists(root: Path) -> Path:
    folder = voc(root)
    (folder / "ImageSets").rename(folder / "Lists")
    return folder


def described(text: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        yolo(root).write_text(text)
        return root

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_training, r"annotations has instances_val2017.json; objects to train on are in .* instances_train"),
        (captions, r"annotations has captions_train2017.json; objects to train on are in a file instances_train"),
        (without_lists, r"VOC2007 has Annotations, but no lists of its splits: ImageSets/Main/train.txt is missing"),
        (described("val: images/val\nnames: [a, b]\n"), "data.yaml does not name train, as the data set"),
        (described("- a\n"), "data.yaml does not name names and train"),
        (described("train: [images\nnames: {\n"), "data.yaml cannot be read as YAML: "),
        (described("train: images/train\nnames: [a, b]\nnc: 5\n"), "nc = 5, but there are 2 names"),
    ],
)
def test_what_a_data_set_lacks_is_said(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    folder = make(tmp_path)
    with pytest.raises(BadInput, match=message):
        load_task(folder)


def test_a_folder_of_wider_face_is_as_before(tmp_path: Path) -> None:
    found = read_box_folder(wider(tmp_path))
    assert found is not None and torch.equal(found[0].train[1].objects.boxes, torch.zeros(0, 4))
