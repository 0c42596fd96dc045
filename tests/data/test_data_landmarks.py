"""Landmarks in the format of 300-W: files, squares around faces, splits, and what is wrong with a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gossamer.data.landmark_files import FaceCrops, faces_of, landmark_task, read_points
from gossamer.data.load import load_task
from gossamer.detection.landmarks import LandmarkError
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
        ("20 10", "b.pts is no file of landmarks with n_points and a list in braces"),
        (POINTS.replace("3\n{", "1\n{").replace("41.0 11.0\n31.0 31.0\n", ""), r"faces have \[1, 3\] landmarks; b.png"),
        (POINTS.replace("31.0 31.0", "31.0 11.0"), "b.pts: its landmarks lie on a line"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, points: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        faces_of(folder_of(tmp_path, points))


def test_landmarks_without_an_image_are_refused_and_folders_without_landmarks_are_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "faces")
    (folder / "trainset" / "c.png").unlink()
    with pytest.raises(CorruptFile, match=r"1 files of landmarks have no image beside them: c.pts"):
        faces_of(folder)
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
    faces = faces_of(folder_of(tmp_path))
    task = landmark_task(tmp_path, size=64)
    assert task is not None and task.preprocessing is not None
    moved = [type(one)(path=one.path, sides=one.sides, points=one.points - torch.tensor([25.0, 0.0])) for one in faces]
    x = FaceCrops(moved[:1], task.preprocessing)[torch.tensor([0])]
    assert x.shape == (1, 3, 64, 64) and int(x[0, :, :, :5].max()) == 0
