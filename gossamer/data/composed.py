"""Composed scenes: digits or clothes at random places on noisy canvases, with exact boxes.

They are synthetic: they show whether a detector learns and what compressing it costs, not how good it is on
photographs.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.data.arrays import DataSplit
from gossamer.data.objects import BatchChoices, Objects, SceneSplits, detection_task
from gossamer.detection.metrics import CocoAP
from gossamer.errors import BadInput

SIDE = 96  # pixels of a canvas
TRAIN, TEST = 4000, 1000  # canvases
MOST = 5  # objects of a canvas
SIZES = (14, 44)  # pixels of an object's square, before it is cropped to what is drawn
OVERLAP = 0.15  # of the smaller one's area that two objects may share
TRIES = 20  # to find a place
DRAWN = 48  # brightness from which on a pixel belongs to the object
NOISE = 24.0  # largest brightness of each of the background's two parts


@dataclass(frozen=True)
class _Part:
    """An object in a canvas: which image, the side of its square, and where the square begins."""

    image: int
    side: int
    left: int
    top: int


class ComposedScenes:
    """Canvases that are drawn when they are asked for; the same seed always gives the same ones.

    Args:
        objects: images of single objects, uint8, (N, 1, H, W), and their classes.
        count: of the canvases.
        seed: of the places, sizes and backgrounds.
    """

    def __init__(self, objects: DataSplit, count: int, seed: int) -> None:
        if (
            not isinstance(objects.images, Tensor)
            or objects.images.dtype != torch.uint8
            or objects.images.shape[1] != 1
        ):
            raise BadInput("scenes are composed of grey uint8 images (N, 1, H, W)")
        self.sources, self.labels, self.seed = objects.images, objects.labels, seed
        self.shape = (count, 1, SIDE, SIDE)

    def _parts(self, place: int) -> list[_Part]:
        """The objects of a canvas, at places where they hardly cover one another."""
        random = np.random.default_rng((self.seed, place))
        placed: list[_Part] = []
        for _ in range(int(random.integers(1, MOST + 1))):
            image, side = int(random.integers(len(self.labels))), int(random.integers(SIZES[0], SIZES[1] + 1))
            for _ in range(TRIES):
                left, top = (int(x) for x in random.integers(0, SIDE - side + 1, 2))
                part = _Part(image, side, left, top)
                if all(_shared(part, other) <= OVERLAP for other in placed):
                    placed.append(part)
                    break
        return placed

    def _drawn(self, part: _Part) -> Tensor:
        """An object at its size, (side, side), 0 to 255."""
        scaled = F.interpolate(self.sources[part.image][None].float(), (part.side, part.side), mode="bilinear")
        return scaled[0, 0]

    def __getitem__(self, index: Tensor, /) -> Tensor:
        canvases = torch.zeros(len(index), 1, SIDE, SIDE)
        for canvas, place in zip(canvases, index.tolist()):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
            coarse = torch.rand(1, 1, 7, 7, generator=random) * NOISE
            smooth = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[0]
            canvas += smooth + torch.rand(1, SIDE, SIDE, generator=random) * NOISE
            for part in self._parts(place):
                area = canvas[0, part.top : part.top + part.side, part.left : part.left + part.side]
                torch.maximum(area, self._drawn(part), out=area)
        return canvases.clamp(0, 255).to(torch.uint8)

    def objects(self, place: int) -> Objects:
        """Boxes around what is drawn of each object."""
        boxes, parts = [], self._parts(place)
        for part in parts:
            drawn = self._drawn(part)
            seen = drawn >= min(DRAWN, float(drawn.max()) / 2)  # some clothes are dark
            rows, columns = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
            ends = [int(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
            boxes.append([end + start for end, start in zip(ends, (part.left, part.top) * 2)])
        labels = self.labels[[part.image for part in parts]]
        return Objects(boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=labels)

    def letterbox(self, place: int) -> tuple[float, float, float]:
        """The canvas is the input."""
        return 1.0, 0.0, 0.0


def _shared(one: _Part, other: _Part) -> float:
    """How much of the smaller square two objects share."""
    width = min(one.left + one.side, other.left + other.side) - max(one.left, other.left)
    height = min(one.top + one.side, other.top + other.side) - max(one.top, other.top)
    return max(0, width) * max(0, height) / min(one.side, other.side) ** 2


def composed_task(
    name: str, train: DataSplit, test: DataSplit, classes: tuple[str, ...], choices: BatchChoices
) -> Task:
    """Scenes of the objects of a data set: training scenes of training objects, test scenes of test objects.

    Args:
        name: of the data, in reports.
        train: images of single objects.
        test: the same.
        classes: names of their classes.
        choices: how batches are made.

    Returns:
        The task, judged by COCO's AP.
    """
    return detection_task(
        name,
        SceneSplits(train=ComposedScenes(train, TRAIN, seed=1), test=ComposedScenes(test, TEST, seed=2)),
        classes=classes,
        metric=CocoAP(),
        preprocessing=Preprocessing(size=SIDE, channels=1, mean=(0.16,), std=(0.25,)),
        choices=choices,
    )
