"""Readers of landmarks: 300-W's `.pts` files, AFLW's database, COCO's key points."""

import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.data.box_files import Faults, Faulty, as_float, is_known, sound_box
from gossamer.data.coco_files import coco_document, existing_images, rows_by_id
from gossamer.data.images import image_header, refuse_broken
from gossamer.errors import CorruptFile, first_line

SUFFIXES = (".jpg", ".jpeg", ".png")
DATABASE = "aflw.sqlite"
AFLW_LANDMARKS = 21
SPLITS = {"train": "train", "validation": "val", "test": "test"}
QUERY = """
    SELECT f.face_id, i.db_id, i.filepath, r.x, r.y, r.w, r.h, c.feature_id, c.x, c.y
    FROM Faces f
    JOIN FaceImages i ON f.file_id = i.file_id AND f.db_id = i.db_id
    JOIN FeatureCoords c ON c.face_id = f.face_id
    LEFT JOIN FaceRect r ON r.face_id = f.face_id
    ORDER BY f.face_id, c.feature_id
"""


FAR = "landmark or box farther outside of the image than its longer side"


@dataclass(frozen=True, kw_only=True)
class FaceImage:
    """A face, or another object with landmarks, in an image file.

    Attributes:
        path: of the image.
        sides: its height and width.
        points: shape (L, 2), in its pixels; NaN where a landmark is not annotated.
        box: left, top, right and bottom of the object, in pixels; None: that of the landmarks.
        length: what errors are divided by, in pixels; None: by the landmarks themselves.
    """

    path: Path
    sides: tuple[int, int]
    points: Tensor
    box: tuple[float, float, float, float] | None = None
    length: float | None = None

    def area(self) -> Tensor:
        """The corners of the box, shape (2, 2)."""
        if self.box is not None:
            return torch.tensor(self.box, dtype=torch.float32).reshape(2, 2)
        known = self.points[~self.points.isnan().any(1)]
        return torch.stack([known.amin(0), known.amax(0)])

    def near_image(self) -> bool:
        """Whether box and landmarks are at most one side of the image outside of it: what is cut out is as large."""
        reach = float(max(self.sides))
        numbers = torch.cat([self.area(), self.points[~self.points.isnan().any(1)]])
        return bool(((numbers >= -reach) & (numbers <= 2 * reach)).all())


def read_points(path: Path) -> Tensor:
    """The landmarks of a `.pts` file.

    Args:
        path: of the file.

    Returns:
        float32, shape (L, 2), x and y in pixels from 0; the file counts from 1.

    Raises:
        CorruptFile: it is no such file, or has other than as many points as it says.

    Source: Sagonas et al. 2013, 300 Faces in-the-Wild Challenge.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {name.strip(): value for name, _, value in (line.partition(":") for line in lines[: lines.index("{")])}
        rows = [[float(x) for x in line.split()] for line in lines[lines.index("{") + 1 : lines.index("}")]]
        count = int(known["n_points"])
    except (ValueError, KeyError, OSError) as error:
        raise CorruptFile(
            f"{path} is no file of landmarks with n_points and a list in braces: {first_line(error)}"
        ) from error
    if len(rows) != count or any(len(row) != 2 or not all(map(math.isfinite, row)) for row in rows):
        raise CorruptFile(f"{path} says that it has {count} points of two numbers; it has {len(rows)} lines")
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2) - 1


def read_pts(folder: Path) -> list[FaceImage]:
    """All images below a folder with a `.pts` file of the same name beside them, in the order of their paths.

    Raises CorruptFile where an image is missing or cannot be read, or where faces have different numbers of landmarks.
    """
    files = sorted(folder.rglob("*.pts"))
    images = [next((p for s in SUFFIXES if (p := file.with_suffix(s)).is_file()), None) for file in files]
    missing = [file.name for file, image in zip(files, images) if image is None]
    if missing:
        raise CorruptFile(f"{folder}: {len(missing)} files of landmarks have no image beside them: {missing[0]}")
    there = [image for image in images if image is not None]
    sides = [(height, width) for _, (width, height) in refuse_broken(there, image_header)]
    found = [FaceImage(path=p, sides=s, points=read_points(file)) for p, s, file in zip(there, sides, files)]
    counts = sorted({len(one.points) for one in found})
    if len(counts) > 1:
        odd = next(one.path.name for one in found if len(one.points) != len(found[0].points))
        raise CorruptFile(f"{folder}: faces have {counts} landmarks; {odd} has other than {found[0].path.name}")
    for one in found:
        if not one.near_image():
            raise CorruptFile(f"{one.path.with_suffix('.pts')}: {FAR}")
        if float((one.points.amax(0) - one.points.amin(0)).prod()) <= 0:
            raise CorruptFile(f"{one.path.with_suffix('.pts')}: its landmarks lie on a line")
    return found


def read_aflw(folder: Path, faulty: Faulty = "refuse") -> tuple[list[FaceImage], str]:
    """The faces of AFLW: `aflw.sqlite`, here or in `data/`, and the images that it names.

    Args:
        folder: of the data set.
        faulty: what to do with faces whose image is missing, or whose numbers are no landmarks.

    Returns:
        The faces by their ids, each with 21 landmarks, NaN where the database has none, and a sentence about what was
        left out. An error is divided by the root of the area of the annotated box.

    Raises:
        CorruptFile: it is no such database, or has faults that are refused.

    Source: Koestinger et al. 2011, Annotated Facial Landmarks in the Wild, ICCV workshops.
    """
    path = next((p for p in (folder / DATABASE, folder / "data" / DATABASE) if p.is_file()), folder / DATABASE)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            rows = database.execute(QUERY).fetchall()
    except sqlite3.Error as error:
        raise CorruptFile(f"{path} is no database of AFLW: {first_line(error)}") from error
    by_face: dict[Any, list[tuple[Any, ...]]] = {}
    for face, *row in rows:
        by_face.setdefault(face, []).append(tuple(row))
    faults, named = Faults(faulty), dict[str, FaceImage]()
    for face, own in by_face.items():
        where = f"{path.name} face {face}"
        if (found := _aflw_face(path.parent, where, own, faults)) is not None:
            named[where] = found
    images = sorted({one.path for one in named.values()})
    read = zip(images, refuse_broken(images, image_header))
    sides = {path: (height, width) for path, (_, (width, height)) in read}
    faces = {where: replace(one, sides=sides[one.path]) for where, one in named.items()}
    for where in [where for where, one in faces.items() if not one.near_image()]:
        faults.add(FAR, where)
        del faces[where]
    said = faults.finish()
    return list(faces.values()), said


def _aflw_face(folder: Path, where: str, rows: Sequence[tuple[Any, ...]], faults: Faults) -> FaceImage | None:
    """A face, its sides not known yet; None where it is faulty, which is noted."""
    source, file, *box = rows[0][:6]
    inside = Path(str(file))
    places = [folder / inside, folder / str(source) / inside, folder / "data" / str(source) / inside]
    image = next((p for p in places if p.is_file()), None)
    if image is None or inside.is_absolute() or ".." in inside.parts:
        faults.add("image that is not there", f"{where} ({file})")
        return None
    points = torch.full((AFLW_LANDMARKS, 2), torch.nan)
    for *_, feature, x, y in rows:
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (x, y))
        if not numbers or not isinstance(feature, int) or not 1 <= feature <= AFLW_LANDMARKS:
            faults.add("landmark that is none of the 21, or no two numbers", where)
            return None
        points[feature - 1] = torch.tensor([x, y], dtype=torch.float32)
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in box) or min(box[2:]) <= 0:
        faults.add("face without a box", where)
        return None
    left, top, width, height = map(float, box)
    corners = (left, top, left + width, top + height)
    return FaceImage(path=image, sides=(0, 0), points=points, box=corners, length=math.sqrt(width * height))


def keypoint_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """COCO's files of key points and the folders of images, by split; empty where there are none for training, or where
    boxes of all categories are beside them, which is a task of detection."""
    notes, found = folder / "annotations", dict[str, tuple[Path, Path]]()
    if any(notes.glob("instances_*.json")):
        return {}
    for split, name in SPLITS.items():
        if official := sorted(notes.glob(f"*_keypoints_{name}*.json")):
            stem = official[-1].stem.partition("_keypoints_")[2]
            places = [folder / stem, folder / "images" / stem, folder / "images"]
            found[split] = (official[-1], next((p for p in places if p.is_dir()), places[0]))
    return found if "train" in found else {}


def read_keypoints(path: Path, folder: Path, faulty: Faulty = "refuse") -> tuple[list[FaceImage], str]:
    """The objects of a file of COCO's key points.

    Args:
        path: of the JSON file, such as `person_keypoints_train2017.json`.
        folder: of the images.
        faulty: what to do with faulty annotations.

    Returns:
        One entry for each object that has key points and is no crowd, NaN where one is not annotated, and a sentence
        about what was left out. An error is divided by the root of the area of the object.

    Raises:
        CorruptFile: the file is no JSON of key points, or has faults that are refused.

    Source: Lin et al. 2014, Microsoft COCO; the format of its key points.
    """
    faults, document = Faults(faulty), coco_document(path)
    named = [row.get("keypoints") for row in document["categories"]]
    counts = {len(one) if isinstance(one, list) else 0 for one in named}
    if len(counts) != 1 or counts == {0}:
        raise CorruptFile(f"{path}: its categories must name the same number of keypoints; they name {sorted(counts)}")
    listed = rows_by_id(document["images"], "image", path, faults)
    images, count = existing_images(listed, folder, path, faults), counts.pop()
    found = []
    for key, row in rows_by_id(document["annotations"], "annotation", path, faults).items():
        where = f"{path.name} annotation {key}"
        if not is_known(row.get("image_id"), listed):
            faults.add("annotation of an image that is not there", f"{where} (image {row.get('image_id')})")
        elif row["image_id"] in images and row.get("num_keypoints") and not row.get("iscrowd"):
            one = _object(row, *images[row["image_id"]], count, faults, where)
            found += [one] if one is not None else []
    return found, faults.finish()


def _object(
    row: Mapping[str, Any], image: Path, sides: tuple[int, int], count: int, faults: Faults, where: str
) -> FaceImage | None:
    numbers = row.get("keypoints")
    whole = isinstance(numbers, list) and len(numbers) == 3 * count
    if not whole or not all(math.isfinite(as_float(x)) for x in numbers):  # type: ignore[union-attr]
        faults.add(f"keypoints that are not {count} times x, y and visibility", where)
        return None
    given = torch.tensor(numbers, dtype=torch.float32).reshape(count, 3)
    points = torch.where(given[:, 2:] > 0, given[:, :2], torch.nan)
    if bool(points.isnan().all()):
        faults.add("object with num_keypoints and none that is annotated", where)
        return None
    box = row.get("bbox")
    listed = isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
    corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]] if listed else box  # type: ignore[index]
    sound = sound_box(corners, sides[1], sides[0], faults, where)
    if sound is None:
        return None
    area = row.get("area")
    own = as_float(area) if 0 < as_float(area) < math.inf else (sound[2] - sound[0]) * (sound[3] - sound[1])
    left, top, right, bottom = sound
    made = FaceImage(path=image, sides=sides, points=points, box=(left, top, right, bottom), length=math.sqrt(own))
    if not made.near_image():
        faults.add(FAR, where)
        return None
    return made
