"""Folders of images with boxes as tasks: COCO's, PASCAL VOC's and YOLO's."""

from pathlib import Path

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task
from gossamer.data.box_files import AnnotatedSplits, Faulty, FileScenes
from gossamer.data.coco_files import coco_files, read_coco
from gossamer.data.objects import BatchChoices, BoxAugmentation, SceneSplits, detection_task
from gossamer.data.voc_files import read_voc, voc_folder
from gossamer.data.yolo_files import read_yolo, yolo_description
from gossamer.detection.metrics import BoxMetric, CocoAP, VocAP
from gossamer.errors import BadInput

SIDE = 320  # pixels of the square that images are letterboxed into
STRIDE = 32


def read_box_folder(folder: Path, faulty: Faulty = "refuse") -> tuple[AnnotatedSplits, BoxMetric] | None:
    """The images of a folder with boxes, and what detectors are judged by; None where it is no such folder."""
    if coco_files(folder):
        return read_coco(folder, faulty), CocoAP()
    if (voc := voc_folder(folder)) is not None:
        return read_voc(voc, faulty), VocAP(recalls=11 if voc.name == "VOC2007" else None)
    if (description := yolo_description(folder)) is not None:
        return read_yolo(description, faulty), CocoAP()
    return None


def box_folder_task(
    folder: Path,
    *,
    size: int | None = None,
    faulty: Faulty = "refuse",
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    augment: bool = True,
    progress: Progress | None = None,
) -> Task | None:
    """A task from a folder with boxes in the format of COCO, PASCAL VOC or YOLO; None where it is no such folder.

    Without a test split, the validation split is the test split, and validation images are cut from the training
    images, always the same ones.

    Raises:
        BadInput: the size is no multiple of 32.
    """
    side = SIDE if size is None else size
    found = read_box_folder(folder, faulty)
    if found is None:
        return None
    splits, metric = found
    if side % STRIDE:
        raise BadInput(f"size = {side}: images with boxes need a multiple of {STRIDE} pixels")
    if splits.said:
        (progress or Silent()).say(f"{folder.name}: {splits.said}")
    test, validation = splits.test, splits.validation
    if test is None:
        test, validation = validation, None
    form = Preprocessing(size=side, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
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
