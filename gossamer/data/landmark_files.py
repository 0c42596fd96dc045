"""Tasks from landmarks: those of 300-W, a `.pts` file beside each image, of AFLW, and of COCO."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress
from gossamer.core.task import Task
from gossamer.data.arrays import EXAMPLES, SPLIT_SEED
from gossamer.data.batches import BATCH, Batches, Normalisation, largest_batch
from gossamer.data.box_files import Faulty
from gossamer.data.images import decode_image, each, large_images
from gossamer.data.keypoint_files import DATABASE, FaceImage, keypoint_files, read_aflw, read_keypoints, read_pts
from gossamer.detection.landmarks import KeypointRecall, LandmarkError, landmark_loss
from gossamer.errors import BadInput

SIDE = 128  # pixels of a face
ROOM = 1.5  # times the longer side of the box around the landmarks
EYES = {68: (36, 45), 98: (60, 72)}  # the outer corners of the eyes, by how many landmarks a face has
VALIDATION = 0.1  # of the training images
TEST = 0.1  # of the images of a data set that has no split of its own


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
        wanted = list(dict.fromkeys(index.tolist()))
        with large_images():
            read = dict(zip(wanted, each(wanted, lambda number, most: self._read(self.faces[number], most))))
        return torch.stack([read[i] for i in index.tolist()])

    def _read(self, face: FaceImage, most: float) -> Tensor:
        whole = decode_image(face.path, replace(self.form, size=face.sides[0], width=face.sides[1], crop=None), most)
        left, top, side = (round(x) for x in square_around(face.area()))
        right, bottom = left + side, top + side
        beside = (max(0, -left), max(0, right - face.sides[1]), max(0, -top), max(0, bottom - face.sides[0]))
        inside = whole[:, max(0, top) : bottom, max(0, left) : right].float()
        padded = F.pad(inside, beside)[None]
        scaled = F.interpolate(padded, self.form.sides, mode="bilinear", antialias=True)[0]
        return scaled.round().clamp(0, 255).to(torch.uint8)

    def targets(self) -> "LandmarkTargets":
        """The landmarks of all faces in pixels of their squares."""
        rows, lengths = [], []
        for face in self.faces:
            left, top, side = (round(x) for x in square_around(face.area()))
            scale = self.form.sides[0] / side
            rows.append((face.points - torch.tensor([left, top])) * scale)
            lengths += [face.length * scale] if face.length is not None else []
        return LandmarkTargets(torch.stack(rows), torch.tensor(lengths) if lengths else None)


@dataclass(frozen=True)
class LandmarkTargets:
    """Landmarks (N, L, 2) of all faces, and lengths (N,) where these are annotated: `targets[index]` is what a batch
    has, as `landmark_errors` takes it."""

    points: Tensor
    lengths: Tensor | None

    def __getitem__(self, index: Tensor) -> Tensor | dict[str, Tensor]:
        points = self.points[index]
        return points if self.lengths is None else {"points": points, "lengths": self.lengths[index]}


@dataclass(frozen=True, kw_only=True)
class _Splits:
    train: list[FaceImage]
    validation: list[FaceImage] | None = None
    test: list[FaceImage] | None = None
    said: str = ""


def _splits(folder: Path, faulty: Faulty) -> _Splits | None:
    """The faces of a folder; None where it has no landmarks of a known format."""
    if files := keypoint_files(folder):
        read = {split: read_keypoints(*both, faulty) for split, both in files.items()}
        others = {split: read[split][0] for split in ("validation", "test") if split in read}
        return _Splits(train=read["train"][0], said="; ".join(said for _, said in read.values() if said), **others)
    if any((place / DATABASE).is_file() for place in (folder, folder / "data")):
        faces, said = read_aflw(folder, faulty)
        train, test = _apart(faces, TEST)
        return _Splits(train=train, test=test, said=said)
    faces = read_pts(folder)
    out = [any("test" in part.lower() for part in f.path.relative_to(folder).parts[:-1]) for f in faces]
    test = [one for one, held in zip(faces, out) if held]
    return _Splits(train=[f for f, held in zip(faces, out) if not held], test=test or None) if faces else None


def _apart(faces: Sequence[FaceImage], part: float) -> tuple[list[FaceImage], list[FaceImage]]:
    """Faces without and in a random part of the images: those of one image stay together."""
    images = sorted({face.path for face in faces})
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    held = {images[place] for place in order[: max(1, round(part * len(images)))]}
    return [f for f in faces if f.path not in held], [f for f in faces if f.path in held]


def landmark_task(
    folder: Path,
    *,
    size: int | None = None,
    calibration: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    faulty: Faulty = "refuse",
    progress: Progress | None = None,
) -> Task | None:
    """A task from a folder with landmarks; None where it has none.

    It is one as 300-W publishes its parts, with a `.pts` file beside each image (test images are those below a folder
    whose name has "test" in it); of AFLW, with `aflw.sqlite` (a tenth of the images is for test); or of COCO, with
    `annotations/person_keypoints_train2017.json` and no file of instances beside it.

    Errors are divided by the distance of the outer corners of the eyes where faces have 68 or 98 landmarks, by the root
    of the annotated area where there is one, else by the root of the area around all landmarks. The metric of COCO's
    key points is their average recall.

    Args:
        folder: of the data set.
        size: side of the square that an object is scaled to, in pixels; None: 128.
        calibration: training faces without landmarks.
        batch_size: of a training step; None: 128, fewer where images are large.
        seed: of the order.
        faulty: what to do with faulty annotations of AFLW and COCO.
        progress: is told what was left out.

    Returns:
        The task. Outputs are x and y of each landmark by turns, in pixels of the square.

    Raises:
        BadInput: there are fewer than two training faces.
        CorruptFile: a file cannot be used.
    """
    splits = _splits(folder, faulty)
    if splits is None:
        return None
    if splits.said and progress is not None:
        progress.say(splits.said)
    if len(splits.train) < 2:
        raise BadInput(f"{folder}: {len(splits.train)} training faces are too few; two do")
    train, validation = (
        _apart(splits.train, VALIDATION) if splits.validation is None else (splits.train, splits.validation)
    )
    side = SIDE if size is None else size
    form = Preprocessing(size=side, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    norm = Normalisation(mean=form.mean, std=form.std)

    def batches(faces: Sequence[FaceImage], *, labelled: bool = True, training: bool = False) -> Batches:
        crops = FaceCrops(faces, form)
        return Batches(
            crops,
            crops.targets() if labelled else None,
            batch_size=min(batch_size or BATCH, largest_batch(crops.shape), len(faces)),
            normalisation=norm,
            seed=seed,
            shuffle=training,
            drop_last=training,
        )

    judged = batches(validation)
    keypoints = bool(keypoint_files(folder))
    between = None if keypoints else EYES.get(len(train[0].points))
    return Task(
        name=folder.resolve().name,
        train=batches(train, training=True),
        validation=judged,
        test=batches(splits.test) if splits.test else None,
        calibration=batches(train[:calibration], labelled=False),
        example_inputs=(next(iter(judged))[0][:EXAMPLES],),
        loss=landmark_loss,
        metric=KeypointRecall() if keypoints else LandmarkError(between=between),
        preprocessing=form,
    )
