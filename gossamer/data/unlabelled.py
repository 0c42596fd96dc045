"""Folders of images without classes: what a network says of them takes the place of labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gossamer.core.batches import Model
from gossamer.core.metric import Evidence, Metric
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.data.arrays import EXAMPLES, SPLIT_SEED
from gossamer.data.batches import BATCH, Augmentation, Batches, Normalisation, largest_batch
from gossamer.data.images import ImageFiles
from gossamer.errors import BadInput

LEAST = 8  # images: two of each split
TRAIN, VALIDATION = 0.5, 0.25  # of the images; the rest is test


@dataclass(frozen=True)
class NoLabels(Metric):
    """Stands for the metric of data without labels until there is a network that says what is right."""

    name: str = "agreement"

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        raise BadInput(
            "the data have no labels: `gossamer.measure.judged_by(task, network)` judges by what a network says",
            shell="the data have no labels; `gossamer quantize` and `gossamer compress` judge by the original",
        )


def unlabelled_task(
    name: str,
    paths: list[Path],
    form: Preprocessing,
    *,
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    augment: bool = True,
) -> Task:
    """A task of images alone: half of them for training, a quarter each for validation and test, always the same ones.

    Args:
        name: of the data, in reports.
        paths: of the images.
        form: what they are read as.
        calibration: training images that layers are looked at with.
        batch_size: of a training step; None: 128, fewer where images are large.
        seed: of order and augmentation.
        augment: shift and mirror training images.

    Returns:
        The task; give it a network with `gossamer.measure.judged_by` before it judges.

    Raises:
        BadInput: there are fewer than 8 images.
    """
    if len(paths) < LEAST:
        raise BadInput(
            f"{name}: {len(paths)} images without class folders are too few to check anything by; {LEAST} do"
        )
    images = ImageFiles(paths, form)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SPLIT_SEED))
    first, second = round(TRAIN * len(paths)), round((TRAIN + VALIDATION) * len(paths))
    size = min(BATCH if batch_size is None else batch_size, largest_batch(images.shape))

    def batches(index: torch.Tensor, **options: Any) -> Batches:
        norm, few = Normalisation(mean=form.mean, std=form.std), min(size, len(index))
        return Batches(
            images, None, index=index, batch_size=few, normalisation=norm, layout=form.layout, seed=seed, **options
        )

    held_out = batches(order[first:second].sort().values)
    shifted = Augmentation(pad=min(form.sides) // 8, flip=True) if augment else None
    return Task(
        name=name,
        train=batches(order[:first], augmentation=shifted, shuffle=True, drop_last=True),
        validation=held_out,
        test=batches(order[second:].sort().values),
        calibration=batches(order[:first][:calibration]),
        example_inputs=(next(iter(held_out))[:EXAMPLES],),
        metric=NoLabels(),
        preprocessing=form,
    )
