"""Folders of images: one folder for every class."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gossamer.data.arrays import Split, cut, make_task
from gossamer.data.batches import Augmentation, Normalisation
from gossamer.errors import BadInput, CorruptFile
from gossamer.task import Task

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
VALIDATION, TEST = 0.1, 0.15
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
SIDE = 224  # pixels
# Images that together need less are decoded once and kept.
CACHE_BYTES = 2**30
CHECKED_AT_ONCE = 20_000
COLOUR = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = Normalisation(mean=(0.5,), std=(0.25,))


class ImageFiles:
    """Images in files as if they were a uint8 tensor (N, C, size, size): indexed by a tensor of positions.

    The shorter side is scaled to `size` pixels and the middle is cut out. mode: "RGB" or "L". Decoded by several
    threads when asked for, and kept if all of them fit into a gibibyte.
    """

    def __init__(self, paths: Sequence[Path], *, size: int, mode: str) -> None:
        self.paths = list(paths)
        self.mode = mode
        self.shape = (len(self.paths), len(mode) if mode == "RGB" else 1, size, size)
        self.cache: Tensor | None = None
        if np.prod(self.shape) <= CACHE_BYTES:
            self.cache = torch.empty(self.shape, dtype=torch.uint8)
        self.cached = torch.zeros(len(self.paths), dtype=torch.bool)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if self.cache is None:
            return self._decode(index)
        missing = index[~self.cached[index]].unique()  # type: ignore[no-untyped-call]
        if len(missing):
            self.cache[missing] = self._decode(missing)
            self.cached[missing] = True
        return self.cache[index]

    def _decode(self, index: Tensor) -> Tensor:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = pool.map(lambda i: decode(self.paths[i], self.shape[2], self.mode), index.tolist())
            return torch.stack(list(images))


def decode(path: Path, size: int, mode: str) -> Tensor:
    """One image as uint8 (C, size, size)."""
    try:
        with Image.open(path) as opened:
            opened.draft(mode, (size, size))  # lets JPEG files decode at a fraction of their size
            image = ImageOps.exif_transpose(opened)
            image = image.convert("RGBA").convert(mode) if "transparency" in image.info else image.convert(mode)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.array(image))
    return values.permute(2, 0, 1).contiguous() if mode == "RGB" else values.unsqueeze(0)


def _unreadable(path: Path, error: BaseException) -> CorruptFile:
    return CorruptFile(f"{path} is not an image that can be read: {error}; repair or remove it")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Image files, sorted, and the position of each one's class."""

    paths: list[Path]
    labels: Tensor

    def at(self, index: Tensor) -> "Labelled":
        return Labelled(paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders inside, sorted, without hidden ones."""
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")))


def find_images(folder: Path, classes: tuple[str, ...]) -> Labelled:
    """All image files below the class folders; files with other suffixes are not looked at."""
    if class_folders(folder) != classes:
        raise BadInput(f"{folder} must hold the class folders {', '.join(classes)}, it has {class_folders(folder)}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise BadInput(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    return Labelled(paths=paths, labels=torch.tensor(labels))


def common_form(paths: Sequence[Path]) -> tuple[str, int]:
    """What all images are read as: "L" where every one is grey, else "RGB"; and the side in pixels, their own where all
    are equal squares no larger than the usual one.

    Opens every file, or an even selection of those of a large set, so that damage shows early.
    """
    modes, sizes = set(), set()
    for path in paths[:: 1 + len(paths) // CHECKED_AT_ONCE]:
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
                sizes |= {*image.size}
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
    return "L" if modes <= {"L", "1"} else "RGB", min(SIDE, *sizes) if len(sizes) == 1 else SIDE


def folder_task(
    folder: Path,
    *,
    size: int | None = None,
    validation: int | None = None,
    calibration: int = 512,
    batch_size: int = 128,
    seed: int = 0,
    augment: bool = True,
) -> Task:
    """A task from class folders with images.

    The class folders are in `train`, `val` and `test` folders, or directly in the folder. Splits without a folder of
    their own are cut from the training images, the same way every time: 15 % test, 10 % of the rest validation.
    size: side of the images that come; None: their own where all are equal squares of at most 224 pixels, else 224.
    """
    parts = {
        split: next((folder / n for n in names if class_folders_in(folder / n)), None)
        for split, names in SPLITS.items()
    }
    start = parts["train"] or folder
    classes = class_folders(start)
    if len(classes) < 2:
        raise BadInput(
            f"{start} must hold a folder of images for every class, at least two; it holds {len(classes)} folders"
        )
    train = find_images(start, classes)
    if parts["train"] is not None and parts["test"] is not None:
        test = find_images(parts["test"], classes)
    else:
        kept, taken = cut(train.labels, max(1, round(TEST * len(train.paths))), f"{folder}, test")
        train, test = train.at(kept), train.at(taken)
    held_out: Labelled | int = round(VALIDATION * len(train.paths)) or 1 if validation is None else validation
    if parts["train"] is not None and parts["validation"] is not None and validation is None:
        held_out = find_images(parts["validation"], classes)
    both = train.paths + test.paths + (held_out.paths if isinstance(held_out, Labelled) else [])
    mode, side = common_form(both)
    side = side if size is None else size

    def split(part: Labelled) -> Split:
        return Split(images=ImageFiles(part.paths, size=side, mode=mode), labels=part.labels)

    return make_task(
        folder.resolve().name,
        train=split(train),
        test=split(test),
        classes=classes,
        normalisation=COLOUR if mode == "RGB" else GREY,
        augmentation=Augmentation(pad=side // 8, flip=True) if augment else None,
        validation=split(held_out) if isinstance(held_out, Labelled) else held_out,
        calibration=calibration,
        batch_size=batch_size,
        seed=seed,
    )


def class_folders_in(folder: Path) -> bool:
    """Whether the folder is a split: it exists and has folders inside (a class may be called "train")."""
    return folder.is_dir() and bool(class_folders(folder))
