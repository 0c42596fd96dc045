"""From what to keep of each group to a smaller network with its proof."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.graph.channel_index import Indices, Kept
from gossamer.graph.expectation import Mismatch
from gossamer.graph.fake_tensors import fake_mode
from gossamer.graph.groups import ChannelGroups, find_groups
from gossamer.graph.isolation import mode
from gossamer.graph.proof import Proof, Unproven, compare, first_difference, names_in_words
from gossamer.graph.shapes import expected
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.graph.solver import CutSolver, Solution
from gossamer.graph.tracer import record


@dataclass(frozen=True, kw_only=True, repr=False)
class PruningResult:
    """A smaller copy of a network.

    Args:
        model: the copy, of the user's own class.
        plan: replays the pruning on the same network with other weights (`resize`).
        proof: None where it was not asked for.
        widths: coupled channels before and after, by group.
        skipped: groups that stay whole, with the reason.
        notes: what a user should know.

    Example:
        >>> import torch, gossamer
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> found = gossamer.prune_channels(net, torch.rand(3, 8), 0.5)
        >>> found
        PruningResult(Sequential, 1 groups cut, 0 left whole)
        >>> print(found.summary())
        0: 4 to 2 channels
        largest relative difference to the masked original: ...
    """

    model: nn.Module
    plan: PruningPlan
    proof: Proof | None
    widths: Mapping[str, tuple[int, int]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        cut = sum(after != before for before, after in self.widths.values())
        return f"PruningResult({type(self.model).__name__}, {cut} groups cut, {len(self.skipped)} left whole)"

    def summary(self) -> str:
        """One line for each group: `body.0.conv1: 16 to 8 channels`, and why others are whole; then the proof."""
        lines = [f"{name}: {before} to {after} channels" for name, (before, after) in self.widths.items()]
        lines += [f"{name}: left whole, {reason}" for name, reason in self.skipped.items()]
        if self.proof is not None:
            lines.append(f"largest relative difference to the masked original: {self.proof.max_relative:.1e}")
        return "\n".join([*lines, *self.notes])


def prune(
    channels: ChannelGroups,
    fractions: Mapping[str, float],
    channel_scores: Mapping[str, Tensor],
    *,
    tolerance: float = 1e-5,
    prove: bool = True,
) -> PruningResult:
    """Keep about these fractions of the groups, in each the channels with the largest scores.

    Counts are rounded so that all constraints hold: `widths` has what they became. The same `ChannelGroups` may be
    used many times; later prunings are cheap.

    Args:
        channels: what `find_groups` knows of the network.
        fractions: to keep, in (0, 1], by group name; other groups stay whole.
        channel_scores: shape (group size,), by group name.
        tolerance: largest relative difference that the proof accepts. A group that fails it stays whole, as does one
            whose pruning does not run.
        prove: compare the smaller network with the original.

    Returns:
        The smaller network, the plan and the proof.

    Raises:
        BadInput: for a group that does not exist or cannot be pruned.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> channels = find_groups(model, torch.randn(1, 4))
        >>> scores = channels.channel_scores({"0.weight": model[0].weight.abs()})
        >>> prune(channels, {"0": 0.5}, scores).model[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    for name in fractions:
        channels.index(name)
    if channels.solver is None:
        channels.solver = CutSolver(channels)
    solver = channels.solver
    while True:  # ends: every round that is not accepted leaves at least one more group whole
        # The solver remembers skipped groups, so the next round finds a plan without those that failed the proof.
        solution = solver.solve(fractions, channel_scores)
        small = resize(channels.model, None, solution.plan)
        try:
            proof = _compare(channels, small, solution) if prove else None
        except Unproven as error:
            if not solution.plan.widths:
                raise BadInput(f"the proof cannot be made: {error}; prove=False prunes without one") from error
            _skip_failing(solver, solution, error.index, f"the proof cannot be made ({error}")
            continue
        if proof is None or proof.max_relative <= tolerance or not solution.plan.widths:
            break
        # What lies before the first difference is right, so that only groups at it are left whole.
        index = _first_difference(channels, small, solution, tolerance)
        _skip_failing(solver, solution, index, f"the proof fails ({proof.max_relative:.1e}")
    # Groups that were asked for and stay whole are listed too; linked groups may shrink without being asked for.
    widths = {name: solution.plan.widths.get(name, (solver.widths.size(name),) * 2) for name in fractions}
    widths |= solution.plan.widths
    skipped = {name: solver.skipped[name] for name in fractions if name in solver.skipped}
    notes = [*channels.notes, *_rounded(fractions, widths, skipped), *_statistics(proof)]
    return PruningResult(
        model=small, plan=solution.plan, proof=proof, widths=widths, skipped=skipped, notes=tuple(notes)
    )


def prune_as_learned(
    channels: ChannelGroups, fractions: Mapping[str, float], channel_scores: Mapping[str, Tensor]
) -> PruningResult:
    """The same cut without a run on shapes and without a proof, for networks of which many cuts are made.

    What the forward of a network needs besides its layers' own sizes must be known from an earlier `prune` of the same
    `ChannelGroups`, to the smallest of these networks for example.

    Args:
        channels: of which there was a `prune`.
        fractions: to keep, in (0, 1], by group name; other groups stay whole.
        channel_scores: shape (group size,), by group name.

    Returns:
        The smaller network and its plan.

    Raises:
        BadInput: nothing was learned of this network yet.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> channels = find_groups(model, torch.randn(1, 4))
        >>> scores = channels.channel_scores({})
        >>> smallest = prune(channels, {"0": 0.25}, scores)
        >>> prune_as_learned(channels, {"0": 0.5}, scores).model[0].out_features
        4
    """
    if channels.solver is None:
        raise BadInput("prune_as_learned: there was no `prune` of these channels yet")
    plan = channels.solver.plan_as_learned(fractions, channel_scores)
    model = resize(channels.model, None, plan)
    return PruningResult(model=model, plan=plan, proof=None, widths=plan.widths)


def prove(original: nn.Module, small: nn.Module, plan: PruningPlan, example_inputs: Any) -> Proof:
    """Compare a pruned network, with whatever weights both now have, with the masked original.

    Args:
        original: the network before `resize`.
        small: what `resize` made of it.
        plan: the pruning.
        example_inputs: what both are run on.

    Returns:
        How far their outputs are apart.

    Raises:
        BadInput: if the small network does not do the operations of the original in the sizes that the plan gives.

    Example:
        >>> import torch
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4)
        >>> channels = find_groups(model, x)
        >>> pruned = prune(channels, {"0": 0.5}, channels.channel_scores({"0.weight": model[0].weight.abs()}))
        >>> prove(model, pruned.model, pruned.plan, x).max_relative < 1e-5
        True
    """
    # Traced again: a plan may come from a file, and says nothing of the network but positions.
    channels = find_groups(original, example_inputs)
    propagation = channels.propagations.eval
    # The plan as a mask of coupled channels; the last place takes what -1 points to: indices that always stay.
    keep = np.ones(len(channels.coupled.group_of) + 1, dtype=np.bool_)
    for name, dims in plan.kept.items():
        for d, kept in dims.items():
            keep[channels.coupled.of_index[_removed(channels.graph.parameters[name].axes[d], kept)]] = False
    mask = channels.index_mask(keep[:-1])
    with mode(small, False):
        try:
            trace = record(
                small,
                example_inputs,
                fake=fake_mode() if propagation.trace.fake else None,
                expected=expected(propagation, mask),
                decided=propagation.trace.decisions,
            )
        except Mismatch as mismatch:
            raise BadInput(f"the small network is not what the plan makes of the original: {mismatch}") from mismatch
    try:
        return compare(original, small, example_inputs, propagation, mask, trace, plan.kept)
    except Unproven as error:
        raise BadInput(f"the proof cannot be made: {error}") from error


def _removed(indices: Indices, kept: Kept) -> Indices:
    """Channel indices that are not kept."""
    if kept and isinstance(kept[0], list):
        # One row for each group: rows of a group are alike.
        rows = indices.reshape(indices.shape[0], indices.shape[1])[:: indices.shape[0] // len(kept)]
        return np.concatenate([np.delete(row, inner) for row, inner in zip(rows, kept)])
    return np.delete(indices.ravel(), kept)


def _compare(channels: ChannelGroups, small: nn.Module, solution: Solution) -> Proof:
    return compare(
        channels.model,
        small,
        channels.example_inputs,
        channels.propagations.eval,
        solution.mask,
        solution.trace,
        solution.plan.kept,
    )


def _first_difference(channels: ChannelGroups, small: nn.Module, solution: Solution, tolerance: float) -> int:
    """The operation at which the two networks first differ, -1 if that cannot be told."""
    try:
        return first_difference(
            channels.model,
            small,
            channels.example_inputs,
            channels.propagations.eval,
            solution.mask,
            solution.trace,
            solution.plan.kept,
            tolerance,
        )
    except Unproven as error:
        return error.index


def _skip_failing(solver: CutSolver, solution: Solution, index: int, why: str) -> None:
    """Leave the groups whole at an operation where the proof ends; all of them if it is none."""
    propagation = solver.channels.propagations.eval
    names = set(solution.plan.widths)
    where = ""
    if 0 <= index < len(propagation.trace.ops):
        op = propagation.trace.ops[index]
        where = f" from {op.where} on"
        # An operation that has no channels of these groups tells nothing: then all of them are suspected.
        names = (solver.widths.groups_in([op], propagation) & names) or names
    for name in sorted(names):
        solver.widths.skip(name, f"{why}{where})")


def _rounded(
    fractions: Mapping[str, float], widths: Mapping[str, tuple[int, int]], skipped: Mapping[str, str]
) -> list[str]:
    notes = []
    for name, (before, after) in widths.items():
        if name in skipped:
            continue
        asked = fractions.get(name, 1.0) * before
        # Less than one channel away is rounding, which nobody needs to be told.
        if abs(asked - after) >= 1:
            notes.append(f"{name}: {after} of {before} kept, {asked:.4g} asked: other widths depend on it")
    return notes


def _statistics(proof: Proof | None) -> list[str]:
    if proof is None:
        return []
    notes = []
    if proof.statistics:
        notes.append(f"statistics over fewer channels: {names_in_words(proof.statistics)}")
    if proof.scalars:
        notes.append(f"numbers that follow a width: {names_in_words(proof.scalars)}")
    return notes
