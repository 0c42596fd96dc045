"""What the user can afford to lose and needs to gain."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from gossamer.errors import BadInput, unknown

RuntimeName = Literal["torch", "torch.compile", "onnxruntime", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`max_drop` in points of the task's measure, and at least one of the gains.

    speedup: latency of the float32 original over latency of the result, both on `runtime`, same batch and threads.
    latency_ms: median latency of one batch on `runtime`. macs: multiply-adds of one sample. params: parameters.
    file_bytes: size of the compact file (`model.gsr`). compression_ratio: bytes of the original in float32 over bytes
    of the compact file. time_budget: minutes for the job itself: no further attempt starts that would take longer.
    """

    max_drop: float = 0.5
    speedup: float | None = None
    latency_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    file_bytes: int | None = None
    compression_ratio: float | None = None
    runtime: RuntimeName = "onnxruntime"
    threads: int = 2
    batch: int = 64
    time_budget: float | None = None

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise unknown("runtime", self.runtime, RUNTIMES)
        if not 0 <= self.max_drop <= 100:
            raise BadInput(f"max_drop = {self.max_drop}: must be between 0 and 100 points")
        if self.speedup is not None and self.speedup < 1:
            raise BadInput(f"speedup = {self.speedup}: must be at least 1")
        if self.compression_ratio is not None and self.compression_ratio < 1:
            raise BadInput(f"compression_ratio = {self.compression_ratio}: must be at least 1")
        for name in ("latency_ms", "macs", "params", "file_bytes", "threads", "batch", "time_budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BadInput(f"{name} = {value}: must be greater than 0")
        if not self.gains:
            names = ", ".join(f.name for f in fields(self) if f.name in GAINS)
            raise BadInput(f"a goal needs something to gain: give at least one of {names}")

    @property
    def gains(self) -> dict[str, float]:
        """What was asked for, by name."""
        return {name: getattr(self, name) for name in GAINS if getattr(self, name) is not None}

    @property
    def time_gains(self) -> dict[str, float]:
        """What was asked for in time."""
        return {name: asked for name, asked in self.gains.items() if name in TIME}

    @property
    def size_gains(self) -> dict[str, float]:
        """What was asked for in bytes of the compact file."""
        return {name: asked for name, asked in self.gains.items() if name in SIZE}

    @property
    def shape_gains(self) -> dict[str, float]:
        """What needs other shapes of layers."""
        return {name: asked for name, asked in self.gains.items() if name not in SIZE}

    def file_limit(self, dense_bytes: int) -> float:
        """How large the compact file may be; dense_bytes: of the original in float32."""
        limits = [self.file_bytes] if self.file_bytes else []
        return min([*limits, *([dense_bytes / self.compression_ratio] if self.compression_ratio else [])])


TIME = ("speedup", "latency_ms")
SIZE = ("file_bytes", "compression_ratio")
GAINS = (*TIME, "macs", "params", *SIZE)
