"""Folders of images with boxes as tasks: COCO's, PASCAL VOC's, YOLO's and WIDER FACE's."""

from dataclasses import replace
from pathlib import Path

import yaml

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task
from gossamer.data.box_files import NAMED, AnnotatedSplits, Faulty, FileScenes
from gossamer.data.coco_files import coco_files, read_coco
from gossamer.data.folder import ImageChoices
from gossamer.data.objects import BatchChoices, BoxAugmentation, SceneSplits, detection_task
from gossamer.data.voc_files import LISTS, read_voc, voc_folder
from gossamer.data.wider_files import read_wider, wider_lists
from gossamer.data.yolo_files import read_yolo, yolo_description
from gossamer.detection.metrics import BoxMetric, CocoAP, VocAP
from gossamer.errors import BadInput, first_line

SIDE = 320  # pixels of the square that images are letterboxed into
STRIDE = 32
NUMBERS = ("mean", "std")


def read_box_folder(folder: Path, faulty: Faulty = "refuse") -> tuple[AnnotatedSplits, BoxMetric] | None:
    """The images of a folder with boxes, and what detectors are judged by; None where it is no such folder."""
    if coco_files(folder):
        return read_coco(folder, faulty), CocoAP()
    if (voc := voc_folder(folder)) is not None:
        return read_voc(voc, faulty), VocAP(recalls=11 if voc.name == "VOC2007" else None)
    if (description := yolo_description(folder)) is not None:
        return read_yolo(description, faulty), CocoAP()
    if wider_lists(folder):
        return read_wider(folder, faulty), CocoAP()
    refuse_incomplete(folder)
    return None


def refuse_incomplete(folder: Path) -> None:
    """Say what is missing where a folder has a part of one of the formats. Raises BadInput."""
    notes, labels = folder / "annotations", folder / "labels"
    files = sorted(path.name for path in notes.glob("*.json"))
    if files and not any("_keypoints_" in name for name in files):
        raise BadInput(
            f"{notes} has {', '.join(files[:NAMED])}; objects to train on are in a file instances_train*.json"
        )
    for place in (folder, *folder.glob("VOC*"), *folder.glob("VOCdevkit/VOC*")):
        if any((place / "Annotations").glob("*.xml")):
            raise BadInput(f"{place} has Annotations, but no lists of its splits: {LISTS / 'train.txt'} is missing")
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if labels.is_dir() else ():
        try:
            known = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise BadInput(f"{path} cannot be read as YAML: {first_line(error)}") from error
        missing = [key for key in ("names", "train") if not isinstance(known, dict) or key not in known]
        raise BadInput(f"{path} does not name {' and '.join(missing)}, as the data set beside it needs")


def box_form(choices: ImageChoices) -> Preprocessing:
    """How images with boxes become inputs: as a network wants them, else colours from 0 to 1 in a square.

    Args:
        choices: size of the square, 320 where it is None; preprocessing of a network in its place; and fields in the
            place of those that follow from the others. Where these name one channel or three, mean and std follow.

    Returns:
        A form with equal sides.

    Raises:
        BadInput: the sides are not equal, or no multiple of 32.
    """
    side, fields = SIDE if choices.size is None else choices.size, choices.fields
    form = choices.preprocessing or Preprocessing(size=side, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    channels = fields.get("channels", form.channels)
    known = {name: tuple(one) * (channels if len(one) == 1 else 1) for name, one in fields.items() if name in NUMBERS}
    if channels != form.channels:
        known = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **known}
    form = replace(form, **{**fields, **known})
    height, width = form.sides
    if height != width or height % STRIDE:
        raise BadInput(
            f"images with boxes are put into a square whose side is a multiple of {STRIDE} pixels, not into "
            f"{width} x {height}"
        )
    return form


def box_folder_task(
    folder: Path,
    choices: ImageChoices | None = None,
    *,
    faulty: Faulty = "refuse",
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    augment: bool = True,
    progress: Progress | None = None,
) -> Task | None:
    """A task from a folder with boxes in the format of COCO, PASCAL VOC, YOLO or WIDER FACE; None where it is no such
    folder. choices: how images become inputs, as `box_form` takes them.

    Without a test split, the validation split is the test split, and validation images are cut from the training
    images, always the same ones.
    """
    found = read_box_folder(folder, faulty)
    if found is None:
        return None
    splits, metric = found
    form = box_form(choices or ImageChoices())
    if splits.said:
        (progress or Silent()).say(f"{folder.name}: {splits.said}")
    test, validation = splits.test, splits.validation
    if test is None:
        test, validation = validation, None
    return detection_task(
        folder.resolve().name,
        SceneSplits(
            train=FileScenes(splits.train, form),
            validation=None if not validation else FileScenes(validation, form),
            test=None if not test else FileScenes(test, form),
        ),
        classes=splits.classes,
        metric=metric,
        preprocessing=form,
        choices=BatchChoices(
            augmentation=BoxAugmentation() if augment else None,
            calibration=calibration,
            batch_size=batch_size,
            seed=seed,
        ),
    )
