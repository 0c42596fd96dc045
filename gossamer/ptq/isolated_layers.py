"""Layers alone: what many small modules cost on their inputs, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.utils import Extractor
from torch import Tensor, nn

from gossamer.core.goal import FROM_MODULES, Goal
from gossamer.core.runner import Runner
from gossamer.measure.latency import latency
from gossamer.modules.cost import layer_costs
from gossamer.ptq import activation_ranges, qdq
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.runners import open_runner

SAMPLES = 4  # of an input, for the graph and for ranges
LARGEST = 2**25  # numbers that a layer reads or writes while it is timed; the runtimes keep several such maps


class Many(nn.Module):
    """All modules of all groups; a group shares one input."""

    def __init__(self, groups: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.ModuleList(group) for group in groups)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x) for x, group in zip(inputs, self.groups) for module in group)  # type: ignore[attr-defined]


def isolated_costs(
    groups: Sequence[Sequence[nn.Module]], inputs: Sequence[Tensor], goal: Goal, folder: Path, *, int8: bool
) -> list[list[float]]:
    """What every module costs in the unit of the goal: milliseconds of the fastest run on its runtime where it asks for
    time, else parameters or multiply-adds. inputs: of each group, any samples; they are repeated to the goal's batch,
    or to as much of it as is kept in memory with ease, whose time then counts in proportion.

    All are exported together, since an export takes seconds, and then taken apart.
    """
    if not goal.time_gains:
        by_size = set(goal.shape_gains) == {"params"}
        rows = [[layer_costs(module, (x[:1],)) for module in group] for group, x in zip(groups, inputs)]
        return [[float(sum(r.params if by_size else r.macs for r in one)) for one in group] for group in rows]
    found = []
    for group, sources, x in zip(groups, _sources(groups, inputs, goal, folder, int8=int8), inputs):
        precision = "int8" if int8 else "float32"
        runners: dict[str, Runner] = {
            str(n): open_runner(goal.runtime, source, threads=goal.threads, precision=precision)
            for n, source in enumerate(sources)
        }
        batch = min(goal.batch, max(1, LARGEST // _largest(group[0], x[:1])))
        times = latency(runners, (x[torch.arange(batch) % len(x)],), repeats=20, warmup=3, seconds=1)
        found.append([times[label].min_ms * goal.batch / batch for label in runners])
    return found


@torch.no_grad()
def _largest(module: nn.Module, sample: Tensor) -> int:
    """Numbers that a module reads or writes for one sample, whichever are more."""
    return max(sample.numel(), int(module(sample).numel()))


def _sources(
    groups: Sequence[Sequence[nn.Module]], inputs: Sequence[Tensor], goal: Goal, folder: Path, *, int8: bool
) -> list[list[Any]]:
    """What the runtime opens."""
    if goal.runtime in FROM_MODULES:
        return [list(group) for group in groups]
    small = tuple(x[torch.arange(SAMPLES) % len(x)] for x in inputs)
    path = export_onnx(Many(groups), small, folder / "alone.onnx")
    if int8:
        quantize_for_timing(path, folder / "alone.int8.onnx", small, threads=goal.threads)
        path = folder / "alone.int8.onnx"
    network = onnx.load(path)
    whole, outputs = Extractor(network), iter(network.graph.output)
    files = []
    for given, group in zip(network.graph.input, groups):
        for _ in group:
            name = next(outputs).name
            write_onnx(whole.extract_model([given.name], [name]), folder / f"alone.{name}.onnx")
            files.append(folder / f"alone.{name}.onnx")
    rest = iter(files)
    return [[next(rest) for _ in group] for group in groups]


def quantize_for_timing(source: Path, target: Path, inputs: tuple[Tensor, ...], *, threads: int) -> None:
    """An int8 network that is good for measuring time and size: min-max ranges from one batch."""
    network = onnx.load(source)
    batch = inputs[0] if len(inputs) == 1 else (inputs, None)
    seen = activation_ranges.observe(network, [batch], target.parent, threads=threads)
    write_onnx(
        qdq.quantize_graph(network, {name: activation_ranges.min_max(one) for name, one in seen.items()}), target
    )
