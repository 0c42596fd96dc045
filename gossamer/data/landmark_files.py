"""Landmarks as the 300-W challenge publishes them: a `.pts` file beside each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.data.arrays import EXAMPLES, SPLIT_SEED
from gossamer.data.batches import BATCH, Batches, Normalisation, largest_batch
from gossamer.data.images import decode_image, each, image_header, large_images, refuse_broken
from gossamer.detection.landmarks import LandmarkError, landmark_loss
from gossamer.errors import BadInput, CorruptFile, first_line

SUFFIXES = (".jpg", ".jpeg", ".png")
SIDE = 128  # pixels of a face
ROOM = 1.5  # times the longer side of the box around the landmarks
EYES = {68: (36, 45), 98: (60, 72)}  # the outer corners of the eyes, by how many landmarks a face has
VALIDATION = 0.1  # of the training faces


@dataclass(frozen=True, kw_only=True)
class FaceImage:
    """An image file with the landmarks of a face. sides: height and width. points: shape (L, 2), in its pixels."""

    path: Path
    sides: tuple[int, int]
    points: Tensor


def read_points(path: Path) -> Tensor:
    """The landmarks of a `.pts` file.

    Args:
        path: of the file.

    Returns:
        float32, shape (L, 2), x and y in pixels from 0; the file counts from 1.

    Raises:
        CorruptFile: it is no such file, or has other than as many points as it says.

    Source: Sagonas et al. 2013, 300 Faces in-the-Wild Challenge.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {name.strip(): value for name, _, value in (line.partition(":") for line in lines[: lines.index("{")])}
        rows = [[float(x) for x in line.split()] for line in lines[lines.index("{") + 1 : lines.index("}")]]
        count = int(known["n_points"])
    except (ValueError, KeyError, OSError) as error:
        raise CorruptFile(
            f"{path} is no file of landmarks with n_points and a list in braces: {first_line(error)}"
        ) from error
    if len(rows) != count or any(len(row) != 2 or not all(map(math.isfinite, row)) for row in rows):
        raise CorruptFile(f"{path} says that it has {count} points of two numbers; it has {len(rows)} lines")
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2) - 1


def faces_of(folder: Path) -> list[FaceImage]:
    """All images below a folder with a `.pts` file of the same name beside them, in the order of their paths.

    Raises CorruptFile where an image is missing or cannot be read, or where faces have different numbers of landmarks.
    """
    files = sorted(folder.rglob("*.pts"))
    images = [next((p for s in SUFFIXES if (p := file.with_suffix(s)).is_file()), None) for file in files]
    missing = [file.name for file, image in zip(files, images) if image is None]
    if missing:
        raise CorruptFile(f"{folder}: {len(missing)} files of landmarks have no image beside them: {missing[0]}")
    there = [image for image in images if image is not None]
    sides = [(height, width) for _, (width, height) in refuse_broken(there, image_header)]
    found = [FaceImage(path=p, sides=s, points=read_points(file)) for p, s, file in zip(there, sides, files)]
    counts = sorted({len(one.points) for one in found})
    if len(counts) > 1:
        odd = next(one.path.name for one in found if len(one.points) != len(found[0].points))
        raise CorruptFile(f"{folder}: faces have {counts} landmarks; {odd} has other than {found[0].path.name}")
    for one in found:
        if float((one.points.amax(0) - one.points.amin(0)).prod()) <= 0:
            raise CorruptFile(f"{one.path.with_suffix('.pts')}: its landmarks lie on a line")
    return found


def square_around(points: Tensor) -> tuple[float, float, float]:
    """Left, top and side of the square in which a face is looked at, in pixels of its image.

    Example:
        >>> square_around(torch.tensor([[10.0, 10.0], [30.0, 20.0]]))
        (5.0, 0.0, 30.0)
    """
    low, high = points.amin(0), points.amax(0)
    side = ROOM * float((high - low).max())
    left, top = ((low + high) / 2 - side / 2).tolist()
    return left, top, side


class FaceCrops:
    """Squares around faces, read when they are asked for.

    Args:
        faces: image files with landmarks.
        form: what they are read as; its sides are equal.
    """

    def __init__(self, faces: Sequence[FaceImage], form: Preprocessing) -> None:
        self.faces, self.form = list(faces), form
        self.shape = (len(self.faces), form.channels, *form.sides)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        wanted = {self.faces[i].path: self.faces[i] for i in index.tolist()}
        with large_images():
            read = dict(zip(wanted, each(list(wanted), lambda path, most: self._read(wanted[path], most))))
        return torch.stack([read[self.faces[i].path] for i in index.tolist()])

    def _read(self, face: FaceImage, most: float) -> Tensor:
        whole = decode_image(face.path, replace(self.form, size=face.sides[0], width=face.sides[1], crop=None), most)
        left, top, side = (round(x) for x in square_around(face.points))
        right, bottom = left + side, top + side
        beside = (max(0, -left), max(0, right - face.sides[1]), max(0, -top), max(0, bottom - face.sides[0]))
        inside = whole[:, max(0, top) : bottom, max(0, left) : right].float()
        padded = F.pad(inside, beside)[None]
        scaled = F.interpolate(padded, self.form.sides, mode="bilinear", antialias=True)[0]
        return scaled.round().clamp(0, 255).to(torch.uint8)

    def points(self) -> Tensor:
        """The landmarks of all faces in pixels of their squares, shape (N, L, 2)."""
        rows = []
        for face in self.faces:
            left, top, side = (round(x) for x in square_around(face.points))
            rows.append((face.points - torch.tensor([left, top])) * (self.form.sides[0] / side))
        return torch.stack(rows)


def landmark_task(
    folder: Path, *, size: int | None = None, calibration: int = 512, batch_size: int | None = None, seed: int = 0
) -> Task | None:
    """A task from a folder as 300-W publishes its parts; None where it has no `.pts` files.

    Test images are those below a folder whose name has "test" in it. Errors are divided by the distance of the outer
    corners of the eyes where faces have 68 or 98 landmarks, else by the root of the area around all landmarks.

    Args:
        folder: with images and landmarks, also in folders below it.
        size: side of the square that a face is scaled to, in pixels; None: 128.
        calibration: training faces without landmarks.
        batch_size: of a training step; None: 128, fewer where images are large.
        seed: of the order.

    Returns:
        The task. Outputs are x and y of each landmark by turns, in pixels of the square.

    Raises:
        BadInput: there are fewer than two training faces.
        CorruptFile: a file cannot be used.
    """
    faces = faces_of(folder)
    if not faces:
        return None
    held_out = [any("test" in part.lower() for part in f.path.relative_to(folder).parts[:-1]) for f in faces]
    test = [one for one, out in zip(faces, held_out) if out]
    train = [one for one, out in zip(faces, held_out) if not out]
    if len(train) < 2:
        raise BadInput(f"{folder}: {len(train)} training faces are too few; two do")
    side = SIDE if size is None else size
    form = Preprocessing(size=side, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    cut = max(1, round(VALIDATION * len(train)))
    crops = FaceCrops(train, form)
    points, most = crops.points(), min(batch_size or BATCH, largest_batch(crops.shape))
    norm = Normalisation(mean=form.mean, std=form.std)

    def batches(index: Tensor, labels: Tensor | None = points, *, training: bool = False) -> Batches:
        few = min(most, len(index))
        return Batches(
            crops,
            labels,
            index=index,
            batch_size=few,
            normalisation=norm,
            seed=seed,
            shuffle=training,
            drop_last=training,
        )

    validation = batches(order[:cut].sort().values)
    held = FaceCrops(test, form)
    return Task(
        name=folder.resolve().name,
        train=batches(order[cut:].sort().values, training=True),
        validation=validation,
        test=Batches(held, held.points(), batch_size=min(most, len(test)), normalisation=norm) if test else None,
        calibration=batches(order[cut:][:calibration], None),
        example_inputs=(next(iter(validation))[0][:EXAMPLES],),
        loss=landmark_loss,
        metric=LandmarkError(between=EYES.get(points.shape[1])),
        preprocessing=form,
    )
