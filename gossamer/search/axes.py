"""Smaller shapes of a network: which steps lead to them, from a light cut to a heavy one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gossamer.core.context import Context
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task, loss_of
from gossamer.edits.swap import swap as with_modules
from gossamer.graph.groups import find_groups
from gossamer.methods._base import Method
from gossamer.methods.prune._criteria import element_scores
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.modules.blocks import RemovableBlock, is_plain, pixelwise, removable, remove_blocks
from gossamer.modules.cost import layer_costs
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.failures import FailureGuard
from gossamer.search.replacements import Replacement, together
from gossamer.search.widths import ranked_widths, uniform_widths
from gossamer.train import recalibrate

Steps = tuple[Method, ...]
RATIOS = 32  # of a cut in width that are told apart


@dataclass(frozen=True)
class SearchAxis:
    """Shapes by ratio: `steps(r)` for r in [0, 1]; a larger r never costs more. grid: the ratios that differ."""

    name: str
    grid: tuple[float, ...]
    steps: Callable[[float], Steps]


def apply_steps(model: nn.Module, steps: Sequence[Method], task: Task, context: Context) -> nn.Module:
    """The network after the steps."""
    for step in steps:
        model = step(model, task, context).model
    return model


def shape_only(steps: Steps) -> Steps:
    """Steps to the same shapes with as little fitting as they can do: for measuring what these cost."""
    return tuple(step.shape_only() for step in steps)


def block_order(
    model: nn.Module,
    task: Task,
    *,
    batches: int = 4,
    trials: FailureGuard | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Removable blocks or layers, the least missed first: by how much the training loss rises without each, per
    multiply-add saved. Batch norms are estimated again without a residual block, on the samples that give the loss; a
    plain layer leaves behind what the layer after it could take over, the pixelwise linear map that is nearest to it.
    What the network does not run without is left out."""
    progress = progress or Silent()
    trials = trials or FailureGuard(CheckpointStore(None, ""), progress)
    blocks = removable(model, task.example_inputs)
    costs = layer_costs(model, task.example_inputs)
    sample = [batch for batch, _ in zip(task.train, range(batches))]
    whole = _mean_loss(model, task, sample)
    maps = pixelwise(model, [block for block in blocks if is_plain(model, block)], task.train)
    rank = {}
    for block in progress.bar(blocks, label="what the network is without each block"):
        name = f"removing {block.name}"
        loss = trials(name, name, _loss_without, block, model, task, sample, maps)
        if loss is not None:
            saved = sum(cost.macs for cost in costs if f"{cost.name}.".startswith(f"{block.name}."))
            rank[block.name] = max(loss - whole, 0.0) / max(saved, 1)
    return sorted(rank, key=lambda name: rank[name])


def _loss_without(
    block: RemovableBlock, model: nn.Module, task: Task, sample: Sequence[object], maps: Mapping[str, nn.Module]
) -> float:
    without = remove_blocks(model, [block])
    if block.name in maps:
        without = with_modules(without, {block.name: maps[block.name]})
    else:
        recalibrate(without, sample)
    return _mean_loss(without, task, sample)


@torch.no_grad()
def _mean_loss(model: nn.Module, task: Task, sample: Sequence[object]) -> float:
    return sum(float(loss_of(task, model, batch)) for batch in sample) / len(sample)


def depth_axis(order: Sequence[str]) -> SearchAxis:
    """Remove more and more blocks."""

    def steps(ratio: float) -> Steps:
        count = round(ratio * len(order))
        return (BlockRemoval(names=tuple(sorted(order[:count]))),) if count else ()

    grid = tuple(k / len(order) for k in range(1, len(order) + 1))
    return SearchAxis("depth", grid, steps)


def swap_losses(
    model: nn.Module,
    task: Task,
    swaps: Mapping[str, Sequence[Replacement]],
    context: Context,
    *,
    batches: int = 1,
    trials: FailureGuard | None = None,
) -> dict[str, list[float]]:
    """How much the training loss rises by each swap alone, with as little fitting as it can do; at least 0, in the
    order of the swaps;
    infinite for what fails."""
    trials = trials or FailureGuard(CheckpointStore(None, ""), Silent())
    sample = [batch for batch, _ in zip(task.train, range(batches))]
    whole = _mean_loss(model, task, sample)
    rises: dict[str, list[float]] = {name: [] for name in swaps}
    moves = [swap for of_layer in swaps.values() for swap in of_layer]
    for swap in context.progress.bar(moves, label="what each cheaper layer costs in accuracy"):
        loss = trials(
            f"{swap.step.name()} of {swap.layer}", repr(swap.step), _loss_with, swap, model, task, sample, context.seed
        )
        rises[swap.layer].append(math.inf if loss is None else max(loss - whole, 0.0))
    return rises


def _loss_with(swap: Replacement, model: nn.Module, task: Task, sample: Sequence[object], seed: int) -> float:
    return _mean_loss(apply_steps(model, shape_only((swap.step,)), task, Context(seed=seed)), task, sample)


def cheapest_first(
    swaps: Mapping[str, Sequence[Replacement]], rises: Mapping[str, Sequence[float]]
) -> list[Replacement]:
    """Swaps one after the other, each in the place of an earlier one of its layer: least rise of the loss per saving
    first. Of a layer's swaps those on the lower convex hull of rise over saving are taken."""
    moves: list[tuple[float, Replacement]] = []
    for name, of_layer in swaps.items():
        saved, rise, left = 0.0, 0.0, [(swap, r) for swap, r in zip(of_layer, rises[name]) if r < math.inf]
        while left := [(swap, r) for swap, r in left if swap.saved > saved]:
            slope, swap, rise = min(
                (((r - rise) / (swap.saved - saved), swap, r) for swap, r in left), key=lambda move: move[0]
            )
            saved = swap.saved
            moves.append((slope, swap))
    return [swap for _, swap in sorted(moves, key=lambda move: move[0])]


def layer_axis(moves: Sequence[Replacement]) -> SearchAxis:
    """Cheaper modules for more and more layers."""

    def steps(ratio: float) -> Steps:
        last = {swap.layer: swap.step for swap in moves[: round(ratio * len(moves))]}
        return together(last.values())

    return SearchAxis("cheaper layers", tuple(k / len(moves) for k in range(1, len(moves) + 1)), steps)


def width_axis(
    model: nn.Module,
    task: Task,
    *,
    name: str,
    before: Steps = (),
    costs: Mapping[str, float] | None = None,
    round_to: int,
    reconstruct: bool,
    seed: int,
) -> SearchAxis:
    """Cut channels of the network that `before` leaves: all groups by the same share, or with the costs of layers, in
    any one unit, by importance per cost. reconstruct: whether what is behind a cut is fitted again."""
    base = apply_steps(model, shape_only(before), task, Context(seed=seed))
    channels = find_groups(base, task.example_inputs)
    groups = {group.name: group for group in channels.groups if group.reason is None}
    sizes = {name: group.size for name, group in groups.items()}
    scores = {
        name: score for name, score in channels.channel_scores(element_scores(base, "l2")).items() if name in groups
    }

    def steps(ratio: float) -> Steps:
        if costs is None:
            widths = uniform_widths(sizes, ratio, round_to=round_to)
        else:
            per_unit = {n: sum(costs.get(layer, 0.0) for layer in g.layers) / g.size for n, g in groups.items()}
            widths = ranked_widths(scores, per_unit, ratio, round_to=round_to)
        smaller = {name: width for name, width in widths.items() if width < sizes[name]}
        return (*before, ChannelPruning(widths=smaller, reconstruct=reconstruct)) if smaller else before

    distinct: dict[str, float] = {}
    for k in range(1, RATIOS):
        distinct.setdefault(repr(steps(k / RATIOS)), k / RATIOS)
    distinct.pop(repr(before), None)
    return SearchAxis(name, tuple(distinct.values()), steps)
