"""Folders of images: one folder for every class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.core.preprocessing import BYTE_RANGE, Preprocessing
from gossamer.core.task import Task
from gossamer.data import images
from gossamer.data.arrays import DataSplit, cut, make_task
from gossamer.data.batches import Augmentation, Normalisation
from gossamer.data.images import ImageFiles
from gossamer.data.unlabelled import unlabelled_task
from gossamer.errors import BadInput

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
VALIDATION, TEST = 0.1, 0.15
SIDE = 224  # pixels
# What systems and programs leave in folders of images; names that begin with a dot are not looked at either.
SIDE_FOLDERS = ("__MACOSX", "@eaDir", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information")
COLOUR = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = Normalisation(mean=(0.5,), std=(0.25,))


@dataclass(frozen=True, kw_only=True)
class LabelledFiles:
    """Image files, sorted, and the position of each one's class."""

    paths: list[Path]
    labels: Tensor

    def at(self, index: Tensor) -> "LabelledFiles":
        return LabelledFiles(paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders inside, sorted, without those that systems leave there."""
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and not left_by_system(f.name)))


def left_by_system(name: str) -> bool:
    """Whether a file or folder is not the user's: hidden (`._cat.png` of a Mac among them), or a system's own."""
    return name.startswith(".") or name in SIDE_FOLDERS


def find_images(folder: Path, classes: tuple[str, ...]) -> LabelledFiles:
    """All image files below the class folders; files with other suffixes are not looked at, nor a system's own."""
    if class_folders(folder) != classes:
        raise BadInput(f"{folder} must hold the class folders {', '.join(classes)}, it has {class_folders(folder)}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = images_of(folder / name)
        if not found:
            raise BadInput(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    return LabelledFiles(paths=paths, labels=torch.tensor(labels))


def images_of(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if _is_image(path, folder))


def _is_image(path: Path, below: Path) -> bool:
    own = not any(left_by_system(part) for part in path.relative_to(below).parts)
    return own and path.suffix.lower() in SUFFIXES and path.is_file()


def common_form(paths: Sequence[Path], train: Sequence[Path], *, size: int | None, background: str) -> Preprocessing:
    """What all images are read as: grey where every one is grey, else RGB; in squares of their own size where all are
    equal and no larger than the usual one; deep values with the range that those of training have.

    Opens every file, or an even selection of those of a large set, so that damage shows early: all of it at once.
    """
    seen: dict[Path, tuple[str, tuple[int, int]]] = {}
    images.refuse_broken(
        images.selected(paths), lambda path, most: seen.__setitem__(path, images.image_header(path, most))
    )
    modes = {path: mode for path, (mode, _) in seen.items()}
    sides = {side for _, sizes in seen.values() for side in sizes}
    grey = all(mode in images.GREY for mode in modes.values())
    usual = GREY if grey else COLOUR
    form = Preprocessing(
        size=(min(SIDE, *sides) if len(sides) == 1 else SIDE) if size is None else size,
        channels=1 if grey else 3,
        mean=usual.mean,
        std=usual.std,
        range=images.find_range(train, modes),
        background=images.check_background(background),
    )
    # What training has no values like is found here, and not at the end of a job, when test data are read.
    trained = set(train)
    deep = [path for path, mode in modes.items() if mode in images.DEEP and path not in trained]
    if form.range == BYTE_RANGE and deep:
        images.refuse_broken(images.selected(deep), lambda path, most: images.decode_image(path, form, most))
    return form


@dataclass(frozen=True, kw_only=True)
class ImageChoices:
    """How images become inputs, as far as it is chosen. What is not follows from the images.

    Args:
        size: side of the images that come; None: their own where all are equal squares of at most 224 pixels, else 224.
        background: what transparent images lie on.
        preprocessing: of the network, in the place of what suits the images; only the range of the values is the
            images' own.
        fields: of a `Preprocessing`, by name, in the place of what these say. A single mean or std is that of every
            channel.
    """

    size: int | None = None
    background: str = "white"
    preprocessing: Preprocessing | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def folder_task(
    folder: Path,
    choices: ImageChoices,
    *,
    validation: int | None = None,
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    augment: bool = True,
) -> Task:
    """A task from class folders with images, or from images without classes.

    The class folders are in `train`, `val` and `test` folders, or directly in the folder. Splits without a folder of
    their own are cut from the training images, the same way every time: 15 % test, 10 % of the rest validation.
    A folder that holds images and no class folders has no labels: `unlabelled_task`.
    """
    parts = {
        split: next((folder / n for n in names if class_folders_in(folder / n)), None)
        for split, names in SPLITS.items()
    }
    start = parts["train"] or folder
    classes = class_folders(start)
    if not classes and (alone := images_of(start)):
        form = _form(alone, alone, choices)
        options: dict[str, Any] = {"calibration": calibration, "batch_size": batch_size, "seed": seed}
        return unlabelled_task(folder.resolve().name, alone, form, augment=augment, **options)
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
    held_out: LabelledFiles | int = round(VALIDATION * len(train.paths)) or 1 if validation is None else validation
    if parts["train"] is not None and parts["validation"] is not None and validation is None:
        held_out = find_images(parts["validation"], classes)
    both = train.paths + test.paths + (held_out.paths if isinstance(held_out, LabelledFiles) else [])
    form = _form(both, train.paths, choices)

    def split(part: LabelledFiles) -> DataSplit:
        return DataSplit(images=ImageFiles(part.paths, form), labels=part.labels)

    return make_task(
        folder.resolve().name,
        train=split(train),
        test=split(test),
        classes=classes,
        normalisation=Normalisation(mean=form.mean, std=form.std),
        augmentation=Augmentation(pad=min(form.sides) // 8, flip=True) if augment else None,
        validation=split(held_out) if isinstance(held_out, LabelledFiles) else held_out,
        calibration=calibration,
        batch_size=batch_size,
        seed=seed,
        preprocessing=form,
    )


def _form(paths: Sequence[Path], train: Sequence[Path], choices: ImageChoices) -> Preprocessing:
    """That of the network, where it is known, with the range of the images' own values; else what suits these."""
    form, chosen = common_form(paths, train, size=choices.size, background=choices.background), choices.preprocessing
    if chosen is not None:
        form = replace(chosen, range=form.range)
    known: dict[str, Any] = {one.name: getattr(form, one.name) for one in fields(form)} | dict(choices.fields)
    usual = COLOUR if known["channels"] == 3 else GREY
    for name in ("mean", "std"):
        numbers = tuple(known[name])
        if len(numbers) == 1 and name in choices.fields:
            numbers *= known["channels"]
        known[name] = numbers if name in choices.fields or len(numbers) == known["channels"] else getattr(usual, name)
    form = Preprocessing(**known)
    images.check_background(form.background)
    return form


def class_folders_in(folder: Path) -> bool:
    """Whether the folder is a split: it exists and has folders inside (a class may be called "train")."""
    return folder.is_dir() and bool(class_folders(folder))
