"""Instances in COCO's JSON: boxes, crowds, and run lengths of masks."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.data.box_files import (
    AnnotatedImage,
    AnnotatedSplits,
    Faults,
    Faulty,
    as_float,
    existing,
    is_known,
    refuse_empty,
    sound_box,
)
from gossamer.data.objects import Objects
from gossamer.errors import CorruptFile, first_line

PARTS = ("images", "annotations", "categories")
BESIDE = "_annotations.coco.json"  # next to the images of a split, as some tools write it
SPLITS = {"train": ("train",), "validation": ("val", "valid"), "test": ("test",)}


def read_run_lengths(text: str) -> list[int]:
    """The run lengths of COCO's compressed masks.

    Each number is written in pieces of five bits, the lowest first, a sixth bit saying that more follow; from the third
    number on it is the difference to the one two places before.

    Args:
        text: `counts` of a mask.

    Returns:
        The run lengths, of pixels outside and inside by turns, column by column.

    Raises:
        ValueError: it ends within a number, or has other characters.

    Example:
        >>> read_run_lengths("5220")
        [5, 2, 2, 2]

    Source: pycocotools, maskApi.c, rleFrString.
    """
    found: list[int] = []
    at = 0
    while at < len(text):
        number, shift, more = 0, 0, True
        while more:
            if at >= len(text):
                raise ValueError("the run lengths end within a number")
            piece = ord(text[at]) - 48
            if not 0 <= piece < 64:
                raise ValueError(f"run lengths with the character {text[at]!r}")
            number |= (piece & 31) << shift
            at, shift, more = at + 1, shift + 5, bool(piece & 32)
            if not more and piece & 16:
                number -= 1 << shift
        found.append(number + (found[-2] if len(found) > 2 else 0))
    return found


def mask_box(mask: Mapping[str, Any], height: int, width: int) -> tuple[list[float], float]:
    """The box around a mask that is given by run lengths, and its area.

    Args:
        mask: `counts`, compressed or a list, and `size`, height and width.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        Left, top, right, bottom, and how many pixels are inside.

    Raises:
        ValueError: the mask is of another size, or its run lengths do not fill it.

    Example:
        >>> mask_box({"size": [3, 2], "counts": [1, 2, 1, 1, 1]}, 3, 2)
        ([0.0, 1.0, 2.0, 3.0], 3.0)
    """
    counts = mask["counts"]
    runs = np.array(read_run_lengths(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    if list(mask.get("size", [])) != [height, width]:
        raise ValueError(f"a mask of size {mask.get('size')} in an image of {[height, width]}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("run lengths that do not fill the mask")
    inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T.astype(bool)
    if not inside.any():
        return [0.0] * 4, 0.0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [float(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)], float(inside.sum())


def read_instances(
    path: Path, folder: Path, faults: Faults, classes: Mapping[int, str] | None = None
) -> tuple[list[AnnotatedImage], dict[int, str]]:
    """The images of a file of instances.

    Args:
        path: of the JSON file.
        folder: of the images.
        faults: where is noted what is wrong.
        classes: names by id, as the training file has them; None: those of this file.

    Returns:
        The images in the order of the file, and names of classes by id. Labels are positions among the sorted ids.

    Raises:
        CorruptFile: the file is no JSON of instances.
    """
    document = coco_document(path)
    categories = rows_by_id(document["categories"], "category", path, faults)
    names = {key: str(row.get("name", key)) for key, row in sorted(categories.items())} if classes is None else classes
    for key, row in categories.items():
        if key in names and (here := str(row.get("name", key))) != names[key]:
            raise CorruptFile(f"{path}: category {key} is {here!r}, in the training file it is {names[key]!r}")
    images = rows_by_id(document["images"], "image", path, faults)
    grouped: dict[int, list[dict[str, Any]]] = {key: [] for key in images}
    for key, row in rows_by_id(document["annotations"], "annotation", path, faults).items():
        where = f"{path.name} annotation {key}"
        if not is_known(row.get("image_id"), grouped):
            faults.add("annotation of an image that is not there", f"{where} (image {row.get('image_id')})")
        elif not is_known(row.get("category_id"), names):
            faults.add("unknown category", f"{where} (category {row.get('category_id')})")
        else:
            grouped[row["image_id"]].append(row)
    labels = {key: label for label, key in enumerate(sorted(names))}
    found = []
    for key, (file, sides) in existing_images(images, folder, path, faults).items():
        objects = _objects(grouped[key], labels, sides, path, faults)
        found.append(AnnotatedImage(path=file, sides=sides, objects=objects))
    return found, dict(names)


def coco_document(path: Path) -> dict[str, Any]:
    """The parsed file. Raises CorruptFile where it is of another task."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptFile(f"{path} cannot be read as JSON: {first_line(error)}") from error
    lists = isinstance(document, dict) and all(isinstance(document.get(part), list) for part in PARTS)
    if not lists or not all(isinstance(row, dict) for part in PARTS for row in document[part]):
        raise CorruptFile(f"{path} is no JSON of COCO instances: it must have lists of {', '.join(PARTS)}")
    rows = document["annotations"]
    if rows and not any("bbox" in row or isinstance(row.get("segmentation"), dict) for row in rows):
        task = (
            "captions"
            if "caption" in rows[0]
            else "panoptic segments"
            if "segments_info" in rows[0]
            else "another task"
        )
        raise CorruptFile(f"{path} has annotations of {task}, not of instances: none has a bbox")
    return document  # type: ignore[no-any-return]


def existing_images(
    images: Mapping[int, dict[str, Any]], folder: Path, path: Path, faults: Faults
) -> dict[int, tuple[Path, tuple[int, int]]]:
    """The file of each image that is there, and its height and width; what is wrong is noted."""
    found = {}
    for key, row in images.items():
        file, sides = folder / str(row.get("file_name", "")), (row.get("height"), row.get("width"))
        if not all(isinstance(side, int) and side > 0 for side in sides):
            faults.add("image without height and width", f"{path.name} image {key}")
        elif existing(file, faults):
            found[key] = (file, sides)
    return found  # type: ignore[return-value]


def rows_by_id(rows: Sequence[dict[str, Any]], what: str, path: Path, faults: Faults) -> dict[int, dict[str, Any]]:
    """Rows by their id; of several with one id the first."""
    found: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        key = row.get("id")
        if not isinstance(key, int) or isinstance(key, bool):
            faults.add(f"{what} without an id", f"{path.name} {what} at place {place}")
        elif key in found:
            faults.add(f"{what} id that is there twice", f"{path.name} {what} {key}")
        else:
            found[key] = row
    return found


def _objects(
    rows: Sequence[dict[str, Any]], labels: Mapping[int, int], sides: tuple[int, int], path: Path, faults: Faults
) -> Objects:
    """The sound objects of an image."""
    height, width = sides
    boxes, kept, crowd, areas = [], [], [], []
    for row in rows:
        where, mask, box = f"{path.name} annotation {row['id']}", row.get("segmentation"), row.get("bbox")
        around: tuple[list[float], float] | None = None
        if isinstance(mask, dict):
            try:
                around = mask_box(mask, height, width)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                faults.add("mask that cannot be read", f"{where} ({first_line(error)})")
                continue
        if box is None and around is not None:
            corners: object = around[0]
        else:
            whole = isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
            corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]] if whole else box  # type: ignore[index]
        sound = sound_box(corners, width, height, faults, where)
        if sound is None:
            continue
        area, marked = row.get("area"), row.get("iscrowd", 0)
        if area is not None and not 0 <= as_float(area) < math.inf:
            faults.add("area that is no number from 0 on", f"{where} (area {area!r})")
            continue
        if marked not in (0, 1):
            faults.add("iscrowd that is neither 0 nor 1", f"{where} (iscrowd {marked!r})")
            continue
        size = (sound[2] - sound[0]) * (sound[3] - sound[1])
        boxes.append(sound)
        kept.append(labels[row["category_id"]])
        crowd.append(bool(marked))
        areas.append(float(area or (around[1] if around is not None else size)))
    return Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(kept, dtype=torch.int64),
        crowd=torch.tensor(crowd, dtype=torch.bool),
        areas=torch.tensor(areas, dtype=torch.float32),
    )


def coco_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The JSON file and the folder of images of each split; empty where the folder is none of COCO's."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLITS.items():
        for name in names:
            beside = folder / name / BESIDE
            official = sorted((folder / "annotations").glob(f"instances_{name}*.json"))
            if beside.is_file():
                found.setdefault(split, (beside, beside.parent))
            elif official:
                stem = official[-1].stem.removeprefix("instances_")
                places = [folder / stem, folder / "images" / stem, folder / "images"]
                found.setdefault(split, (official[-1], next((p for p in places if p.is_dir()), places[0])))
    return found if "train" in found else {}


def read_coco(folder: Path, faulty: Faulty = "refuse") -> AnnotatedSplits:
    """A folder as COCO publishes it: `annotations/instances_train2017.json`, `train2017/`, the same with `val2017`.

    Args:
        folder: of the data set; or one with `train/_annotations.coco.json` and images beside it.
        faulty: what to do with faulty annotations.

    Returns:
        The images of each split.

    Raises:
        CorruptFile: a file is of another task, or annotations are faulty and refused.
    """
    faults, files = Faults(faulty), coco_files(folder)
    train, classes = read_instances(*files["train"], faults)
    others = {s: read_instances(*files[s], faults, classes)[0] for s in ("validation", "test") if s in files}
    said = faults.finish()
    return AnnotatedSplits(
        train=refuse_empty(train, str(files["train"][0])),
        validation=others.get("validation"),
        test=others.get("test"),
        classes=tuple(classes[key] for key in sorted(classes)),
        said=said,
    )
