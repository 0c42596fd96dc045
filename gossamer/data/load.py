"""Built-in data sets and folders of images as tasks."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F

from gossamer.data.arrays import Split, cut, make_task
from gossamer.data.catalog import DATASETS, DataSet
from gossamer.data.formats import read_idx
from gossamer.errors import BadInput, unknown
from gossamer.task import Task

SYSTEM_FOLDER = Path("/usr/share/datasets")
DIGITS_TEST = 400


def load_task(
    name_or_folder: str | Path,
    *,
    batch_size: int = 128,
    seed: int = 0,
    calibration: int = 512,
    validation: int | None = None,
    root: Path | str | None = None,
    download: bool = True,
) -> Task:
    """The task of a built-in data set, or of a folder."""
    name = str(name_or_folder)
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    data = DATASETS[name]
    train, test = _digits(data) if name == "digits" else _idx(name, data, root)
    return make_task(
        name,
        train=train,
        test=test,
        classes=data.classes,
        normalisation=data.normalisation,
        augmentation=data.augmentation,
        validation=data.validation if validation is None else validation,
        calibration=calibration,
        batch_size=batch_size,
        seed=seed,
    )


def default_task(*, batch_size: int = 128, seed: int = 0, download: bool = True) -> tuple[Task, str]:
    """Fashion-MNIST where it is found, else scikit-learn's embedded digits; and a sentence that says which."""
    try:
        return load_task("fashion-mnist", batch_size=batch_size, seed=seed, download=download), "data: Fashion-MNIST"
    except BadInput as error:
        return load_task("digits", batch_size=batch_size, seed=seed), f"data: scikit-learn's digits ({error})"


def roots(root: Path | str | None) -> list[Path]:
    """Where data sets are looked for, the first one is also where downloads go."""
    if root is not None:
        return [Path(root)]
    own = os.environ.get("GOSSAMER_DATA")
    return [*([Path(own)] if own else []), Path.home() / ".cache" / "gossamer", SYSTEM_FOLDER]


def _idx(name: str, data: DataSet, root: Path | str | None) -> tuple[Split, Split]:
    folder = next((r / name for r in roots(root) if (r / name / data.files[0].name).is_file()), None)
    if folder is None:
        raise BadInput(f"{name} was not found")
    images, labels, test_images, test_labels = (
        read_idx(folder / f.name, 3 if "images" in f.name else 1) for f in data.files
    )
    return (
        Split(images=images.unsqueeze(1), labels=labels.long()),
        Split(images=test_images.unsqueeze(1), labels=test_labels.long()),
    )


def _digits(data: DataSet) -> tuple[Split, Split]:
    """scikit-learn's 1,797 digits of 8x8, enlarged to 28x28 once, so that every network of the zoo takes them."""
    from sklearn.datasets import load_digits  # slow to import, needed here only

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(small, size=(data.size, data.size), mode="bilinear").round().to(torch.uint8)
    target = torch.from_numpy(labels).long()
    kept, taken = cut(target, DIGITS_TEST, "digits, test")
    return Split(images=large[kept], labels=target[kept]), Split(images=large[taken], labels=target[taken])
