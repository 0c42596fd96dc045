"""What a document says of detectors besides their score: curves, parts of the score, and detections in examples."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PrecisionCurve:
    """Precision, percent, at equally spaced recalls from 0 to 1: the mean over classes at one overlap."""

    subject: str
    overlap: float
    precision: list[float]


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """A box in an example. corners: left, top, right, bottom, as parts of the image's sides. score: None of an object.
    outcome: of a detection "right", "wrong" or "ignored"; of an object "found" or "missed"."""

    corners: list[float]
    label: str
    outcome: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class DetectedImage:
    """One image, as a PNG in base64, with its objects and with what each network found, by subject."""

    place: int
    image: str
    drawn: dict[str, list[DrawnBox]]

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "DetectedImage":
        """From JSON values."""
        drawn = {subject: [DrawnBox(**box) for box in boxes] for subject, boxes in raw["drawn"].items()}
        return cls(**raw | {"drawn": drawn})


@dataclass(frozen=True, kw_only=True)
class DetectorRows:
    """Detectors on the data that results are reported on.

    numbers: scores by name and subject, percent, None where there is no object to find. shown_from: detections with a
    lower score are not drawn.
    """

    numbers: dict[str, dict[str, float | None]]
    curves: list[PrecisionCurve] = field(default_factory=list)
    images: list[DetectedImage] = field(default_factory=list)
    shown_from: float = 0.3

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "DetectorRows":
        """From JSON values."""
        curves = [PrecisionCurve(**one) for one in raw["curves"]]
        return cls(**raw | {"curves": curves, "images": [DetectedImage.parse(one) for one in raw["images"]]})
