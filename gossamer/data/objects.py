"""Images with boxes as a task: targets, batches that move boxes with their pixels, and splits."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.data.arrays import EXAMPLES, SPLIT_SEED
from gossamer.data.batches import AUGMENTATION, BATCH, Batches, Normalisation, largest_batch
from gossamer.detection.losses import detection_loss
from gossamer.detection.metrics import BoxMetric
from gossamer.errors import BadInput

LEAST_SHARE = 0.25  # of an object that must be left in a crop


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: shape (G, 4), in pixels of the original image.
        labels: int64, shape (G,).
        crowd: bool, shape (G,): regions of many objects; None: there are none.
        difficult: bool, shape (G,): objects that do not count; None: there are none.
        areas: of the objects, shape (G,), in squared pixels; None: those of their boxes.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor | None = None
    difficult: Tensor | None = None
    areas: Tensor | None = None


class Scenes(Protocol):
    """Images of one size with objects, made or read when they are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, channels, height, width) of the inputs."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The images at these places, uint8."""

    def objects(self, place: int) -> Objects:
        """Of one image."""

    def letterbox(self, place: int) -> tuple[float, float, float]:
        """Scale, offset to the right and offset down of an image in its input."""


def targets(scenes: Scenes, places: Sequence[int]) -> dict[str, Tensor]:
    """The objects of a batch as `CocoAP` and `detection_loss` take them, padded to the most that an image has.

    Args:
        scenes: images and objects.
        places: of the images.

    Returns:
        `boxes` (N, G, 4) in pixels of the input, `labels` (N, G) with -1 for padding, `crowd` and `difficult` (N, G),
        `area` (N, G) in the original image, `letterbox` (N, 3).
    """
    found = [scenes.objects(place) for place in places]
    letterboxes = torch.tensor([scenes.letterbox(place) for place in places], dtype=torch.float64)
    n, most = len(found), max([1, *(len(one.labels) for one in found)])
    boxes, areas = torch.zeros(n, most, 4), torch.zeros(n, most)
    labels = torch.full((n, most), -1)
    crowd, difficult = torch.zeros(n, most, dtype=torch.bool), torch.zeros(n, most, dtype=torch.bool)
    for i, (one, letterbox) in enumerate(zip(found, letterboxes)):
        count = len(one.labels)
        labels[i, :count] = one.labels
        boxes[i, :count] = (one.boxes.double() * letterbox[0] + letterbox[[1, 2, 1, 2]]).float()
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        areas[i, :count] = (sides.prod(1) if one.areas is None else one.areas).float()
        for table, own in ((crowd, one.crowd), (difficult, one.difficult)):
            if own is not None:
                table[i, :count] = own
    named = {"boxes": boxes, "labels": labels, "crowd": crowd, "difficult": difficult}
    return {**named, "area": areas, "letterbox": letterboxes.float()}


@dataclass(frozen=True, kw_only=True)
class BoxAugmentation:
    """Random crops and mirror images of training images, with their boxes.

    Args:
        shift: how far an image is moved both ways, as a part of its side; zeros come in.
        flip: mirror half of the samples.
        mosaic: share of the samples that become mosaics of four images of the batch, each at half its size.
    """

    shift: float = 0.1
    flip: bool = True
    mosaic: float = 0.0

    def __call__(
        self, x_NCHW: Tensor, target: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each sample on its own. An object of which too little is left is marked as padding."""
        n, _, height, width = x_NCHW.shape
        if self.mosaic:
            x_NCHW, target = mosaics(x_NCHW, target, self.mosaic, generator)
        reach = torch.tensor([int(self.shift * width), int(self.shift * height)])
        moves = (torch.rand(n, 2, generator=generator) * (2 * reach + 1)).long() - reach
        mirrored = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        moved, boxes = torch.zeros_like(x_NCHW), target["boxes"].clone()
        for i, (right, down) in enumerate(moves.tolist()):
            rows = slice(max(0, down), min(height, height + down)), slice(max(0, -down), min(height, height - down))
            columns = slice(max(0, right), min(width, width + right)), slice(max(0, -right), min(width, width - right))
            moved[i, :, rows[0], columns[0]] = x_NCHW[i, :, rows[1], columns[1]]
        boxes += moves[:, None, [0, 1, 0, 1]]
        moved = torch.where(mirrored[:, None, None, None], moved.flip(3), moved)
        flipped = torch.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)
        boxes = torch.where(mirrored[:, None, None], flipped, boxes)
        limits = torch.tensor([width, height, width, height])
        cut = torch.minimum(boxes.clamp_min(0), limits)
        left = (cut[..., 2:] - cut[..., :2]).prod(-1) >= LEAST_SHARE * (boxes[..., 2:] - boxes[..., :2]).prod(-1)
        labels = target["labels"].masked_fill(~left, -1)
        return moved, {**target, "boxes": cut, "labels": labels}


def mosaics(
    x_NCHW: Tensor, target: dict[str, Tensor], share: float, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put four images of a batch into one, each at half its size, with all of their objects.

    Args:
        x_NCHW: images with an even height and width.
        target: their objects, as `targets` gives them.
        share: of the samples that become mosaics, each of itself and three others; the rest stays.
        generator: of the choices.

    Returns:
        The images, and their objects, padded to four times as many.

    Source: Bochkovskiy et al. 2020, YOLOv4, arXiv:2004.10934, section 3.3.
    """
    n, _, height, width = x_NCHW.shape
    chosen = torch.rand(n, generator=generator) < share
    parts = torch.cat([torch.arange(n)[:, None], torch.randint(n, (n, 3), generator=generator)], 1)
    small = F.avg_pool2d(x_NCHW.float(), 2).round().to(x_NCHW.dtype)
    rows = [torch.cat([small[parts[:, at]] for at in pair], 3) for pair in ((0, 1), (2, 3))]
    images = torch.where(chosen[:, None, None, None], torch.cat(rows, 2), x_NCHW)
    corners = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]) / 2
    joined = {}
    for name, one in target.items():
        if name == "letterbox":
            joined[name] = one
            continue
        four = torch.stack([one[parts[:, at]] for at in range(4)], 1)
        alone = torch.zeros_like(four) if name != "labels" else torch.full_like(four, -1)
        alone[:, 0] = one
        if name == "boxes":
            four = four / 2 + corners.repeat(1, 2)[None, :, None]
        elif name == "area":
            four = four / 4
        joined[name] = torch.where(chosen.view(-1, *[1] * (four.ndim - 1)), four, alone).flatten(1, 2)
    return images, joined


@dataclass(eq=False, repr=False)
class BoxBatches(Batches):
    """`Batches` of images with boxes: `(x_NCHW, targets)`.

    Attributes:
        scenes: images and objects, in the place of `images`.
        moves: augmentation of training images; None: none.
    """

    scenes: Scenes = None  # type: ignore[assignment]  # the same object as `images`
    moves: BoxAugmentation | None = None

    def unaugmented(self) -> "BoxBatches":
        if self.moves is None:
            return self
        plain = copy.copy(self)
        plain.moves = None
        return plain

    def _batch(self, order: Tensor, number: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        picked = order[number * self.batch_size : (number + 1) * self.batch_size]
        x_NCHW, target = self.images[picked], targets(self.scenes, picked.tolist())
        if self.moves is not None:
            x_NCHW, target = self.moves(x_NCHW, target, self._generator(AUGMENTATION, number))
        if self.world > 1:
            x_NCHW = x_NCHW[self.rank :: self.world]
            target = {name: one[self.rank :: self.world] for name, one in target.items()}
        return self.normalisation(x_NCHW), target


@dataclass(frozen=True, kw_only=True)
class SceneSplits:
    """The images of each split. validation None: a tenth of the training images is cut off, always the same ones."""

    train: Scenes
    test: Scenes | None
    validation: Scenes | None = None


@dataclass(frozen=True, kw_only=True)
class BatchChoices:
    """How batches of images with boxes are made.

    Args:
        augmentation: of training images; None: none.
        calibration: training images without boxes.
        batch_size: of a training step; None: 32, fewer where images are large.
        seed: of order and augmentation.
    """

    augmentation: BoxAugmentation | None = None
    calibration: int = 512
    batch_size: int | None = None
    seed: int = 0


def detection_task(
    name: str,
    splits: SceneSplits,
    *,
    classes: tuple[str, ...],
    metric: BoxMetric,
    preprocessing: Preprocessing,
    choices: BatchChoices,
) -> Task:
    """A task from images with boxes.

    Args:
        name: of the data, in reports.
        splits: the images.
        classes: names of the objects' classes.
        metric: what detectors are judged by.
        preprocessing: how the images become inputs.
        choices: how batches are made.

    Returns:
        The task. Batches are `(x_NCHW, targets)`.

    Raises:
        BadInput: there are too few images.
    """
    train = splits.train
    kept, taken = torch.arange(train.shape[0]), None
    if splits.validation is None:
        order = torch.randperm(train.shape[0], generator=torch.Generator().manual_seed(SPLIT_SEED))
        cut = max(1, train.shape[0] // 10)
        kept, taken = order[cut:].sort().values, order[:cut].sort().values
    if not len(kept):
        raise BadInput(f"{name}: {train.shape[0]} training images are too few to cut validation images from; two do")
    held_out = train if splits.validation is None else splits.validation
    largest = largest_batch(train.shape)
    size = min(choices.batch_size or BATCH // 4, largest)
    norm = Normalisation(mean=preprocessing.mean, std=preprocessing.std)

    def batches(scenes: Scenes, index: Tensor | None, **options: Any) -> BoxBatches:
        index = torch.arange(scenes.shape[0]) if index is None else index
        few = min(size, len(index))
        return BoxBatches(
            scenes, None, scenes=scenes, index=index, batch_size=few, normalisation=norm, seed=choices.seed, **options
        )

    picked = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(SPLIT_SEED))[: choices.calibration]]
    validation = batches(held_out, taken)
    return Task(
        name=name,
        train=batches(train, kept, moves=choices.augmentation, shuffle=True, drop_last=True),
        validation=validation,
        test=None if splits.test is None else batches(splits.test, None),
        calibration=Batches(
            train, None, index=picked, batch_size=min(size, len(picked)), normalisation=norm, seed=choices.seed
        ),
        example_inputs=(next(iter(validation))[0][:EXAMPLES],),
        loss=detection_loss,
        metric=metric,
        classes=classes,
        preprocessing=preprocessing,
    )
