"""Structured channel pruning (filter pruning): remove the least important channels with everything coupled to them.

What it does: finds which channels must be removed together (through shortcuts, concatenations, shared weights, norms,
heads), scores each group of coupled channels, removes the lowest, and proves that the smaller network computes what the
original computes with those channels masked. Then the weights of the layers that lost inputs are reconstructed by least
squares, in the order of execution.
Cost: one trace of the network; the criteria "taylor" and "fisher" also take gradients of a few batches. The
reconstruction runs both networks on some batches and solves one linear system, for each layer.
When it fails: operations that gossamer does not know make the channels that enter them unprunable, and the result names
them. Widths that suit the kernels badly can make a runtime slower although multiply-adds fall: round to 8 or 16.
Equation: a channel's score is the sum of the criterion over all weights that are removed with it. W = argmin
|W x' - z|^2, x' the layer's inputs now, z its former outputs on the channels that it still has.
Source: Li et al. 2017, arXiv:1608.08710 (filters); Fang et al. 2023, arXiv:2301.12900 (groups); He et al. 2017,
arXiv:1707.06168, section 3.1 (least squares behind the cut).
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.calibration.weight_reconstruction import layers_of, reconstruct_weights
from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import EditKind
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect, unknown
from gossamer.graph.groups import ChannelGroups as FoundChannels
from gossamer.graph.groups import Group, find_groups
from gossamer.graph.proof import names_in_words
from gossamer.graph.pruner import PruningResult, prune
from gossamer.graph.tracer import trace
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._criteria import NEEDS_LABELS, Criterion, element_scores
from gossamer.train.batches import Replayed


@checked_arguments
@own_conditions()
def prune_channels(
    model: nn.Module,
    example_inputs: Any,
    sparsity: float | Mapping[str, float] = 0.5,
    *,
    criterion: str = "l1",
    ignore: Iterable[str] = (),
    round_to: int = 1,
    widths: Mapping[str, int] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    heads: bool = False,
    channels: FoundChannels | None = None,
    prove: bool = True,
    seed: int = 0,
) -> PruningResult:
    """Remove channels and prove that the result computes what the original computes with those channels masked.

    It needs no training data. The model is not changed; the result is of the user's own class, with outputs of the same
    shapes.

    Args:
        model: any network that runs on the example inputs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        sparsity: fraction of the channels to remove in every group of coupled channels, in [0, 1); or fractions by name
            of a group or layer.
        criterion: importance of a weight: "l1", "l2", "bn_scale" or "random"; see `element_scores`.
        ignore: names or patterns ("*.conv1") of layers that keep their shape.
        round_to: kept counts are multiples of it where the group is that large.
        widths: channels to keep by group, instead of sparsity.
        scores: importance of each weight by parameter name, of its shape, instead of `criterion`.
        heads: remove whole attention heads instead of dimensions of every head.
        channels: the groups of this model from `find_groups`; many cuts can share one trace.
        prove: whether to verify the result against the masked original.
        seed: of the criterion "random".

    Returns:
        The smaller network with its widths, the proof, and the groups that were left whole and why.

    Raises:
        BadInput: an unknown layer or group, or a number outside its range.
        NoEffect: no channels can be removed.

    Example:
        >>> import torch, gossamer
        >>> model = gossamer.data.tiny_network()
        >>> result = gossamer.prune_channels(model, torch.zeros(1, 1, 8, 8), sparsity=0.5)
        >>> result.widths["conv1"], result.model.conv1
        ((8, 4), Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)))
    """
    found = channels if channels is not None else find_groups(model, example_inputs, heads=heads)
    groups = _selected(found, ignore)
    wanted = _counts_of(groups, found, widths) if widths is not None else _counts(groups, found, sparsity, round_to)
    if scores is not None:
        _check_scores(model, scores)
    unit_scores = found.channel_scores(scores if scores is not None else element_scores(model, criterion, seed=seed))
    fractions = {name: count / size for name, (count, size) in wanted.items() if count < size}
    return prune(found, fractions, unit_scores, prove=prove)


def _selected(found: FoundChannels, ignore: Iterable[str]) -> list[Group]:
    """The groups that can be cut and touch no ignored layer."""
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    known = {layer for group in found.groups for layer in group.layers} | {g.name for g in found.groups}
    for pattern in ignore:
        if not any(_matches(name, pattern) for name in known):
            if any(mark in pattern for mark in "*?["):
                raise NoEffect(f"ignore={pattern!r} matches no layer of {sorted(known)}")
            raise unknown("layer", pattern, known, listed="`gossamer analyze`")
    groups = found.prunable()
    if not groups:
        reasons = [*found.notes, *sorted({group.reason for group in found.groups if group.reason})]
        raise NoEffect(f"no channels of this network can be cut: {'; '.join(reasons[:5]) or 'no weighted layers'}")
    kept = [g for g in groups if not any(_matches(n, p) for p in ignore for n in (g.name, *g.layers))]
    if not kept:
        raise NoEffect(f"ignore={list(ignore)} leaves no group of channels to cut")
    return kept


def _check_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        given = scores.get(name, parameter)
        if given.shape != parameter.shape:
            shape, wanted = tuple(given.shape), tuple(parameter.shape)
            raise BadInput(f"scores: {name} has the shape {shape}, its parameter {wanted}: one score for each weight")
        if name in scores and given.isnan().any():
            raise BadInput(f"scores: {name} holds NaN, which has no order")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _counts_of(groups: list[Group], found: FoundChannels, widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    by_name = {group.name: group for group in groups}
    result: dict[str, tuple[int, int]] = {}
    for name, width in widths.items():
        found.index(name)
        if name not in by_name:
            raise BadInput(f"widths: group {name!r} is also ignored")
        size = by_name[name].size
        if not isinstance(width, Integral) or not 1 <= width <= size:
            raise BadInput(f"widths: {name} = {width} must be a whole number between 1 and its {size} channels")
        result[name] = (width, size)
    return result


def _counts(
    groups: list[Group], found: FoundChannels, sparsity: float | Mapping[str, float], round_to: int
) -> dict[str, tuple[int, int]]:
    if round_to < 1:
        raise BadInput(f"round_to = {round_to}: must be at least 1")
    if isinstance(sparsity, Mapping):
        by_group = _by_group(groups, found, sparsity)
    else:
        _check(sparsity, "sparsity")
        by_group = {group.name: sparsity for group in groups}
    return {g.name: (rounded(g, by_group[g.name], round_to), g.size) for g in groups if g.name in by_group}


def _check(value: float, name: str) -> None:
    if not isinstance(value, Real) or not 0 <= value < 1:
        raise BadInput(f"{name} = {value}: must be in [0, 1)")


def _by_group(groups: list[Group], found: FoundChannels, sparsity: Mapping[str, float]) -> dict[str, float]:
    """Sparsities by name of a group, or of a layer that produces the group's channels."""
    result: dict[str, float] = {}
    names = {group.name for group in found.groups}
    layers = {layer for group in found.groups for layer in group.layers}
    for key, value in sparsity.items():
        _check(value, f"sparsity of {key!r}")
        if key not in names | layers:
            raise unknown("layer", key, names | layers, listed="`gossamer analyze`")
        hits = [g.name for g in groups if g.name == key]
        hits = hits or [g.name for g in groups if any(m.rpartition(".")[0] == key and d == 0 for m, d in g.members)]
        if not hits:
            why = next((g.reason for g in found.groups if key in (g.name, *g.layers) and g.reason), "it is ignored")
            raise NoEffect(f"sparsity of {key!r} changes nothing: the channels that it makes cannot be cut ({why})")
        result |= dict.fromkeys(hits, value)
    return result


def rounded(group: Group, sparsity: float, round_to: int) -> int:
    """Return how many channels to keep: the nearest multiple of `round_to` and of the group's step, at least one
    multiple.
    """
    multiple = math.lcm(group.step, round_to)
    if multiple > group.size:
        multiple = group.step
    count = int(group.size * (1 - sparsity) / multiple + 0.5) * multiple
    return min(max(count, multiple), group.size)


@dataclass(frozen=True, kw_only=True)
class ChannelPruning(Method):
    """Structured channel pruning (Li et al. 2017; Fang et al. 2023). Give `sparsity` or `widths`.

    Args:
        sparsity: fraction of the channels to remove in every group of coupled channels, in (0, 1).
        widths: channels to keep by name of the group, as `gossamer analyze` lists them; other groups stay whole.
        criterion: importance of a weight: "l1", "l2", "taylor", "fisher", "bn_scale" or "random"; see `element_scores`.
        round_to: kept counts are multiples of it where the group is that large.
        batches: batches of labelled training data for "taylor" and "fisher".
        reconstruct: fit the weights of the layers that lost inputs, by least squares on training inputs (no labels).

    Raises:
        BadInput: neither or both of sparsity and widths are given.

    Example:
        >>> import torch, gossamer
        >>> model = gossamer.data.tiny_network()
        >>> method = gossamer.methods.prune.ChannelPruning(sparsity=0.5, reconstruct=False)
        >>> smaller, edits = method(model, torch.zeros(1, 1, 8, 8))
        >>> smaller.conv1
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "samples"
    example: ClassVar[Settings] = {"sparsity": 0.5}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    widths: Mapping[str, int] = field(default_factory=dict)
    criterion: Criterion = "l2"
    round_to: Annotated[int, Range(1, 4096)] = 1
    batches: Annotated[int, Range(1, 100_000)] = 8
    reconstruct: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (not self.widths):
            raise BadInput(f"{self.name()}: give either sparsity or widths")

    def needed(self) -> Needs:
        if self.criterion in NEEDS_LABELS:
            return "labels"
        return "samples" if self.reconstruct else "inputs"

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        sample = islice(task.train, self.batches) if self.criterion in NEEDS_LABELS else ()
        scores = element_scores(model, self.criterion, loss=partial(loss_of, task), batches=sample, seed=context.seed)
        pruned = prune_channels(
            model,
            task.example_inputs,
            self.sparsity or 0.0,
            widths=self.widths or None,
            scores=scores,
            round_to=self.round_to,
        )
        if pruned.proof is None or all(after == before for before, after in pruned.widths.values()):
            raise NoEffect(f"{self.name()}: no group of channels got smaller; {'; '.join(pruned.skipped.values())}")
        fitted = self._reconstruct_weights(pruned, model, task, context) if self.reconstruct else []
        note = names_in_words(pruned.proof.statistics)
        for name, (before, after) in pruned.widths.items():
            if after < before:
                self.note(
                    context,
                    EditKind.RESIZE,
                    name,
                    before=f"{before} channels",
                    after=f"{after} channels",
                    proof=pruned.proof.max_relative,
                    note=f"statistics over fewer channels: {note}" if note else "",
                )
        if fitted:
            self.note(
                context,
                EditKind.ASSIGN,
                f"{len(fitted)} layers that lost inputs",
                before="weights of the larger network",
                after="least squares on what they gave there",
            )
        return pruned.model

    def _reconstruct_weights(self, pruned: PruningResult, model: nn.Module, task: Task, context: Context) -> list[str]:
        """The layers whose inputs were cut, fitted to what they gave on the channels that they still make."""
        kept = pruned.plan.kept
        modules = dict(pruned.model.named_modules())
        lost = [name for name in modules if 1 in kept.get(f"{name}.weight", {})]
        lost = [name for name in lost if isinstance(modules[name], Layer)]
        behind = [name for name in layers_of(trace(pruned.model, task.example_inputs)) if name in lost]
        outputs: dict[str, Any] = {name: dims[0] for name in behind if 0 in (dims := kept[f"{name}.weight"])}
        track = partial(context.progress.bar, label="fitting layers again", total=len(behind))
        return reconstruct_weights(
            pruned.model, model, behind, Replayed(task.train, context.seed), kept=outputs, track=track
        )

    def shape_only(self) -> "ChannelPruning":
        return replace(self, reconstruct=False)
