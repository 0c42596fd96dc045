"""Annotations in the official formats, letterboxes, batches with boxes, and composed scenes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gossamer.core.preprocessing import Preprocessing
from gossamer.data.arrays import DataSplit
from gossamer.data.box_files import FileScenes, letterbox
from gossamer.data.box_folder import box_folder_task, box_form
from gossamer.data.coco_files import mask_box, read_coco, read_run_lengths
from gossamer.data.composed import ComposedScenes
from gossamer.data.folder import ImageChoices
from gossamer.data.load import load_task
from gossamer.data.objects import BoxAugmentation, BoxBatches, mosaics, targets
from gossamer.data.voc_files import read_voc
from gossamer.data.wider_files import read_wider
from gossamer.data.yolo_files import read_yolo
from gossamer.detection.metrics import CocoAP, VocAP, unletterboxed
from gossamer.errors import BadInput, CorruptFile


def draw(path: Path, width: int, height: int, *boxes: tuple[int, int, int, int]) -> None:
    """A black image with white boxes."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# COCO


def instances(**changes: Any) -> dict[str, Any]:
    """Three images: a box and a crowd, none, one box."""
    rle = {"size": [60, 80], "counts": [60 * 10, 60 * 20, 60 * 50]}
    document: dict[str, Any] = {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": f"{n:012d}.png", "width": 80, "height": 60} for n in (139, 285, 632)],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 18, "bbox": [8, 10, 24, 30], "area": 500.5, "iscrowd": 0,
             "segmentation": [[8, 10, 32, 10, 32, 40]]},
            {"id": 2, "image_id": 139, "category_id": 1, "bbox": [10, 0, 20, 60], "area": 1200, "iscrowd": 1,
             "segmentation": rle},
            {"id": 3, "image_id": 632, "category_id": 1, "bbox": [0.5, 0, 79.5, 60], "area": 4770, "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person", "supercategory": "person"}],
    }  # fmt: skip
    return document | changes


def coco_folder(root: Path, document: Any = None) -> Path:
    for split in ("train2017", "val2017"):
        for n in (139, 285, 632):
            draw(root / split / f"{n:012d}.png", 80, 60, (8, 10, 32, 40))
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(instances() if document is None or "val" in split else document))
    return root


def test_coco_instances_are_read_with_crowds_areas_and_images_without_objects(tmp_path: Path) -> None:
    found = read_coco(coco_folder(tmp_path))
    assert found.classes == ("person", "dog") and found.said == "" and found.test is None
    assert found.validation is not None and len(found.validation) == 3
    first, empty, last = found.train
    assert first.objects.boxes.tolist() == [[8, 10, 32, 40], [10, 0, 30, 60]] and first.objects.labels.tolist() == [
        1,
        0,
    ]
    assert first.objects.crowd is not None and first.objects.crowd.tolist() == [False, True]
    assert first.objects.areas is not None and first.objects.areas.tolist() == [500.5, 1200]
    assert empty.objects.boxes.shape == (0, 4) and last.objects.boxes.tolist() == [[0.5, 0, 80, 60]]


def annotation(**changes: Any) -> dict[str, Any]:
    return instances(annotations=[*instances()["annotations"], {**instances()["annotations"][2], "id": 9, **changes}])


FAULTS = [
    (annotation(bbox=[1, 1, float("nan"), 3]), "1 x box with NaN or infinite numbers: .* annotation 9"),
    (annotation(bbox=[1, 1, 0, 3]), "1 x box without area: instances_train2017.json annotation 9"),
    (annotation(bbox=[70, 1, 20, 3]), "1 x box outside of its image: instances_train2017.json annotation 9"),
    (annotation(bbox=[1, 2, 3]), "1 x box that is not four numbers: instances_train2017.json annotation 9"),
    (annotation(category_id=7), r"1 x unknown category: instances_train2017.json annotation 9 \(category 7\)"),
    (annotation(image_id=7), r"1 x annotation of an image that is not there: .* annotation 9 \(image 7\)"),
    (annotation(id=3), "1 x annotation id that is there twice: instances_train2017.json annotation 3"),
    (instances(images=[*instances()["images"], instances()["images"][0]]), "1 x image id that is there twice: .*139"),
    (instances(images=[*instances()["images"], {"id": 5, "file_name": "5.png", "width": 8, "height": 8}]),
     "1 x image file that is missing: .*train2017/5.png"),
    (annotation(segmentation={"size": [60, 80], "counts": [5]}), "1 x mask that cannot be read: .* do not fill"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "message"), FAULTS)
def test_faulty_annotations_are_named_and_refused_or_left_out(tmp_path: Path, document: Any, message: str) -> None:
    folder = coco_folder(tmp_path, document)
    with pytest.raises(CorruptFile, match=message):
        read_coco(folder)
    found = read_coco(folder, "skip")
    assert found.said.startswith("left out: 1 x") and sum(len(one.objects.labels) for one in found.train) == 3


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (instances(annotations=[{"id": 1, "image_id": 139, "caption": "a dog"}]), "annotations of captions, not of"),
        (instances(annotations=[{"image_id": 139, "segments_info": []}]), "annotations of panoptic segments"),
        ({"images": []}, "must have lists of images, annotations, categories"),
        ([1], "must have lists of"),
    ],
)
def test_json_of_another_task_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_coco(coco_folder(tmp_path, document))


def test_run_lengths_are_those_of_pycocotools() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(x) for x in random.integers(1, 60, 2))
        inside = np.asfortranarray(random.random((height, width)) < random.choice([0.02, 0.5, 0.98]), dtype=np.uint8)
        encoded = mask.encode(inside)
        given = {"size": [height, width], "counts": encoded["counts"].decode()}
        box, area = mask_box(given, height, width)
        assert area == inside.sum() == mask.area(encoded)
        x, y, w, h = mask.toBbox(encoded).tolist()
        assert box == [x, y, x + w, y + h] or not area


@pytest.mark.parametrize("text", ["5o", "5 2", "P"])
def test_run_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        read_run_lengths(text)


# PASCAL VOC

VOC_XML = """<annotation><folder>VOC2007</folder><filename>{stem}.png</filename>
<size><width>80</width><height>60</height><depth>3</depth></size><segmented>0</segmented>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>9</xmin><ymin>11</ymin><xmax>32</xmax><ymax>40</ymax></bndbox></object>
<object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{right}</xmax><ymax>60</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part></object>
</annotation>"""


def voc(root: Path, name: str = "person", right: str = "80") -> Path:
    folder = root / "VOC2007"
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for stem in ("000005", "000007", "000001"):
        text = VOC_XML.format(stem=stem, name=name if stem == "000005" else "person", right=right)
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
        draw(folder / "JPEGImages" / f"{stem}.png", 80, 60)
    (folder / "ImageSets/Main/trainval.txt").write_text("000005\n000007\n")
    (folder / "ImageSets/Main/train.txt").write_text("000005\n")
    (folder / "ImageSets/Main/test.txt").write_text("000001\n")
    return folder


def test_voc_is_read_with_official_splits_and_difficult_objects(tmp_path: Path) -> None:
    found = read_voc(voc(tmp_path))
    assert [one.path.stem for one in found.train] == ["000005", "000007"] and found.test is not None
    assert [one.path.stem for one in found.test] == ["000001"] and len(found.classes) == 20
    objects = found.train[0].objects
    assert objects.boxes.tolist() == [[8, 10, 32, 40], [0, 0, 80, 60]]
    assert [found.classes[label] for label in objects.labels] == ["dog", "person"]
    assert objects.difficult is not None and objects.difficult.tolist() == [False, True]
    assert read_voc(voc(tmp_path / "own", name="gnu")).classes == ("dog", "gnu", "person")


def test_faulty_files_of_voc_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"3 x box that is not four numbers: 000005.xml object 1, 000007"):
        read_voc(voc(tmp_path / "a", right="wide"))
    with pytest.raises(CorruptFile, match="3 x box outside of its image"):
        read_voc(voc(tmp_path / "b", right="90"))
    folder = voc(tmp_path / "c")
    (folder / "Annotations/000007.xml").write_text("<!DOCTYPE x><annotation/>")
    with pytest.raises(CorruptFile, match=r"000007.xml cannot be read as XML: it declares entities"):
        read_voc(folder)
    (folder / "Annotations/000007.xml").unlink()
    with pytest.raises(CorruptFile, match=r"annotation file that is missing: .*000007.xml"):
        read_voc(folder)
    (folder / "ImageSets/Main/trainval.txt").write_text("000005\n000005\n")
    with pytest.raises(CorruptFile, match=r"in a list twice: trainval.txt 000005"):
        read_voc(folder)


# YOLO


def yolo(root: Path, line: str = "1 0.25 0.5 0.3 0.5", names: str = "[person, dog]") -> Path:
    for split in ("train", "val"):
        for n in range(3):
            draw(root / "images" / split / f"{n}.png", 80, 60)
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "0.txt").write_text(f"{line}\n\n0 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text(f"path: /elsewhere\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return root / "data.yaml"


def test_yolo_is_read_with_images_that_have_no_text_file(tmp_path: Path) -> None:
    found = read_yolo(yolo(tmp_path))
    assert found.classes == ("person", "dog") and [len(one.objects.labels) for one in found.train] == [2, 0, 0]
    torch.testing.assert_close(found.train[0].objects.boxes[0], torch.tensor([8.0, 15, 32, 45]))
    assert found.train[0].objects.labels.tolist() == [1, 0]
    assert read_yolo(yolo(tmp_path / "b", names="{0: person, 1: dog}")).classes == ("person", "dog")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"2 x unknown category: 0.txt line 1 \(class 2\)"),
        ("1 0.5 0.5 0.1", "2 x line that is not a class and four numbers: 0.txt line 1"),
        ("1 0.9 0.5 0.4 0.1", "2 x box outside of its image: 0.txt line 1"),
        ("1 0.5 nan 0.4 0.1", "2 x box with NaN"),
        ("1 0.5 0.5 0 0.1", "2 x box without area"),
    ],
)
def test_faulty_lines_of_yolo_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_yolo(yolo(tmp_path, line))


# WIDER FACE

WIDER = """0--Parade/0_Parade_1.png
2
8 10 24 30 2 1 1 0 2 1
40 5 {width} 10 0 0 0 {invalid} 0 0
1--Handshaking/1_Handshaking_9.png
0
0 0 0 0 0 0 0 0 0 0
"""


def wider(root: Path, width: str = "12", invalid: str = "1") -> Path:
    (root / "wider_face_split").mkdir(parents=True)
    for split in ("train", "val"):
        for name in ("0--Parade/0_Parade_1.png", "1--Handshaking/1_Handshaking_9.png"):
            draw(root / f"WIDER_{split}" / "images" / name, 80, 60)
        text = WIDER.format(width=width, invalid=invalid)
        (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text)
    return root


def test_wider_face_is_read_with_invalid_faces_and_images_without_any(tmp_path: Path) -> None:
    found = read_wider(wider(tmp_path))
    assert found.classes == ("face",) and found.validation is not None and found.test is None
    first, second = found.train
    assert first.objects.boxes.tolist() == [[8, 10, 32, 40], [40, 5, 52, 15]] and first.sides == (60, 80)
    assert first.objects.difficult is not None and first.objects.difficult.tolist() == [False, True]
    assert second.path.name == "1_Handshaking_9.png" and second.objects.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "0"}, r"2 x box without area: wider_face_train_bbx_gt.txt 0--Parade/0_Parade_1.png face 1"),
        ({"width": "50"}, "2 x box outside of its image"),
        ({"width": "wide"}, "2 x line that is not 10 numbers"),
        ({"invalid": "1 1"}, "2 x line that is not 10 numbers"),
    ],
)
def test_faulty_faces_of_wider_face_are_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    folder = wider(tmp_path, **options)
    with pytest.raises(CorruptFile, match=message):
        read_wider(folder)
    assert [len(one.objects.labels) for one in read_wider(folder, "skip").train] == [1, 0]


def test_lists_of_wider_face_that_are_none_are_refused(tmp_path: Path) -> None:
    path = wider(tmp_path) / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    text = path.read_text()
    path.write_text(text.replace("\n2\n", "\n3\n"))
    with pytest.raises(CorruptFile, match="the number of faces of"):
        read_wider(tmp_path)
    path.write_text(text.replace("\n0\n0 0", "\n4\n0 0"))
    with pytest.raises(CorruptFile, match="ends within the faces of 1--Handshaking"):
        read_wider(tmp_path)
    path.write_text(text.replace("1--Handshaking/1_Handshaking_9.png", "0--Parade/0_Parade_1.png"))
    with pytest.raises(CorruptFile, match="image that is in a list twice"):
        read_wider(tmp_path)


# Tasks


def test_images_with_boxes_are_read_as_a_network_or_the_user_wants_them() -> None:
    own = Preprocessing(size=96, channels=1, mean=(0.16,), std=(0.25,))
    assert box_form(ImageChoices()).sides == (320, 320) and box_form(ImageChoices(size=64)).sides == (64, 64)
    assert box_form(ImageChoices(size=64, preprocessing=own)) == own
    assert box_form(ImageChoices(preprocessing=own, fields={"size": 128})).sides == (128, 128)
    grey = box_form(ImageChoices(fields={"channels": 1}))
    assert (grey.mean, grey.std) == ((0.0,), (1.0,))
    assert box_form(ImageChoices(fields={"mean": (0.5,), "std": (0.5,)})).mean == (0.5, 0.5, 0.5)
    with pytest.raises(BadInput, match="not into 64 x 96"):
        box_form(ImageChoices(fields={"size": 96, "width": 64}))


def test_a_mosaic_has_the_objects_of_four_images_at_half_their_size() -> None:
    x = torch.stack([torch.full((1, 8, 8), 10 * i, dtype=torch.uint8) for i in range(1, 5)])
    boxes = torch.tensor([[[0.0, 2.0, 4.0, 8.0]]]).repeat(4, 1, 1)
    target = {"boxes": boxes, "labels": torch.arange(4)[:, None], "area": torch.full((4, 1), 24.0)}
    images, joined = mosaics(x, target, 1.0, torch.Generator().manual_seed(0))
    assert joined["boxes"][0].tolist() == [[0, 1, 2, 4], [4, 1, 6, 4], [0, 5, 2, 8], [4, 5, 6, 8]]
    for image, labels in zip(images, joined["labels"]):
        assert [int(image[0, r, c]) // 10 - 1 for r, c in ((0, 0), (0, 7), (7, 0), (7, 7))] == labels.tolist()
    assert joined["area"].unique().tolist() == [6.0] and joined["labels"][:, 0].tolist() == [0, 1, 2, 3]
    same, padded = mosaics(x, target, 0.0, torch.Generator())
    assert torch.equal(same, x) and padded["labels"][2].tolist() == [2, -1, -1, -1]
    moved, after = BoxAugmentation(mosaic=1.0)(x, target, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and after["labels"].shape == (4, 4)


def test_images_are_letterboxed_and_boxes_go_with_their_pixels(tmp_path: Path) -> None:
    task = box_folder_task(coco_folder(tmp_path), ImageChoices(size=64), augment=False)
    assert task is not None and isinstance(task.metric, CocoAP) and task.final_split == "test"
    assert task.test is not None
    x, target = next(iter(task.test))
    assert x.shape == (3, 3, 64, 64) and target["boxes"].shape == (3, 2, 4)
    place = letterbox(60, 80, 64)
    assert place == letterbox(60, 80, 64) and place.sides == (48, 64) and place.top == 8
    left, top, right, bottom = target["boxes"][0, 0].tolist()
    assert [left, top, right, bottom] == pytest.approx([6.4, 16, 25.6, 40])
    assert x[0, :, 20:36, 9:23].min() == 1 and x[0, :, 12, 2].max() == 0  # white inside, black outside
    assert x[0, 0, 0, 0] == pytest.approx(114 / 255)
    torch.testing.assert_close(
        unletterboxed(target["boxes"], target["letterbox"])[0, 0], torch.tensor([8.0, 10, 32, 40])
    )
    assert target["labels"].tolist() == [[1, 0], [-1, -1], [0, -1]] and target["area"][0].tolist() == [500.5, 1200]
    assert box_folder_task(tmp_path / "annotations") is None


def test_each_format_is_found_by_its_folders(tmp_path: Path) -> None:
    task = load_task(voc(tmp_path / "devkit"), augment=False, size=64)
    assert isinstance(task.metric, VocAP) and task.metric.recalls == 11
    assert load_task(yolo(tmp_path / "yolo").parent, size=64).classes == ("person", "dog")
    folder = coco_folder(tmp_path / "coco", annotation(category_id=7))
    with pytest.raises(CorruptFile, match='leave them out with faulty="skip"'):
        load_task(folder)
    assert load_task(folder, faulty="skip", size=96).example_inputs[0].shape[2:] == (96, 96)
    with pytest.raises(BadInput, match="multiple of 32"):
        load_task(tmp_path / "yolo", size=100)


def test_an_image_of_another_size_than_its_annotation_says_is_refused(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    draw(folder / "train2017/000000000139.png", 60, 80)
    found, task = read_coco(folder), box_folder_task(folder, ImageChoices(size=32))
    assert task is not None and task.preprocessing is not None
    with pytest.raises(CorruptFile, match="has 60x80 pixels, its annotation says 80x60"):
        FileScenes(found.train, task.preprocessing)[torch.tensor([0])]


def scenes(count: int = 6) -> ComposedScenes:
    random = torch.Generator().manual_seed(0)
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 8:20] = torch.randint(150, 255, (20, 1, 20, 12), generator=random, dtype=torch.uint8)
    return ComposedScenes(DataSplit(images=images, labels=torch.arange(20) % 4), count, seed=3)


def test_composed_scenes_are_the_same_every_time_and_boxes_enclose_what_is_drawn() -> None:
    one, other, index = scenes(), scenes(), torch.tensor([4, 1])
    assert torch.equal(one[index], other[index]) and torch.equal(one[index][1], one[torch.tensor([1])][0])
    for place in range(6):
        image, objects = one[torch.tensor([place])][0, 0], one.objects(place)
        bright = (image > 60).nonzero()
        assert len(objects.labels) >= 1
        for left, top, right, bottom in objects.boxes.long().tolist():
            inside = image[top:bottom, left:right]
            assert (inside > 60).float().mean() > 0.8
        x, y = bright[:, 1].float() + 0.5, bright[:, 0].float() + 0.5
        covered = [((x > b[0]) & (x < b[2]) & (y > b[1]) & (y < b[3])) for b in objects.boxes]
        assert torch.stack(covered).any(0).all()


def test_augmentation_moves_boxes_with_their_pixels_and_drops_what_leaves_the_image() -> None:
    one = scenes()
    x, target = one[torch.arange(6)], targets(one, range(6))
    moved, boxes = BoxAugmentation(shift=0.3, flip=True)(x, target, torch.Generator().manual_seed(1))
    changed = 0
    for image, rows, labels in zip(moved, boxes["boxes"], boxes["labels"]):
        for (left, top, right, bottom), label in zip(rows.long().tolist(), labels.tolist()):
            if label >= 0:
                changed += 1
                assert (image[0, top:bottom, left:right] > 60).float().mean() > 0.75
    assert 0 < changed < int((target["labels"] >= 0).sum())
    assert boxes["boxes"].min() >= 0 and boxes["boxes"].max() <= 96


def test_batches_with_boxes_are_shared_by_processes_and_skipped_like_others() -> None:
    task = load_task("composed-digits", batch_size=8)
    assert isinstance(task.train, BoxBatches) and task.train.moves is not None and not task.train.moves.flip
    assert task.train.unaugmented().moves is None and task.classes[3] == "3"
    small = BoxBatches(
        scenes(), None, scenes=scenes(), batch_size=4, normalisation=task.train.normalisation, shuffle=True
    )
    whole: list[Any] = list(small)
    second: Any = next(small.start(1))
    assert torch.equal(second[0], whole[1][0]) and torch.equal(second[1]["boxes"], whole[1][1]["boxes"])
    halves: list[Any] = [next(iter(small.shard(rank, 2))) for rank in range(2)]
    assert torch.equal(torch.stack([h[0] for h in halves], 1).flatten(0, 1), whole[0][0])
    assert torch.equal(torch.stack([h[1]["labels"] for h in halves], 1).flatten(0, 1), whole[0][1]["labels"])
