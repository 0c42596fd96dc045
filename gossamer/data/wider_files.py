"""Faces as WIDER FACE lists them: a text file for each split, with the images of all of its folders."""

from collections.abc import Iterator
from pathlib import Path

import torch

from gossamer.data.box_files import AnnotatedImage, AnnotatedSplits, Faults, Faulty, existing, refuse_empty, sound_box
from gossamer.data.images import image_header, refuse_broken
from gossamer.data.objects import Objects
from gossamer.errors import CorruptFile, first_line

LISTS = Path("wider_face_split")
SPLITS = {"train": "train", "validation": "val"}
NUMBERS = 10  # of a face: left, top, width, height, blur, expression, illumination, invalid, occlusion, pose
INVALID = 7


def wider_lists(folder: Path) -> dict[str, Path]:
    """The text file of each split; empty where the folder is none of WIDER FACE's."""
    files = {split: folder / LISTS / f"wider_face_{name}_bbx_gt.txt" for split, name in SPLITS.items()}
    return {split: path for split, path in files.items() if path.is_file()} if files["train"].is_file() else {}


def read_wider(folder: Path, faulty: Faulty = "refuse") -> AnnotatedSplits:
    """A folder as WIDER FACE publishes it: `wider_face_split/`, `WIDER_train/images/` and `WIDER_val/images/`.

    Faces that are marked as invalid do not count. Its test images have no boxes that are published.

    Args:
        folder: of the data set.
        faulty: what to do with faulty annotations.

    Returns:
        The images of each split.

    Raises:
        CorruptFile: a list is of another format, or annotations are faulty and refused.
    """
    faults, lists = Faults(faulty), wider_lists(folder)
    found = {split: _images(path, folder, SPLITS[split], faults) for split, path in lists.items()}
    said = faults.finish()
    return AnnotatedSplits(
        train=refuse_empty(found["train"], str(lists["train"])),
        validation=found.get("validation"),
        test=None,
        classes=("face",),
        said=said,
    )


def _images(path: Path, folder: Path, split: str, faults: Faults) -> list[AnnotatedImage]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise CorruptFile(f"{path} cannot be read as text: {first_line(error)}") from error
    rows = dict[Path, tuple[str, list[str]]]()
    for name, faces in _parts(path, lines):
        image = folder / f"WIDER_{split}" / "images" / name
        if image in rows:
            faults.add("image that is in a list twice", f"{path.name} {name}")
        elif existing(image, faults):
            rows[image] = f"{path.name} {name}", faces
    headers = refuse_broken(list(rows), image_header)
    return [
        AnnotatedImage(path=image, sides=(height, width), objects=_objects(faces, width, height, where, faults))
        for (image, (where, faces)), (_, (width, height)) in zip(rows.items(), headers)
    ]


def _parts(path: Path, lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The name of each image, and a line for each of its faces. An image without faces has one line of zeros."""
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        count = lines[at + 1].strip() if at + 1 < len(lines) else ""
        if not name or not count.isdecimal():
            raise CorruptFile(f"{path} line {at + 2}: the number of faces of {name or 'an image'} is expected")
        rows = max(int(count), 1)
        faces = lines[at + 2 : at + 2 + rows]
        if len(faces) < rows:
            raise CorruptFile(f"{path} ends within the faces of {name}")
        yield name, faces if int(count) else []
        at += 2 + rows


def _objects(faces: list[str], width: int, height: int, where: str, faults: Faults) -> Objects:
    boxes, ignored = list[list[float]](), list[bool]()
    for number, line in enumerate(faces):
        place = f"{where} face {number}"
        try:
            values = [float(value) for value in line.split()]
        except ValueError:
            values = []
        if len(values) != NUMBERS:
            faults.add(f"line that is not {NUMBERS} numbers", place)
            continue
        left, top, w, h = values[:4]
        sound = sound_box([left, top, left + w, top + h], width, height, faults, place)
        if sound is not None:
            boxes.append(sound)
            ignored.append(bool(values[INVALID]))
    return Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        difficult=torch.tensor(ignored, dtype=torch.bool),
    )
