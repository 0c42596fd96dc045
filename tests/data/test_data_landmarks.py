"""Landmarks in the formats of 300-W, AFLW and COCO: files, squares, splits, and what is wrong with a file."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gossamer.data.keypoint_files import keypoint_files, read_aflw, read_points, read_pts
from gossamer.data.landmark_files import FaceCrops, landmark_task
from gossamer.data.load import load_task
from gossamer.detection.landmarks import KeypointRecall, LandmarkError, landmark_errors
from gossamer.errors import BadInput, CorruptFile

POINTS = "version: 1\nn_points:  3\n{\n21.0 11.0\n41.0 11.0\n31.0 31.0\n}\n"


def folder_of(root: Path, points: str = POINTS) -> Path:
    """Three training faces and a test face, a white pixel at each landmark."""
    for name in ("trainset/a", "trainset/b", "trainset/c", "testset/d"):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        for x, y in ((20, 10), (40, 10), (30, 30)):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        Image.fromarray(pixels).save(path)
        path.with_suffix(".pts").write_text(POINTS if name != "trainset/b" else points)
    return root


def test_points_count_from_0_and_are_as_many_as_the_file_says(tmp_path: Path) -> None:
    path = folder_of(tmp_path) / "trainset" / "a.pts"
    assert read_points(path).tolist() == [[20, 10], [40, 10], [30, 30]]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (POINTS.replace("3\n{", "4\n{"), "b.pts says that it has 4 points of two numbers; it has 3 lines"),
        (POINTS.replace("21.0 11.0", "21.0"), "b.pts says that it has 3 points of two numbers"),
        (POINTS.replace("21.0", "nan"), "b.pts says that it has 3 points of two numbers"),
        (POINTS.replace("21.0", "left"), "b.pts is no file of landmarks"),
        (POINTS.replace("21.0", "90000"), "b.pts: landmark or box farther outside of the image than its longer side"),
        (POINTS.replace("21.0", "1e300"), "b.pts: landmark or box farther outside"),
        ("20 10", "b.pts is no file of landmarks with n_points and a list in braces"),
        (POINTS.replace("3\n{", "1\n{").replace("41.0 11.0\n31.0 31.0\n", ""), r"faces have \[1, 3\] landmarks; b.png"),
        (POINTS.replace("31.0 31.0", "31.0 11.0"), "b.pts: its landmarks lie on a line"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, points: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_pts(folder_of(tmp_path, points))


def test_landmarks_without_an_image_are_refused_and_folders_without_landmarks_are_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "faces")
    (folder / "trainset" / "c.png").unlink()
    with pytest.raises(CorruptFile, match=r"1 files of landmarks have no image beside them: c.pts"):
        read_pts(folder)
    (tmp_path / "empty").mkdir()
    assert landmark_task(tmp_path / "empty") is None
    with pytest.raises(BadInput, match="0 training faces are too few"):
        landmark_task(only_test(tmp_path / "only"))


def only_test(root: Path) -> Path:
    folder = folder_of(root)
    for path in (folder / "trainset").iterdir():
        path.unlink()
    return folder


def test_landmarks_go_with_the_pixels_of_their_square(tmp_path: Path) -> None:
    task = load_task(folder_of(tmp_path), size=60)
    assert isinstance(task.metric, LandmarkError) and task.metric.between is None and task.test is not None
    x, points = next(iter(task.test))
    assert x.shape == (1, 3, 60, 60) and points.tolist() == [[[10, 10], [50, 10], [30, 50]]]
    for column, row in points[0].long().tolist():
        assert float(x[0, :, row, column].min()) > 0.8 and float(x[0, :, row - 6, column].max()) < 0.2
    exact = task.metric.evidence(lambda x: points.expand(len(x), -1, -1), task.final)
    assert float(exact["score"].max()) == 0
    train, validation = (sum(len(batch[0]) for batch in loader) for loader in (task.train, task.validation))
    assert (train, validation) == (2, 1)


def test_a_face_at_the_edge_has_black_beside_it(tmp_path: Path) -> None:
    faces = read_pts(folder_of(tmp_path))
    task = landmark_task(tmp_path, size=64)
    assert task is not None and task.preprocessing is not None
    moved = [type(one)(path=one.path, sides=one.sides, points=one.points - torch.tensor([25.0, 0.0])) for one in faces]
    x = FaceCrops(moved[:1], task.preprocessing)[torch.tensor([0])]
    assert x.shape == (1, 3, 64, 64) and int(x[0, :, :, :5].max()) == 0


def image(path: Path, size: tuple[int, int] = (60, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def aflw_of(root: Path, *more: str) -> Path:
    """Six images, the first with two faces; a face has the landmarks 7, 8 and 21 of the 21. more: statements."""
    database = sqlite3.connect(root / "aflw.sqlite")
    database.executescript(
        """
        CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT);
        CREATE TABLE FaceImages (image_id INTEGER PRIMARY KEY, db_id TEXT, file_id TEXT, filepath TEXT, bw INTEGER,
            width INTEGER, height INTEGER);
        CREATE TABLE FaceRect (face_id INTEGER, x INTEGER, y INTEGER, w INTEGER, h INTEGER, annot_type_id INTEGER);
        CREATE TABLE FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL, annot_type_id INTEGER);
        """
    )
    for face in range(7):
        file = max(0, face - 1)
        database.execute("INSERT INTO Faces VALUES (?, ?, 'flickr')", (face, f"image{file}.jpg"))
        database.execute("INSERT INTO FaceRect VALUES (?, ?, 5, 20, 30, 1)", (face, 10 + face))
        for feature, x, y in ((7, 15, 10), (8, 25, 10), (21, 20, 30)):
            database.execute("INSERT INTO FeatureCoords VALUES (?, ?, ?, ?, 1)", (face, feature, x + face, y))
    for file in range(6):
        row = (file, f"image{file}.jpg", f"0/image{file}.jpg")
        database.execute("INSERT INTO FaceImages VALUES (?, 'flickr', ?, ?, 0, 60, 40)", row)
        image(root / "flickr" / "0" / f"image{file}.jpg")
    for statement in more:
        database.execute(statement)
    database.commit()
    database.close()
    return root


def test_aflw_faces_have_their_landmarks_and_boxes(tmp_path: Path) -> None:
    faces, said = read_aflw(aflw_of(tmp_path))
    assert len(faces) == 7 and said == "" and faces[0].sides == (40, 60)
    assert faces[0].path == faces[1].path == tmp_path / "flickr" / "0" / "image0.jpg"
    known = ~faces[1].points.isnan().any(1)
    assert known.nonzero().flatten().tolist() == [6, 7, 20] and faces[1].points[6].tolist() == [16, 10]
    assert faces[1].box == (11, 5, 31, 35) and faces[1].length == pytest.approx(600**0.5)


def test_aflw_is_a_task_whose_faces_of_one_image_stay_together(tmp_path: Path) -> None:
    task = load_task(aflw_of(tmp_path), size=45)
    assert isinstance(task.metric, LandmarkError) and task.test is not None
    splits = [task.train.images.faces, task.validation.images.faces, task.test.images.faces]  # type: ignore[attr-defined]
    paths = [{face.path for face in split} for split in splits]
    assert sum(map(len, splits)) == 7 and sum(map(len, paths)) == 6
    (x, target) = next(iter(task.train))
    assert x.shape[1:] == (3, 45, 45) and target["points"].shape[1:] == (21, 2)
    assert target["lengths"].allclose(torch.tensor(600**0.5))  # a square of 45 pixels around a box of 20 x 30
    off = target["points"].nan_to_num(0) + torch.tensor([3.0, 4.0])
    assert landmark_errors(off, target, None).allclose(torch.tensor(5 / 600**0.5))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE FaceImages SET filepath = '../secret.jpg' WHERE image_id = 3", "1 x image that is not there: aflw.sq"),
        ("UPDATE FeatureCoords SET feature_id = 22 WHERE face_id = 2 AND feature_id = 8", "none of the 21"),
        ("UPDATE FeatureCoords SET x = 'left' WHERE face_id = 2", "no two numbers: aflw.sqlite face 2"),
        ("DELETE FROM FaceRect WHERE face_id = 4", "1 x face without a box: aflw.sqlite face 4"),
        (
            "UPDATE FaceRect SET x = 1e300 WHERE face_id = 4",
            "1 x landmark or box farther outside .*: aflw.sqlite face 4",
        ),
        ("UPDATE FeatureCoords SET x = 9e9 WHERE face_id = 2", "farther outside .*: aflw.sqlite face 2"),
        ("DROP TABLE FaceRect", "is no database of AFLW: no such table: FaceRect"),
    ],
)
def test_what_is_wrong_in_aflw_is_said_with_the_face(tmp_path: Path, statement: str, message: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"")
    (tmp_path / "faces").mkdir()
    with pytest.raises(CorruptFile, match=message):
        load_task(aflw_of(tmp_path / "faces", statement))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aflw.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 400)
    with pytest.raises(CorruptFile, match="is no database of AFLW"):
        load_task(tmp_path)


def coco_of(root: Path, changed: dict[str, Any] | None = None) -> Path:
    """Two people in each of three training images and one of validation, key points in COCO's format."""
    for split, numbers in (("train2017", (1, 2, 3)), ("val2017", (4,))):
        rows = []
        for number in numbers:
            image(root / split / f"{number:012}.jpg")
            for person in range(2):
                points = [[20 + person, 10 + place, 2 if place % 2 else 1] for place in range(17)]
                points[3] = [0, 0, 0]
                row = {
                    "id": 10 * number + person,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [10, 5, 20, 30],
                    "area": 400.0,
                    "num_keypoints": 16,
                    "keypoints": [value for point in points for value in point],
                }
                rows.append(row | (changed or {} if row["id"] == 10 else {}))
            rows.append({"id": 10 * number + 5, "image_id": number, "category_id": 1, "iscrowd": 1, "num_keypoints": 0})
        images = [{"id": n, "file_name": f"{n:012}.jpg", "height": 40, "width": 60} for n in numbers]
        names = [{"id": 1, "name": "person", "keypoints": [f"k{place}" for place in range(17)], "skeleton": [[1, 2]]}]
        document = {"images": images, "annotations": rows, "categories": names}
        path = root / "annotations" / f"person_keypoints_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return root


def test_cocos_key_points_are_a_task_judged_by_their_recall(tmp_path: Path) -> None:
    task = load_task(coco_of(tmp_path), size=90)
    assert isinstance(task.metric, KeypointRecall) and task.test is None
    _, target = next(iter(task.validation))
    scale = 90 / 45  # the box of 20 x 30 is looked at in a square of 45 pixels
    assert target["points"].shape == (2, 17, 2) and target["points"][:, 3].isnan().all()
    assert target["lengths"].tolist() == [20 * scale] * 2
    expected = (torch.tensor([20.0, 10.0]) - torch.tensor([20 - 22.5, 20 - 22.5]).round()) * scale
    assert target["points"][0, 0].allclose(expected)
    assert task.metric.score(lambda x: target["points"].nan_to_num(0), task.validation) == 1
    assert task.metric.score(lambda x: torch.zeros(len(x), 34), task.validation) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keypoints": [1, 2, 3]}, r"1 x keypoints that are not 17 times x, y and visibility: person_.* annotation 10"),
        ({"keypoints": ["a"] * 51}, "keypoints that are not 17 times"),
        ({"keypoints": [10**400] * 51}, "keypoints that are not 17 times"),
        ({"keypoints": [9e9, 9e9, 2] * 17}, "1 x landmark or box farther outside of the image than its longer side"),
        ({"image_id": [1]}, "1 x annotation of an image that is not there: .* annotation 10"),
        ({"keypoints": [0] * 51}, "none that is annotated"),
        ({"bbox": [10, 5, 0, 30]}, "box without area"),
        ({"image_id": 99}, r"annotation of an image that is not there: .*annotation 10 \(image 99\)"),
    ],
)
def test_what_is_wrong_with_a_key_point_is_said_with_its_id(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorruptFile, match=message):
        load_task(coco_of(tmp_path, changed))
    assert landmark_task(tmp_path, faulty="skip") is not None


def test_beside_instances_it_is_a_task_of_detection(tmp_path: Path) -> None:
    folder = coco_of(tmp_path)
    for split in ("train2017", "val2017"):
        source = folder / "annotations" / f"person_keypoints_{split}.json"
        (folder / "annotations" / f"instances_{split}.json").write_text(source.read_text())
    assert keypoint_files(folder) == {}
