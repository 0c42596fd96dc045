"""What readers of annotations have in common: faults that are counted and named, and images that are letterboxed."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.data.images import UNREADABLE, decode_image, each, image_header, large_images, unreadable
from gossamer.data.objects import Objects
from gossamer.errors import BadInput, CorruptFile

NAMED = 5  # faults of one kind that are named
SLACK = 1.0  # pixels that a box may lie outside of its image: published ones are rounded
FILLING = 114  # brightness beside a letterboxed image, as YOLO's
Faulty = Literal["refuse", "skip"]


@dataclass
class Faults:
    """What is wrong in annotations, by kind, with the file and the id of each.

    Args:
        faulty: "refuse": `finish` raises; "skip": what is wrong is left out, and `finish` says how much.
    """

    faulty: Faulty = "refuse"
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Note a fault."""
        self.found.setdefault(kind, []).append(where)

    def finish(self) -> str:
        """A sentence about what was skipped, empty where nothing was. Raises CorruptFile where it is to be refused."""
        if not self.found:
            return ""
        lines = []
        for kind, places in self.found.items():
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            lines.append(f"{len(places)} x {kind}: {', '.join(places[:NAMED])}{more}")
        listed = "; ".join(lines)
        if self.faulty == "refuse":
            rule = f"annotations are faulty: {listed}; repair them, or leave them out with"
            raise CorruptFile(f'{rule} faulty="skip"', shell=f"{rule} --skip-faulty")
        return f"left out: {listed}"


def as_float(value: object) -> float:
    """A number of JSON; infinite where it is an integer beyond all floats, NaN where it is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_known(key: object, ids: Container[int]) -> bool:
    """Whether a value of JSON is one of the ids."""
    return isinstance(key, int) and not isinstance(key, bool) and key in ids


def sound_box(box: object, width: float, height: float, faults: Faults, where: str) -> list[float] | None:
    """A box of left, top, right, bottom, cut at the edges of its image; None where it is faulty, which is noted."""
    numbers = isinstance(box, list | tuple) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
    if not numbers or len(box) != 4:  # type: ignore[arg-type]
        faults.add("box that is not four numbers", where)
        return None
    left, top, right, bottom = (as_float(x) for x in box)  # type: ignore[attr-defined]
    if not all(map(math.isfinite, (left, top, right, bottom))):
        faults.add("box with NaN or infinite numbers", where)
    elif right <= left or bottom <= top:
        faults.add("box without area", where)
    elif left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        faults.add("box outside of its image", where)
    else:
        return [max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)]
    return None


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image file with its objects. sides: height and width, in pixels."""

    path: Path
    sides: tuple[int, int]
    objects: Objects


@dataclass(frozen=True, kw_only=True)
class AnnotatedSplits:
    """What a folder of annotations holds: images of each split, and the names of the classes.

    said: what was left out, empty where nothing was.
    """

    train: list[AnnotatedImage]
    validation: list[AnnotatedImage] | None
    test: list[AnnotatedImage] | None
    classes: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in a square: scaled by a factor, and moved to the right and down.

    Example:
        >>> letterbox(50, 100, 64)
        Letterbox(scale=0.64, left=0, top=16, sides=(32, 64))
    """

    scale: float
    left: int
    top: int
    sides: tuple[int, int]


def letterbox(height: int, width: int, side: int) -> Letterbox:
    """The largest size of an image that fits into a square, in its middle.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        side: of the square, in pixels.

    Returns:
        Scale, place and size.

    Example:
        >>> letterbox(64, 64, 32).scale
        0.5
    """
    scale = side / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    return Letterbox(scale=scale, left=(side - columns) // 2, top=(side - rows) // 2, sides=(rows, columns))


class FileScenes:
    """Image files with boxes, read and letterboxed when they are asked for.

    Args:
        images: with their objects.
        form: what the images are read as; its sides are equal.
    """

    def __init__(self, images: Sequence[AnnotatedImage], form: Preprocessing) -> None:
        self.images, self.form = list(images), form
        self.shape = (len(self.images), form.channels, *form.sides)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        wanted = {self.images[i].path: self.images[i] for i in index.tolist()}
        with large_images():
            read = dict(zip(wanted, each(list(wanted), lambda path, most: self._read(wanted[path], most))))
        return torch.stack([read[self.images[i].path] for i in index.tolist()])

    def _read(self, image: AnnotatedImage, most: float) -> Tensor:
        """An image in the middle of its square."""
        try:
            _, (width, height) = image_header(image.path, most)
        except UNREADABLE as error:
            raise CorruptFile(f"{unreadable(image.path, error)}; repair or remove it") from error
        if (height, width) != image.sides:
            raise CorruptFile(
                f"{image.path} has {width}x{height} pixels, its annotation says {image.sides[1]}x{image.sides[0]}"
            )
        place = letterbox(height, width, self.form.sides[0])
        form = replace(self.form, size=place.sides[0], width=place.sides[1], crop=None)
        square = torch.full((self.form.channels, *self.form.sides), FILLING, dtype=torch.uint8)
        rows, columns = place.sides
        square[:, place.top : place.top + rows, place.left : place.left + columns] = decode_image(
            image.path, form, most
        )
        return square

    def objects(self, place: int) -> Objects:
        """Of one image."""
        return self.images[place].objects

    def letterbox(self, place: int) -> tuple[float, float, float]:
        """Scale, offset to the right and offset down of one image."""
        found = letterbox(*self.images[place].sides, self.form.sides[0])
        return found.scale, float(found.left), float(found.top)


def existing(path: Path, faults: Faults) -> bool:
    """Whether an image file is there; where it is not, that is noted."""
    if path.is_file():
        return True
    faults.add("image file that is missing", str(path))
    return False


def refuse_empty(images: list[AnnotatedImage], where: str) -> list[AnnotatedImage]:
    """The images, at least one of which has an object."""
    if not any(len(one.objects.labels) for one in images):
        raise BadInput(f"{where}: there is no image with an object")
    return images
