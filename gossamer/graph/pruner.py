"""From what to keep of each group to a smaller network with its proof."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.graph.channel_index import Slots
from gossamer.graph.groups import ChannelGroups, find_groups
from gossamer.graph.proof import Proof, compare, first_difference, listed
from gossamer.graph.shapes import expected
from gossamer.graph.slicing import Kept, PruningPlan, resize
from gossamer.graph.solver import CutSolver, Solution
from gossamer.graph.tracer import Mismatch, fake_mode, mode, record


@dataclass(frozen=True, kw_only=True)
class PruningResult:
    """A smaller copy of a network. cut: replays it on the same network with other weights. proof: None where it was not
    asked for. widths: units before and after, by group. put_back: groups that stay whole, with the reason."""

    model: nn.Module
    cut: PruningPlan
    proof: Proof | None
    widths: Mapping[str, tuple[int, int]]
    put_back: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prune(
    channels: ChannelGroups,
    fractions: Mapping[str, float],
    unit_scores: Mapping[str, Tensor],
    *,
    tolerance: float = 1e-5,
    prove: bool = True,
) -> PruningResult:
    """Keep about these fractions of the groups, in each the units with the largest scores.

    fractions: in (0, 1], by group name; other groups stay whole. Counts are rounded so that all constraints hold:
    `widths` has what they became. A group whose cut does not run, or fails the proof by more than `tolerance`
    (relative), stays whole. The same Channels may be used for many cuts; later ones are cheap.
    """
    for name in fractions:
        channels.index(name)
    if channels.fitter is None:
        channels.fitter = CutSolver(channels)
    fitter: CutSolver = channels.fitter
    while True:
        fitted = fitter.fit(fractions, unit_scores)
        small = resize(channels.model, None, fitted.cut)
        proof = _prove(channels, small, fitted) if prove else None
        if proof is None or proof.max_relative <= tolerance or not fitted.cut.widths:
            break
        _put_back(channels, fitter, small, fitted, proof, tolerance)
    widths = {name: fitted.cut.widths.get(name, (fitter.size(name),) * 2) for name in fractions}
    widths |= fitted.cut.widths
    put_back = {name: fitter.put_back[name] for name in fractions if name in fitter.put_back}
    notes = [*channels.notes, *_rounded(fractions, widths, put_back), *_statistics(proof)]
    return PruningResult(model=small, cut=fitted.cut, proof=proof, widths=widths, put_back=put_back, notes=tuple(notes))


def prove(original: nn.Module, small: nn.Module, cut: PruningPlan, example_inputs: Any) -> Proof:
    """Compare a network that `resize` made, with whatever weights both now have, with the silenced original.

    Raises BadInput if the small network does not do the original's operations in the sizes that the cut gives.
    """
    channels = find_groups(original, example_inputs)
    walk = channels.walks[False]
    keep = np.ones(len(channels.units.group_of) + 1, dtype=np.bool_)  # the last place is for slots of no unit
    for name, dims in cut.kept.items():
        for d, kept in dims.items():
            keep[channels.units.of_slot[_removed(channels.graph.parameters[name].layers[d], kept)]] = False
    mask = channels.slot_mask(keep[:-1])
    with mode(small, False):
        try:
            trace = record(
                small, example_inputs, fake=fake_mode() if walk.trace.fake else None, expected=expected(walk, mask)
            )
        except Mismatch as mismatch:
            raise BadInput(f"the small network is not what the cut makes of the original: {mismatch}") from mismatch
    return compare(original, small, example_inputs, walk, mask, trace, cut.kept)


def _removed(t: Slots, kept: Kept) -> Slots:
    """Slots that are not kept."""
    if kept and isinstance(kept[0], list):
        rows = t.reshape(t.shape[0], t.shape[1])[:: t.shape[0] // len(kept)]
        return np.concatenate([np.delete(row, inner) for row, inner in zip(rows, kept)])
    return np.delete(t.ravel(), kept)


def _prove(channels: ChannelGroups, small: nn.Module, fitted: Solution) -> Proof:
    return compare(
        channels.model,
        small,
        channels.example_inputs,
        channels.walks[False],
        fitted.mask,
        fitted.traces[False],
        fitted.cut.kept,
    )


def _put_back(
    channels: ChannelGroups, fitter: CutSolver, small: nn.Module, fitted: Solution, proof: Proof, tolerance: float
) -> None:
    """Leave the groups whole at which the two networks first differ; all of them if that cannot be told."""
    walk = channels.walks[False]
    index = first_difference(
        channels.model,
        small,
        channels.example_inputs,
        walk,
        fitted.mask,
        fitted.traces[False],
        fitted.cut.kept,
        tolerance,
    )
    names = set(fitted.cut.widths)
    where = ""
    if index >= 0:
        where = f" from {walk.trace.ops[index].where} on"
        names = (fitter.groups_of([walk.trace.ops[index]], walk) & names) or names
    for name in names:
        fitter.put_back[name] = f"the proof fails ({proof.max_relative:.1e}{where})"


def _rounded(
    fractions: Mapping[str, float], widths: Mapping[str, tuple[int, int]], put_back: Mapping[str, str]
) -> list[str]:
    notes = []
    for name, (before, after) in widths.items():
        if name in put_back:
            continue
        asked = fractions.get(name, 1.0) * before
        if abs(asked - after) >= 1:
            notes.append(f"{name}: {after} of {before} kept, {asked:.4g} asked: other widths depend on it")
    return notes


def _statistics(proof: Proof | None) -> list[str]:
    if proof is None:
        return []
    notes = []
    if proof.statistics:
        notes.append(f"statistics over fewer channels: {listed(proof.statistics)}")
    if proof.scalars:
        notes.append(f"numbers that follow a width: {listed(proof.scalars)}")
    return notes
