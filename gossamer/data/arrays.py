"""From arrays of images and labels to a task: the checks and the splits that all data sets share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.core.preprocessing import BYTE_RANGE, Preprocessing
from gossamer.core.task import Task
from gossamer.data.batches import (
    BATCH,
    Augmentation,
    Batches,
    Images,
    Normalisation,
    largest_batch,
)
from gossamer.errors import BadInput

# The splits of a data set never depend on the seed of a training: what one job trains on, no job validates on.
SPLIT_SEED = 0
EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """Images and their labels.

    Args:
        images: shape (N, C, H, W), uint8 or floating point.
        labels: int64, shape (N,).

    Example:
        >>> DataSplit(images=torch.zeros(2, 1, 8, 8), labels=torch.tensor([0, 1])).labels.tolist()
        [0, 1]
    """

    images: Images
    labels: Tensor


def check_split(split: DataSplit, classes: int, where: str) -> None:
    """Refuse what cannot be trained on: no samples, NaN, labels out of range, one class only."""
    images, labels = split.images, split.labels
    if len(images.shape) != 4 or images.shape[0] != len(labels):
        raise BadInput(
            f"{where}: images must have shape (N, channels, height, width) and labels (N,), "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels):
        raise BadInput(f"{where}: there are no images")
    if isinstance(images, Tensor) and images.is_floating_point():
        finite = images.isfinite().flatten(1).all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise BadInput(f"{where}: {int((~finite).sum())} images hold NaN or infinite values, the first is {first}")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        first = int(outside.nonzero()[0])
        raise BadInput(f"{where}: the label of image {first} is {int(labels[first])}, must be in 0..{classes - 1}")
    present = labels.unique()  # type: ignore[no-untyped-call]
    if len(present) < 2:
        all_of = f"all {len(labels)} images are" if len(labels) > 1 else "the only image is"
        raise BadInput(
            f"{where}: {all_of} of class {int(present[0])}; two classes are needed, so give more images of the others"
        )


def cut(labels: Tensor, size: int, where: str) -> tuple[Tensor, Tensor]:
    """Positions (kept, taken), both ascending: `size` samples taken at random, each class by its share. Of a class with
    several samples at least one is taken, where `size` allows that; the only one of a class is kept.

    The same labels always give the same cut.
    """
    if not 0 < size < len(labels):
        raise BadInput(f"{where}: cannot cut {size} samples from {len(labels)}")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    rank = torch.arange(len(labels)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    # Sorted by their place within their own class, the first samples hold every class by its share.
    of_class = counts[labels[by_class]]
    place = (rank + 0.5) / of_class
    place[of_class == 1] = 1.0
    if size >= int((counts > 1).sum()):
        place[(rank == 0) & (of_class > 1)] = 0.0
    taken = by_class[place.argsort(stable=True)[:size]].sort().values
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[taken] = False
    return keep.nonzero()[:, 0], taken


def make_task(
    name: str,
    *,
    train: DataSplit,
    test: DataSplit,
    classes: tuple[str, ...],
    normalisation: Normalisation,
    augmentation: Augmentation | None = None,
    validation: int | DataSplit,
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Task:
    """A task from images and labels.

    Args:
        name: of the data, in reports.
        train: the training images.
        test: images that take no part in any decision.
        classes: a name for each label.
        normalisation: of the images, channel by channel.
        augmentation: of training images; None: none.
        validation: a split of its own, or how many samples to cut from `train`, every class by its share.
        calibration: random training samples without labels and augmentation (all, if there are fewer).
        batch_size: samples of a training step; None: 128, fewer where images are large. What is only measured comes in
            batches of at most `largest_batch`.
        seed: of order and augmentation; the splits never depend on it.
        preprocessing: how the images came out of files, where they did.

    Returns:
        The task, judged by top-1 accuracy.

    Raises:
        BadInput: shapes, labels or sizes that do not go together; the message names the split.

    Example:
        >>> half = DataSplit(images=torch.rand(40, 1, 8, 8), labels=torch.arange(40) % 2)
        >>> task = make_task(
        ...     "halves",
        ...     train=half,
        ...     test=half,
        ...     classes=("even", "odd"),
        ...     normalisation=Normalisation(mean=(0.5,), std=(0.25,)),
        ...     validation=10,
        ... )
        >>> len(task.validation), tuple(task.example_inputs[0].shape)
        (1, (8, 1, 8, 8))
    """
    own = {"validation": validation} if isinstance(validation, DataSplit) else {}
    _check_splits(name, {"train": train, "test": test, **own}, len(classes))
    channels = train.images.shape[1]
    if len(normalisation.mean) != channels or len(normalisation.std) != channels:
        raise BadInput(
            f"{name}: images have {channels} channels, the normalisation {len(normalisation.mean)}; "
            "give one mean and one std a channel"
        )
    if calibration < 1:
        raise BadInput(f"{name}: calibration = {calibration} must be at least 1")
    kept, taken = torch.arange(len(train.labels)), None
    if not isinstance(validation, DataSplit):
        kept, taken = cut(train.labels, validation, f"{name}, validation")
        validation = train
    picked = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(SPLIT_SEED))[:calibration]]

    largest = largest_batch(train.images.shape)
    batch_size = min(BATCH, largest) if batch_size is None else batch_size

    def batches(split: DataSplit, index: Tensor | None, labels: Tensor | None) -> Batches:
        options: dict[str, Any] = {"index": torch.arange(split.images.shape[0]) if index is None else index}
        return Batches(split.images, labels, batch_size=min(batch_size, largest), **options, **common)

    common: dict[str, Any] = {"normalisation": normalisation, "seed": seed}
    common["layout"] = "nchw" if preprocessing is None else preprocessing.layout
    held_out = batches(validation, taken, validation.labels)
    return Task(
        name=name,
        train=Batches(
            train.images,
            train.labels,
            index=kept,
            batch_size=min(batch_size, len(kept)),
            augmentation=augmentation,
            shuffle=True,
            drop_last=True,
            **common,
        ),
        validation=held_out,
        test=batches(test, None, test.labels),
        calibration=batches(train, picked, None),
        example_inputs=(next(iter(held_out))[0][:EXAMPLES],),
        classes=classes,
        preprocessing=preprocessing or _of_arrays(train.images, normalisation),
    )


def _check_splits(name: str, splits: Mapping[str, DataSplit], classes: int) -> None:
    """Each by itself, and images of one shape in all."""
    expected = tuple(splits["train"].images.shape[1:])
    for where, split in splits.items():
        check_split(split, classes, f"{name}, {where}")
        if (shape := tuple(split.images.shape[1:])) != expected:
            shapes = f"{shape}, the training images {expected}"
            raise BadInput(f"{name}: {where} images have (channels, height, width) = {shapes}")


def _of_arrays(images: Images, normalisation: Normalisation) -> Preprocessing | None:
    """How images that are an array already become inputs; None where they are no squares of grey or RGB."""
    _, channels, height, width = images.shape
    if height != width or channels not in (1, 3):
        return None
    bytes_ = isinstance(images, Tensor) and images.dtype == torch.uint8
    return Preprocessing(
        size=height,
        channels=channels,
        mean=normalisation.mean,
        std=normalisation.std,
        range=BYTE_RANGE if bytes_ else (0.0, 1.0),
    )
