"""How long one batch takes, several networks side by side."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.core.batches import as_inputs
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import Record
from gossamer.core.runner import Runner
from gossamer.errors import BadInput

WIDE = 0.25  # of the median


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one batch in milliseconds, with all conditions.

    Attributes:
        median_ms: of the runs.
        q1_ms: lower quartile.
        q3_ms: upper quartile.
        min_ms: the fastest run.
        runs: how many were timed.
        runtime: what ran.
        version: of the runtime.
        device: where.
        threads: of one call.
        batch: samples of one call.
        dtype: "float32", "int8" or "bfloat16".

    Example:
        >>> import torch, gossamer
        >>> runner = gossamer.runtime.open_runner("torch", torch.nn.Linear(3, 2))
        >>> found = latency({"float": runner}, (torch.ones(5, 3),), repeats=5)["float"]
        >>> found.batch, found.runtime, found.min_ms <= found.median_ms <= found.q3_ms
        (5, 'torch', True)
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    runs: int
    runtime: str
    version: str
    device: str
    threads: int
    batch: int
    dtype: str

    @property
    def unsteady(self) -> bool:
        """Whether the quartiles are so far apart that something else ran on the machine."""
        return self.scatter > WIDE

    @property
    def scatter(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.q3_ms - self.q1_ms) / self.median_ms

    def to_record(self, subject: str, **conditions: Any) -> Record:
        """As a measured row; low and high are the quartiles."""
        return Record(
            subject=subject,
            what="latency",
            value=self.median_ms,
            unit="ms",
            low=self.q1_ms,
            high=self.q3_ms,
            n=self.runs,
            conditions={
                "interval": "quartiles",
                "min_ms": self.min_ms,
                "runtime": self.runtime,
                "version": self.version,
                "device": self.device,
                "threads": self.threads,
                "batch": self.batch,
                "dtype": self.dtype,
                **conditions,
            },
        )


@checked_arguments
def latency(
    runners: Mapping[str, Runner],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    repeats: int = 50,
    warmup: int = 10,
    seconds: float | None = None,
    seed: int = 0,
) -> dict[str, Latency]:
    """Median time of one batch for every runner, measured in one process and interleaved.

    Every round visits all runners in a new random order, so that whatever else the machine does hits all of them alike.
    A visit is one untimed run, which brings the runner's own memory back into the caches and lets the threads of the
    one before it go to sleep, and one timed run.

    Args:
        runners: by label.
        inputs: one batch, a tensor or a tuple of them.
        repeats: rounds.
        warmup: untimed runs of each runner before the first round.
        seconds: rounds end early, after at least 5, when so much time passed; None: never.
        seed: of the order.

    Returns:
        The times, by label.

    Raises:
        BadInput: there is no runner, or no round.

    Example:
        >>> import torch, gossamer
        >>> small = gossamer.open_runner("torch", torch.nn.Linear(8, 4), threads=1)
        >>> large = gossamer.open_runner("torch", torch.nn.Linear(8, 4), threads=1)
        >>> times = latency({"small": small, "large": large}, (torch.ones(2, 8),), repeats=5)
        >>> times["small"].runs, times["small"].batch
        (5, 2)
    """
    if not isinstance(runners, Mapping) or not all(isinstance(runner, Runner) for runner in runners.values()):
        raise BadInput('latency compares runners by name: {"small": open_runner("torch", model)}')
    if not runners or repeats < 1:
        raise BadInput("latency needs at least one runner and repeats >= 1")
    inputs = as_inputs(inputs, "latency")
    prepared = {label: runner.prepare(inputs) for label, runner in runners.items()}
    for label, runner in runners.items():
        for _ in range(max(1, warmup)):
            runner.raw(prepared[label])
    times: dict[str, list[float]] = {label: [] for label in runners}
    order, shuffle = list(runners), random.Random(seed)
    end = time.perf_counter() + seconds if seconds is not None else float("inf")
    for done in range(repeats):
        if done >= 5 and time.perf_counter() > end:
            break
        shuffle.shuffle(order)
        for label in order:
            run, ready = runners[label].raw, prepared[label]
            run(ready)
            start = time.perf_counter()
            run(ready)
            times[label].append(1000 * (time.perf_counter() - start))
    return {label: summary(runner, times[label], batch=len(inputs[0])) for label, runner in runners.items()}


def steady_latency(
    runners: Mapping[str, Runner], inputs: Tensor | tuple[Tensor, ...], *, tries: int = 3, **how: Any
) -> dict[str, Latency]:
    """As `latency`, measured again where something else ran on the machine; the steadiest of the measurements counts,
    for all runners together.

    Args:
        runners: by label.
        inputs: one batch.
        tries: measurements, at most.
        how: options of `latency`.

    Returns:
        The times of one measurement, by label.

    Example:
        >>> import torch, gossamer
        >>> runner = gossamer.runtime.open_runner("torch", torch.nn.Linear(3, 2))
        >>> list(steady_latency({"float": runner}, (torch.ones(5, 3),), tries=2, repeats=5))
        ['float']
    """
    found: list[dict[str, Latency]] = []
    while len(found) < tries and (not found or any(one.unsteady for one in found[-1].values())):
        found.append(latency(runners, inputs, **how))
    return min(found, key=lambda times: max(one.scatter for one in times.values()))


def summary(runner: Runner, times_ms: list[float], *, batch: int) -> Latency:
    """Median and quartiles of the times of a runner."""
    q1, median, q3 = np.percentile(times_ms, (25, 50, 75))
    return Latency(
        median_ms=float(median),
        q1_ms=float(q1),
        q3_ms=float(q3),
        min_ms=min(times_ms),
        runs=len(times_ms),
        runtime=runner.runtime,
        version=runner.version,
        device=runner.device,
        threads=runner.threads,
        batch=batch,
        dtype=runner.precision,
    )
