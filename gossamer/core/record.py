"""Measured rows. Reports and benchmarks read only these."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from gossamer.core.detector_rows import DetectorRows
from gossamer.core.edit_details import GroupPath, SwapRecord
from gossamer.core.folder import replacing
from gossamer.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number with its conditions.

    Args:
        subject: what was measured ("original", "result", "result int8").
        what: "score", "drop", "latency", "macs", "params", "file_bytes", "peak_memory", "agreement", "ece" or "nll"; a
            score is of the metric in `conditions`.
        value: the number.
        unit: of the number.
        low: lower end of an interval whose meaning is in `conditions` (95 % for scores, quartiles for latency).
        high: its upper end.
        n: samples or repeats.
        conditions: all that the number depends on.

    Example:
        >>> Record(subject="original", what="params", value=1000, unit="parameters").n is None
        True
    """

    subject: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


class EditKind(StrEnum):
    """The five ways in which a network is changed; there are no others. Documents hold the lower-case names.

    Attributes:
        RESIZE: coupled channels are cut or widened wherever they occur.
        SWAP: another module stands in the place of a module, or one is inserted.
        CONSTRAIN: a weight is held to a set while it trains: a mask, a codebook, a grid, signs.
        ASSIGN: weights get new values in closed form: reconstruction, folding, rounding, merging.
        TRAIN: weights are trained.

    Example:
        >>> EditKind("swap") is EditKind.SWAP, f"{EditKind.SWAP}"
        (True, 'swap')
    """

    RESIZE = "resize"
    SWAP = "swap"
    CONSTRAIN = "constrain"
    ASSIGN = "assign"
    TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of a network.

    Args:
        method: that did it.
        kind: of the five.
        target: the layer, group or network that was changed.
        before: the target before, in words.
        after: the target after, in words.
        proof: the largest relative difference between the outputs of the changed network and those of the original with
            the removed parts masked; None where training followed.
        note: what a reader should know.
        swapped: where one layer gave its place to others, what they are.
        path: where groups of weights became zero in a training, how.

    Example:
        >>> edit = Edit(
        ...     method="prune.channels", kind=EditKind.RESIZE, target="conv1", before="16 channels", after="8 channels"
        ... )
        >>> edit.kind.value
        'resize'
    """

    method: str
    kind: EditKind
    target: str
    before: str
    after: str
    proof: float | None = None
    note: str = ""
    swapped: SwapRecord | None = None
    path: GroupPath | None = None

    def __post_init__(self) -> None:
        if self.kind not in tuple(EditKind):
            raise unknown("kind of edit", str(self.kind), tuple(EditKind))
        object.__setattr__(self, "kind", EditKind(self.kind))  # documents hold the name

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Edit":
        """From JSON values."""
        swapped, path = raw.get("swapped"), raw.get("path")
        parsed = {
            "swapped": None if swapped is None else SwapRecord.parse(swapped),
            "path": None if path is None else GroupPath(**path),
        }
        return cls(**raw | parsed)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One network that the job tried; all points of the Pareto plot. score, in the unit of the metric, and drop
    are of the validation split. brief: whether it had only a few per cent of its training yet."""

    name: str
    score: float | None
    drop: float | None
    latency_ms: Mapping[str, float]
    macs: int
    params: int
    file_bytes: int | None
    accepted: bool
    note: str = ""
    brief: bool = False


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    versions = {}
    for name in ("gossamer", "torch", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old file or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old file or the new one. It has the
    permissions that the caller's umask leaves."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def to_json(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclass rows as plain JSON values."""
    return [json.loads(json.dumps(asdict(row))) for row in rows]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one weighted operation costs. macs: of one sample. time_ms: measured, None where it was not."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    params: int
    macs: int
    bytes: int
    time_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class FallbackStep:
    """One step of the int8 fallback sequence, as tried. score, in the unit of the metric, and drop are of the
    validation split."""

    name: str
    score: float
    drop: float
    accepted: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """One tensor of the compact file.

    dense_bytes: of the original's tensor of this name in float32, 0 where it has none. bytes: its part of the file.
    code_bits: of a fixed-length code for its distinct values. bits_per_weight: 8 * bytes / weights. entropy_bytes: the
    order-0 entropy of what is coded. values, counts: the distinct values in rising order and how often each occurs;
    histogram: of the original's tensor, in bins of equal width from low to high. These of large weights only.
    as_gaps: what the format of Deep Compression would take for it, the fields of `gaps.LayerBits` and `book`, how many
    values its codebook has; empty for vectors, and where weights have too many values.
    """

    name: str
    shape: list[int]
    coding: str
    weights: int
    dense_bytes: int
    bytes: float
    density: float
    code_bits: int
    bits_per_weight: float
    entropy_bytes: float
    values: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    histogram: list[int] = field(default_factory=list)
    as_gaps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a training went, epoch by epoch. score: on validation data, in the unit of the metric, None where it
    was not evaluated. seconds: of each epoch, its evaluation included."""

    name: str
    loss: list[float]
    score: list[float | None]
    seconds: list[float]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often a network is right when it is so sure: bins of equal width over the largest probability, on test."""

    subject: str
    samples: list[int]
    confidence: list[float]
    accuracy: list[float]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Samples of one class on test, and how many of them each network gets right, percent, by subject; of detectors
    objects and average precision."""

    name: str
    samples: int
    top1: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test image, as a PNG in base64, with what each network says and where it looks, by subject."""

    label: str
    image: str
    said: dict[str, str]
    maps: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What came of teaching a student.

    networks: what each subject of the records is, the teacher first. agreement: share of test samples on which two
    networks give the same class, percent, in the order of `networks`. layers: of the attention maps, by subject.
    """

    method: str
    networks: dict[str, str]
    curves: list[Curve] = field(default_factory=list)
    agreement: list[list[float]] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)
    reliability: list[Reliability] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Teaching":
        """From JSON values."""
        rows = {"curves": Curve, "classes": ClassRow, "reliability": Reliability, "examples": Example}
        return cls(**raw | {key: [row(**values) for values in raw[key]] for key, row in rows.items()})


@dataclass(kw_only=True)
class JobDocument:
    """All that a job found out, as it stands in `records.json`; what the report reads. why: why a goal was missed, and
    what is within reach."""

    command: str
    goal: dict[str, Any]
    task: dict[str, Any]
    met: bool
    missed: list[str]
    seconds: dict[str, float]
    environment: dict[str, str]
    records: list[Record]
    edits: list[Edit]
    states: list[Trial]
    layers_before: list[LayerCost]
    layers_after: list[LayerCost]
    int8_steps: list[FallbackStep]
    files: dict[str, int]
    stored: list[StoredRow] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)
    teaching: Teaching | None = None
    detectors: DetectorRows | None = None
    format: int = 1

    def dump(self) -> str:
        """JSON text, indented, keys in field order."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def parse(cls, text: str) -> "JobDocument":
        """The document of a JSON text."""
        raw: dict[str, Any] = json.loads(text)
        for key, row in _ROWS.items():
            raw[key] = [row(**values) for values in raw.get(key, [])]
        raw["edits"] = [Edit.parse(values) for values in raw.get("edits", [])]
        if raw.get("teaching") is not None:
            raw["teaching"] = Teaching.parse(raw["teaching"])
        if raw.get("detectors") is not None:
            raw["detectors"] = DetectorRows.parse(raw["detectors"])
        return cls(**raw)


_ROWS: dict[str, Any] = {
    "records": Record,
    "states": Trial,
    "layers_before": LayerCost,
    "layers_after": LayerCost,
    "int8_steps": FallbackStep,
    "stored": StoredRow,
    "curves": Curve,
    "classes": ClassRow,
}
