"""Boxes as YOLO's text files: a line of class, center and size for each object, as parts of the image's sides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from gossamer.data.box_files import AnnotatedImage, AnnotatedSplits, Faults, Faulty, refuse_empty, sound_box
from gossamer.data.folder import images_of
from gossamer.data.images import image_header, refuse_broken
from gossamer.data.objects import Objects
from gossamer.errors import BadInput, CorruptFile, first_line

LISTS = ("classes.txt", "train.txt", "val.txt", "test.txt")  # beside the text files, of some tools
SPLITS = {"train": ("train",), "validation": ("val", "valid"), "test": ("test",)}


def yolo_description(folder: Path) -> Path | None:
    """The YAML file of a folder that names classes and splits; None where there is none."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            known = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):
            continue
        if isinstance(known, dict) and "names" in known and "train" in known:
            return path
    return None


def read_yolo(description: Path, faulty: Faulty = "refuse") -> AnnotatedSplits:
    """A folder of images and text files, as a YAML file describes it: `names`, `train`, `val`, and perhaps `test`.

    The text file of `images/train/1.jpg` is `labels/train/1.txt`. An image without one has no objects.

    Args:
        description: the YAML file; its folders lie beside it, or below its `path`.
        faulty: what to do with faulty annotations.

    Returns:
        The images of each split.

    Raises:
        BadInput: the description names no classes or a folder without images.
        CorruptFile: an image cannot be read, or annotations are faulty and refused.
    """
    known: dict[str, Any] = yaml.safe_load(description.read_text(encoding="utf-8"))
    classes = _classes(known["names"], description)
    if isinstance(known.get("nc"), int) and known["nc"] != len(classes):
        raise BadInput(f"{description}: nc = {known['nc']}, but there are {len(classes)} names")
    base = description.parent / str(known.get("path", "."))
    base = base if base.is_dir() else description.parent
    faults = Faults(faulty)
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, keys in SPLITS.items():
        place = next((known[key] for key in keys if known.get(key)), None)
        if place is not None:
            splits[split] = _images(base / str(place), len(classes), faults)
    said = faults.finish()
    return AnnotatedSplits(
        train=refuse_empty(splits["train"], str(base / str(known["train"]))),
        validation=splits.get("validation"),
        test=splits.get("test"),
        classes=classes,
        said=said,
    )


def _classes(names: object, description: Path) -> tuple[str, ...]:
    """In the order of their numbers."""
    if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise BadInput(f"{description}: names must be a list, or numbers from 0 on with their names")
    return tuple(map(str, names))


def _images(folder: Path, classes: int, faults: Faults) -> list[AnnotatedImage]:
    if not folder.is_dir() or not (paths := images_of(folder)):
        raise BadInput(f"{folder} is no folder with images")
    headers = refuse_broken(paths, image_header)
    texts = {text_of(path) for path in paths}
    for place in sorted({text.parent for text in texts} - {path.parent for path in paths}):
        for text in sorted(place.glob("*.txt")):
            if text not in texts and text.name not in LISTS:
                faults.add("text file without an image", str(text))
    return [
        AnnotatedImage(path=path, sides=(height, width), objects=_objects(path, width, height, classes, faults))
        for path, (_, (width, height)) in zip(paths, headers)
    ]


def text_of(image: Path) -> Path:
    """The text file that belongs to an image.

    Example:
        >>> text_of(Path("images/train/1.jpg")).as_posix()
        'labels/train/1.txt'
    """
    parts = list(image.with_suffix(".txt").parts)
    places = [at for at, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts)


def _objects(image: Path, width: int, height: int, classes: int, faults: Faults) -> Objects:
    """Of an image."""
    path = text_of(image)
    boxes, labels = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except ValueError as error:
        raise CorruptFile(f"{path} cannot be read as text: {first_line(error)}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where, values = f"{path.name} line {number}", line.split()
        try:
            label, (x, y, w, h) = int(values[0]), map(float, values[1:])
        except ValueError:
            faults.add("line that is not a class and four numbers", where)
            continue
        if not 0 <= label < classes:
            faults.add("unknown category", f"{where} (class {label})")
            continue
        corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        sound = sound_box(corners, width, height, faults, where)
        if sound is not None:
            boxes.append(sound)
            labels.append(label)
    return Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64)
    )
