"""Built-in data sets and folders of images as tasks."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from gossamer.core.kinds import checked_arguments
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress
from gossamer.core.task import Task
from gossamer.data.arrays import make_task
from gossamer.data.catalog import DATASETS, DataFile, DataSet
from gossamer.data.composed import composed_task
from gossamer.data.fetch import fetch
from gossamer.data.formats import Published
from gossamer.data.objects import BatchChoices, BoxAugmentation
from gossamer.errors import BadInput, CorruptFile, require, unknown

# Where Debian's packages of data sets put them.
SYSTEM_FOLDER = Path("/usr/share/datasets")
COMPOSED = "composed-"  # in front of a data set of grey images: scenes of its objects, with boxes


@checked_arguments
def load_task(
    name_or_folder: str | Path,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    calibration: int = 512,
    validation: int | None = None,
    size: int | None = None,
    background: str = "white",
    preprocessing: Preprocessing | None = None,
    image_fields: Mapping[str, Any] | None = None,
    root: Path | str | None = None,
    download: bool = True,
    augment: bool = True,
    faulty: Literal["refuse", "skip"] = "refuse",
    progress: Progress | None = None,
) -> Task:
    """The task of a built-in data set, or of a folder of images.

    Built in are fashion-mnist, mnist, cifar10, cifar100, svhn and digits (scikit-learn's, enlarged to 28x28 pixels). A
    built-in set is looked for in `root`, or else in $GOSSAMER_DATA, $XDG_CACHE_HOME/gossamer, ~/.cache/gossamer and
    /usr/share/datasets, each time in a folder of its name. Validation samples are cut from the training set, every
    class by its share and always the same ones; test samples are those that the authors held out. composed-mnist,
    composed-fashion-mnist and composed-digits are synthetic: scenes of 96x96 pixels of one to five of these images
    each, with boxes.

    Args:
        name_or_folder: a built-in set, a folder as `folder.folder_task` describes it, a folder with boxes in the
            format of COCO, PASCAL VOC, YOLO or WIDER FACE, or one with `.pts` files of landmarks.
        batch_size: of a training step; None: 128, with boxes 32, fewer where images are large.
        seed: of order and augmentation.
        calibration: training samples without labels.
        validation: how many samples to cut; None: the data set's usual number.
        size: side of the images of a folder, in pixels; None: their own where all are equal squares of at most 224,
            else 224; with boxes 320, with landmarks 128. Built-in sets have a size, background and preprocessing of
            their own.
        background: what transparent images lie on ("white", "black", "#rrggbb").
        preprocessing: that of the network that the images are for, in the place of size and background.
        image_fields: fields of a `Preprocessing` in the place of those that follow from the others, for folders.
        root: the only folder that built-in sets are looked for in, and downloaded to.
        download: whether a built-in set that is not found is downloaded.
        augment: shift and mirror training images as is usual for the data set; networks too small to profit do without.
        faulty: what is done with faulty boxes of a folder: "refuse" them all with their files and ids, or "skip" them.
        progress: where downloads are reported.

    Returns:
        The task, judged by top-1 accuracy, with boxes by COCO's AP.

    Raises:
        BadInput: there is no such data, or it cannot be used.
        CorruptFile: a file is damaged or holds something else.

    Example:
        >>> task = load_task("digits", batch_size=64)
        >>> next(iter(task.train))[0].shape
        torch.Size([64, 1, 28, 28])
    """
    name = str(name_or_folder)
    common: dict[str, Any] = {"calibration": calibration, "batch_size": batch_size, "seed": seed}
    single = name.removeprefix(COMPOSED)
    if single in DATASETS and (name == single or DATASETS[single].channels == 1):
        data = DATASETS[single]
        published = _published(single, find_files(single, data, root, download=download, progress=progress))
        if name != single:
            return _scenes(name, published, data, augment, common)
        return make_task(
            name,
            train=published.train,
            test=published.test,
            classes=published.classes or data.names,
            normalisation=data.normalisation,
            augmentation=data.augmentation if augment else None,
            validation=data.validation if validation is None else validation,
            **common,
        )
    folder = _expanded(name_or_folder)
    if folder.is_dir():
        boxes, folders = (require(f"gossamer.data.{name}") for name in ("box_folder", "folder"))
        choices = folders.ImageChoices(
            size=size, background=background, preprocessing=preprocessing, fields=image_fields or {}
        )
        task: Task | None = boxes.box_folder_task(
            folder, choices, faulty=faulty, augment=augment, progress=progress, **common
        )
        landmarks = require("gossamer.data.landmark_files")
        task = task or landmarks.landmark_task(folder, size=size, faulty=faulty, progress=progress, **common)
        if task is not None:
            return task
        made: Task = folders.folder_task(folder, choices, validation=validation, augment=augment, **common)
        return made
    if len(folder.parts) > 1 or folder.exists():
        raise BadInput(f"{folder} is not a folder; give a folder of images, or one of: {', '.join(sorted(DATASETS))}")
    raise unknown("data set or folder", name, DATASETS)


def _scenes(name: str, published: Published, data: DataSet, augment: bool, common: dict[str, Any]) -> Task:
    """Composed scenes of the images of a data set."""
    moves = BoxAugmentation(flip=data.augmentation.flip) if augment else None
    classes = published.classes or data.names
    return composed_task(name, published.train, published.test, classes, BatchChoices(augmentation=moves, **common))


def default_task(
    *,
    batch_size: int | None = None,
    seed: int = 0,
    download: bool = True,
    augment: bool = True,
    progress: Progress | None = None,
) -> tuple[Task, str]:
    """Fashion-MNIST where it is found or can be downloaded, else scikit-learn's digits.

    Args:
        batch_size: as `load_task`.
        seed: as `load_task`.
        download: as `load_task`.
        augment: as `load_task`.
        progress: as `load_task`.

    Returns:
        The task, and a sentence saying which it is.

    Example:
        >>> task, said = default_task(download=False)
        >>> task.name in ("digits", "fashion-mnist"), task.name in said
        (True, ...)
    """
    try:
        task = load_task(
            "fashion-mnist",
            batch_size=batch_size,
            seed=seed,
            download=download,
            augment=augment,
            progress=progress,
        )
    except (BadInput, CorruptFile) as error:
        task = load_task("digits", batch_size=batch_size, seed=seed, augment=augment)
        return task, f"data: scikit-learn's digits, because Fashion-MNIST cannot be used ({error})"
    return task, "data: Fashion-MNIST"


def roots(root: Path | str | None = None) -> list[Path]:
    """The folders in which data sets are looked for; downloads go to the first."""
    if root is not None:
        return [_expanded(root)]
    own, cache = os.environ.get("GOSSAMER_DATA"), os.environ.get("XDG_CACHE_HOME", "")
    folders = [_expanded(own)] if own else []
    if Path(cache).is_absolute():  # what the XDG specification says of others: they are ignored
        folders.append(Path(cache) / "gossamer")
    with suppress(RuntimeError):  # an account without a home, as in containers
        folders.append(Path.home() / ".cache" / "gossamer")
    return [*folders, SYSTEM_FOLDER]


def _expanded(path: Path | str) -> Path:
    """The path with the folder of the account in the place of `~`, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def find_files(
    name: str, data: DataSet, root: Path | str | None, *, download: bool, progress: Progress | None = None
) -> list[Path]:
    """A path for each of the data set's files, downloaded where none of the folders has all of them."""
    folders = [r / name for r in roots(root)]
    for folder in folders:
        paths = [_present(folder, file) for file in data.files]
        if None not in paths:
            return [path for path in paths if path is not None]
    if not download:
        raise BadInput(f"{name} was not found in {', '.join(map(str, folders))}; {_remedy(name, data, folders[0])}")
    try:
        return [
            _present(folders[0], f) or fetch(f.url, folders[0] / f.name, f.checksum, progress=progress)
            for f in data.files
        ]
    except BadInput as error:
        looked = ", ".join(map(str, folders))
        raise BadInput(f"{name} was not found in {looked}, and {error}; {_remedy(name, data, folders[0])}") from error


def _present(folder: Path, file: DataFile) -> Path | None:
    return next((folder / name for name in (file.name, *file.also) if (folder / name).exists()), None)


def _remedy(name: str, data: DataSet, folder: Path) -> str:
    package = f"install Debian's package {data.package}, or " if data.package else ""
    files = ", ".join(file.url for file in data.files)
    return f"{package}put {files} into {folder}, or set $GOSSAMER_DATA to a folder that holds {name}/"


def _published(name: str, paths: list[Path]) -> Published:
    """What the files hold. Raises CorruptFile where that is not the data set."""
    data = DATASETS[name]
    published = data.read(paths)
    wanted = (data.channels, data.size, data.size)
    for where, split in (("training", published.train), ("test", published.test)):
        if tuple(split.images.shape[1:]) != wanted:
            raise CorruptFile(
                f"{name}: {where} images must have (channels, height, width) = {wanted}, "
                f"those in {paths[0].parent} have {tuple(split.images.shape[1:])}"
            )
    names = published.classes or data.names
    if len(names) != data.classes:
        raise CorruptFile(f"{name}: {paths[0]} must name {data.classes} classes, it names {len(names)}")
    return published
