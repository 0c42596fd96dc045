"""What the user can afford to lose and needs to gain."""

import math
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any, Literal, get_args

from gossamer.core.processors import available, usual_threads
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, unknown

RuntimeName = Literal["torch", "torch.compile", "onnxruntime", "openvino", "binary"]
NO_BUDGET = math.inf  # points
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)
NUMBERS = (
    *("max_drop", "speedup", "compression_ratio", "latency_ms", "macs", "params", "file_bytes"),
    *("threads", "batch", "time_budget"),
)
FROM_MODULES = ("torch", "torch.compile", "binary")  # run a module as it is, its real numbers in float32


@dataclass(frozen=True, kw_only=True, repr=False)
class Goal(KnownArguments):
    """What to gain and what may be lost. Where nothing is to be gained (`gains` is empty) it judges what a recipe or a
    teacher made: by `max_drop`, measured under `runtime`, `threads` and `batch`.

    Args:
        max_drop: points of the task's metric that may be lost on validation data.
        speedup: latency of the float32 original over latency of the result, both on `runtime`, same batch and threads.
        latency_ms: median latency of one batch on `runtime`.
        macs: multiply-adds of one sample.
        params: parameters.
        file_bytes: size of the compact file (`model.gsr`).
        compression_ratio: bytes of the original in float32 over bytes of the compact file.
        runtime: "onnxruntime", "openvino", "torch", "torch.compile" or "binary".
        threads: of one call; by default as many as the processor has cores for this process, at most 2.
        batch: samples of one call.
        time_budget: minutes for the job itself: where nobody gives the epochs of its trainings, these are as long as
            fits; no further attempt starts that would take longer. None: no limit.
        device_profile: JSON of `bench_on_device.py`. Times are then those of that device, from its profile, and
            `runtime` is only where networks are run.

    Example:
        >>> Goal(max_drop=0.5, speedup=4).gains
        {'speedup': 4}
    """

    max_drop: float = 0.5
    speedup: float | None = None
    latency_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    file_bytes: int | None = None
    compression_ratio: float | None = None
    runtime: RuntimeName = "onnxruntime"
    threads: int = field(default_factory=usual_threads)
    batch: int = 64
    time_budget: float | None = None
    device_profile: str | None = None

    def __post_init__(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise self._bad(name, "must be a number")
        if self.runtime not in RUNTIMES:
            raise unknown("runtime", self.runtime, RUNTIMES)
        if not self.max_drop >= 0:  # NaN is wrong, too
            raise self._bad("max_drop", "must be at least 0 points")
        if self.device_profile is not None and self.runtime != "onnxruntime":
            raise BadInput(
                f"runtime = {self.runtime}: profiles of devices are of onnxruntime",
                shell=f"--runtime {self.runtime}: profiles of devices are of onnxruntime",
            )
        for name in ("speedup", "compression_ratio"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise self._bad(name, "must be at least 1")
        for name in ("latency_ms", "macs", "params", "file_bytes", "threads", "batch", "time_budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise self._bad(name, "must be greater than 0")

    def _bad(self, name: str, rule: str) -> BadInput:
        value = getattr(self, name)
        return BadInput(f"{name} = {value}: {rule}", shell=f"--{name.replace('_', '-')} {value}: {rule}")

    @property
    def judges(self) -> bool:
        """Whether a result can miss it; else it only says how to measure."""
        return bool(self.gains) or self.max_drop < NO_BUDGET

    def __repr__(self) -> str:
        """What was asked for: all but what is None."""
        shown = {name: value for name, value in asdict(self).items() if value is not None}
        return f"Goal({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def summary(self) -> str:
        """In words, one line for each thing asked for.

        Example:
            >>> print(Goal(max_drop=0.5, speedup=4, threads=2).summary())
            at most 0.5 points lost on validation data
            speedup: at least 4
            measured on onnxruntime, 2 threads, batch 64
        """
        lost = "any loss" if self.max_drop == NO_BUDGET else f"at most {self.max_drop:g} points lost on validation data"
        gains = [
            f"{n.replace('_', ' ')}: at {'least' if n in AT_LEAST else 'most'} {x:,g}" for n, x in self.gains.items()
        ]
        return "\n".join([lost, *gains, f"measured on {self.runtime}, {self.threads} threads, batch {self.batch}"])

    def row(self) -> dict[str, Any]:
        """As JSON values; max_drop None where nothing limits it."""
        return asdict(self) | {
            "runtime": self.timed_on,
            "max_drop": self.max_drop if self.max_drop < NO_BUDGET else None,
        }

    def to_plan(self) -> "Goal":
        """The goal itself, which asks for something that can be planned."""
        if not self.gains:
            what = "a goal needs something to gain: give at least one of "
            options = ", ".join(f"--{name.replace('_', '-')}" for name in GAINS)
            raise BadInput(what + ", ".join(GAINS), shell=what + options)
        return self

    def here(self) -> "Goal":
        """The goal with no more threads than this process has cores: more would only measure how they disturb each
        other."""
        return replace(self, threads=min(self.threads, available()))

    @property
    def timed_on(self) -> str:
        """What latencies count of: the runtime here, or the device of the profile."""
        return self.runtime if self.device_profile is None else PROFILED

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


PROFILED = "the profiled device"
UNASKED = Goal(max_drop=NO_BUDGET)  # judges nothing, measures as usual
TIME = ("speedup", "latency_ms")
AT_LEAST = ("speedup", "compression_ratio")
SIZE = ("file_bytes", "compression_ratio")
GAINS = (*TIME, "macs", "params", *SIZE)
