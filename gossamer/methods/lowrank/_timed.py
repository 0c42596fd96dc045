"""Rank selection by time: chains of some ranks are timed next to their layer, on the runtime of the job."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, layer_inputs
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.errors import require
from gossamer.methods.lowrank._ranks import Options

# Ranks that are timed: shares of the largest of every mode, rounded to what kernels like.
SHARES = (0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
MULTIPLE = 8


def timed_rows(options: Options) -> list[int]:
    """Return the rows of the options that are worth timing: at the shares, as near as there are rows that pay."""
    most = options.ranks.amax(0).double()
    rows: dict[int, None] = {}
    for share in SHARES:
        rounded = MULTIPLE * (share * most / MULTIPLE).round()
        wanted = rounded.where(rounded > 0, share * most)
        off = ((options.ranks - wanted) / most).abs().sum(1).where(options.paying(), torch.inf)
        rows.setdefault(int(off.argmin()))
    return list(rows)


def with_times(
    model: nn.Module,
    layers: Mapping[str, Layer],
    options: Mapping[str, Options],
    build: Callable[[Layer, Sequence[int]], nn.Module],
    task: Task,
    context: Context,
) -> dict[str, Options]:
    """Return the options that were timed, with their times and that of the layer.

    Args:
        model: the network.
        layers: the layers by name.
        options: their options.
        build: makes a chain of given ranks, with any weights.
        task: gives the example inputs.
        context: gives the goal's runtime, threads and batch.
    """
    picked = {name: timed_rows(o) for name, o in options.items()}
    groups = {
        name: [layers[name], *(build(layers[name], options[name].ranks[row].tolist()) for row in rows)]
        for name, rows in picked.items()
    }
    times = times_alone(model, groups, task, context)
    found = {}
    for name, rows in picked.items():
        o, (dense, *others) = options[name], times[name]
        columns = {field: getattr(o, field)[rows] for field in ("ranks", "macs", "params", "lost")}
        found[name] = replace(o, **columns, time=torch.tensor(others), dense_time=dense)
    return found


@torch.no_grad()
def times_alone(
    model: nn.Module, groups: Mapping[str, Sequence[nn.Module]], task: Task, context: Context
) -> dict[str, list[float]]:
    """Return the milliseconds of modules that may replace a layer, in float32. Equal layers are timed once."""
    goal = replace(context.goal or Goal(speedup=1), speedup=1)
    with evaluating(model), layer_inputs(model, list(groups)) as seen:
        model(*place(model, (task.example_inputs, None)))
    alike: dict[str, list[str]] = {}
    for name, modules in groups.items():
        alike.setdefault(f"{modules} {tuple(seen[name][0].shape[1:])}", []).append(name)
    firsts = [names[0] for names in alike.values()]
    inputs: list[Tensor] = [seen[name][0] for name in firsts]
    own = [list(groups[name]) for name in firsts]
    whole = nn.ModuleList(nn.ModuleList(modules) for modules in own)
    with tempfile.TemporaryDirectory() as folder, context.progress.busy("timing layers alone"), evaluating(whole):
        costs = require("gossamer.ptq.isolated_layers").isolated_costs(own, inputs, goal, Path(folder), int8=False)
    return {name: cost for names, cost in zip(alike.values(), costs) for name in names}


def slower(model: nn.Module, chains: Mapping[str, nn.Module], task: Task, context: Context) -> dict[str, float]:
    """Return the chains that take longer than their layers, with the ratio of the times."""
    groups = {name: [model.get_submodule(name), chain] for name, chain in chains.items()}
    times = times_alone(model, groups, task, context)
    return {name: after / before for name, (before, after) in times.items() if after > before}
