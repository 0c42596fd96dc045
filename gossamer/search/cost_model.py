"""What a network costs in the units of the goal, measured on the runtime of the goal."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.batches import Loader, inputs_and_target
from gossamer.core.copies import copy_network, parameter_count
from gossamer.core.goal import Goal
from gossamer.core.runner import Runner
from gossamer.core.task import Task
from gossamer.measure.latency import Latency, steady_latency
from gossamer.modules.cost import layer_costs
from gossamer.ptq.isolated_layers import quantize_for_timing
from gossamer.runtime.profiling import layer_times, times_of_nodes
from gossamer.runtime.runners import open_runner
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.device_profile import DeviceProfile, predicted_ms, profile_of
from gossamer.search.exports import Exports

ROUNDS, SECONDS = 24, 3  # of one timing, at most: where the machine is busy, it needs as many
RANGE_SAMPLES = 8  # that ranges are taken from: no time depends on them
SAFETY_MARGIN = 0.97  # of what the goal allows: the final measurement, at another moment, should still be inside
# The same, of times where no second training would mend it. Shapes are chosen by the ratio of the fastest runs, results
# judged by that of the medians: of one network on a shared machine 2.7 to 3.2, and 2.5 to 3.1.
CAREFUL_MARGIN = 0.88
SPOILED = 1.2  # times the cost ratio that was planned: more, and the times behind it, or the new ones, are wrong


@dataclass(frozen=True, kw_only=True, repr=False)
class CostEstimate:
    """Costs of one network. latency_ms: median; speedup: over the original, timed side by side (None: the goal does not
    ask for time). The ratios go by the fastest runs of both, because what else the machine does while a job plans must
    not choose the shape.

    cost_ratios: for every gain that the goal asks for, cost over what is allowed; all at most 1 where the goal is met.
    """

    macs: int
    params: int
    latency_ms: float | None
    speedup: float | None
    precision: str
    cost_ratios: Mapping[str, float]

    def __repr__(self) -> str:
        return f"CostEstimate({self.summary()}, {self.precision}, cost ratio {self.worst_ratio:.3g})"

    def summary(self) -> str:
        """`1.20 ms (2.4x), 0.42 M MACs, 3,210 parameters`."""
        parts = [f"{self.macs / 1e6:.2f} M MACs", f"{self.params:,} parameters"]
        if self.latency_ms is not None and self.speedup is not None:
            parts.insert(0, f"{self.latency_ms:.2f} ms ({self.speedup:.1f}x)")
        return ", ".join(parts)

    @property
    def worst_ratio(self) -> float:
        """The largest cost ratio; at most 1 where the goal is met."""
        return max(self.cost_ratios.values())


class CostModel:
    """Gives estimates. Deployed networks are timed with int8 weights and activations where the goal's runtime has
    them."""

    def __init__(
        self,
        original: nn.Module,
        task: Task,
        goal: Goal,
        store: CheckpointStore,
        folder: Path,
        *,
        int8: bool,
        exports: Exports | None = None,
    ) -> None:
        self.original, self.task, self.goal, self.store, self.int8 = original, task, goal, store, int8
        self.exports = exports or Exports(task)
        self.inputs = first_samples(task.validation, goal.batch)
        self.timed = bool(goal.time_gains)
        self.deployed = goal.runtime in ("onnxruntime", "openvino")
        self.profile = profile_of(goal) if self.timed else None
        self._reference: Runner | None = None
        self.remeasured = 0
        self._original: float | None = None
        self.folder = folder / "estimates"
        self.folder.mkdir(exist_ok=True)

    def __call__(self, key: str, build: Callable[[], nn.Module]) -> CostEstimate:
        """The estimate of a network; `key` names it in the store."""
        name = f"estimate {key}" + (f", measured again {self.remeasured}" if self.remeasured else "")
        return CostEstimate(**self.store.get_or_compute(name, lambda: asdict(self._estimate(build()))))

    def measure_again(self) -> None:
        """From now on, give new estimates for networks that have one: the machine was too busy for the old ones."""
        self.remeasured += 1

    def _estimate(self, model: nn.Module) -> CostEstimate:
        source, precision = self._deploy(model, "candidate") if self.timed else (None, "float32")
        return self._of(model, source, precision, shipped=False)

    def shipped(self, deployed: Path, model: nn.Module, precision: str, *, planned: float) -> CostEstimate:
        """The estimate of what will really be shipped, by medians as in the final table. Where it is far above what was
        planned, a busy moment may be the cause: it is timed twice, and the better counts.

        Args:
            deployed: the exported file.
            model: the network that is in it.
            precision: of the file.
            planned: the cost ratio that it should have.

        Returns:
            Its costs, measured now.
        """
        source = deployed if self.deployed else model
        found = self._of(model, source, precision, shipped=True)
        if not self.timed or found.worst_ratio <= SPOILED * planned:
            return found
        return min(found, self._of(model, source, precision, shipped=True), key=lambda one: one.worst_ratio)

    def _of(self, model: nn.Module, source: Any, precision: str, *, shipped: bool) -> CostEstimate:
        """shipped: whether the ratios go by medians, else by the fastest runs."""

        def typical(found: Latency) -> float:
            return found.median_ms if shipped else found.min_ms

        costs = layer_costs(model, self.task.example_inputs)
        macs, params = sum(c.macs for c in costs), parameter_count(model)
        median = speedup = asked = None
        if self.timed:
            if self.profile is not None:
                median = asked = self._predicted(self.profile, source)
                speedup = self._original_ms(self.profile) / asked
            else:
                runner = open_runner(self.goal.runtime, source, threads=self.goal.threads, precision=precision)
                times = self._time({"candidate": runner, "original": self.reference()}, tries=3 if shipped else 1)
                median, asked = times["candidate"].median_ms, typical(times["candidate"])
                speedup = typical(times["original"]) / asked
        costs_by_gain = {"macs": macs, "params": params, "latency_ms": asked}
        return CostEstimate(
            macs=macs,
            params=params,
            latency_ms=median,
            speedup=speedup,
            precision=precision,
            cost_ratios=cost_ratios(self.goal.shape_gains, speedup=speedup, **costs_by_gain),
        )

    def _predicted(self, profile: DeviceProfile, path: Path) -> float:
        return predicted_ms(profile, path, self.inputs, threads=self.goal.threads)

    def _original_ms(self, profile: DeviceProfile) -> float:
        """Of the original in float32, on the device of the profile."""
        if self._original is None:
            self._original = self._predicted(profile, self.exports.write(self.original, self.folder / "original.onnx"))
        return self._original

    def reference(self) -> Runner:
        """The original in float32 on the goal's runtime."""
        if self._reference is None:
            self._reference = open_runner(self.goal.runtime, self.reference_source(), threads=self.goal.threads)
        return self._reference

    def reference_source(self) -> Any:
        """The original as the goal's runtime opens it."""
        if not self.deployed:
            return self.original
        return self.exports.write(self.original, self.folder / "original.onnx")

    def layer_costs(self) -> dict[str, float]:
        """What each layer of the original costs in the unit of the goal: time on the runtime where it asks for
        time and the runtime can tell, else multiply-adds or parameters."""
        if self.timed and self.deployed:
            return dict(self.store.get_or_compute("layer times", self._layer_times))
        rows = layer_costs(self.original, self.task.example_inputs)
        by_size = set(self.goal.shape_gains) == {"params"}
        return {row.name: float(row.params if by_size else row.macs) for row in rows}

    def _layer_times(self) -> dict[str, float]:
        path, precision = self._deploy(self.original, "profiled")
        if self.profile is not None:
            return times_of_nodes(path, self.inputs, self.profile.node_ms, threads=self.goal.threads)
        return layer_times(
            self.goal.runtime, path, self.inputs, threads=self.goal.threads, precision=precision, repeats=10
        )

    def _deploy(self, model: nn.Module, name: str) -> tuple[Any, str]:
        """What the runtime opens, and its precision."""
        if not self.deployed:
            return copy_network(model).eval(), "float32"
        path = self.exports.write(model, self.folder / f"{name}.onnx")
        if not self.int8:
            return path, "float32"
        small = path.with_suffix(".int8.onnx")
        quantize_for_timing(path, small, tuple(x[:RANGE_SAMPLES] for x in self.inputs), threads=self.goal.threads)
        return small, "int8"

    def _time(self, runners: dict[str, Runner], *, tries: int) -> dict[str, Latency]:
        return steady_latency(runners, self.inputs, tries=tries, repeats=ROUNDS, warmup=3, seconds=SECONDS)


def cost_ratios(gains: Mapping[str, float], **costs: float | None) -> dict[str, float]:
    """For every gain asked for: cost over what is allowed (1 = just met)."""
    found = {}
    for gain, asked in gains.items():
        cost = costs[gain] or 0.0
        found[gain] = (asked / cost if cost else float("inf")) if gain == "speedup" else cost / asked
    return found


def first_samples(loader: Loader, batch: int) -> tuple[Tensor, ...]:
    """The first `batch` samples of a loader as one batch; they repeat where the loader has fewer."""
    parts: list[tuple[Tensor, ...]] = []
    have = 0
    for raw in loader:
        inputs, _ = inputs_and_target(raw)
        parts.append(inputs)
        have += len(inputs[0])
        if have >= batch:
            break
    columns = [torch.cat(column) for column in zip(*parts)]
    return tuple(column[torch.arange(batch) % len(column)] for column in columns)
