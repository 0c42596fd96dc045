"""Counts to a cut that runs: solve the constraints, predict every shape, run on shapes only, and repair what differs.

Where a forward has a size of its own (an integer attribute), the attribute follows. Where it takes one width from
another one (C // heads), the two keep the same fraction from then on. Where neither helps, the group stays whole and
the reason is kept. What was learned is remembered, so that later cuts of the same network are cheap.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gossamer.graph.channel_index import Slots
from gossamer.graph.coupling import Mask
from gossamer.graph.groups import ChannelGroups
from gossamer.graph.patches import Patch, combinations, integers
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import expected, kept_indices, size_after, sized_slots
from gossamer.graph.slicing import (
    Attribute,
    Kept,
    PruningPlan,
    changed_attributes,
    get_attribute,
    is_channels_last,
    set_attribute,
    take,
)
from gossamer.graph.tracer import (
    Mismatch,
    Op,
    Trace,
    fake_mode,
    mode,
    record,
    tensor_names,
    untouched,
)

TRIES = 400  # runs on shapes in one fit


@dataclass
class Solution:
    """A cut, which slots stay, and the operations of a run after it, eval and training mode."""

    cut: PruningPlan
    mask: Mask
    traces: dict[bool, Trace]


@dataclass
class CutSolver:
    """What is known of how this network takes its widths."""

    channels: ChannelGroups
    patches: dict[tuple[str, str], Patch] = field(default_factory=dict)
    links: list[set[str]] = field(default_factory=list)
    put_back: dict[str, str] = field(default_factory=dict)
    held: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    tries: int = 0

    def __post_init__(self) -> None:
        model = self.channels.model
        self.held = np.zeros(len(self.channels.units.group_of), dtype=np.bool_)
        tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        with untouched(model):
            self.skeleton = copy.deepcopy(model, {id(t): t for t in tensors})
        self.fake = fake_mode()
        self.shapes_only = all(walk.trace.fake for walk in self.channels.walks.values())
        self.places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        names = tensor_names(model)
        for module in self.skeleton.modules():
            for store in (module._parameters, module._buffers):
                for key, tensor in store.items():
                    if tensor is not None and id(tensor) in names:
                        self.places.setdefault(names[id(tensor)], []).append((store, key))
        self.tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.modules = dict(self.skeleton.named_modules())
        self.groups = {group.name: i for i, group in enumerate(self.channels.groups) if group.reason is None}
        self.norms_without_parameters()

    def norms_without_parameters(self) -> None:
        """Their number of channels is no parameter's size; it is the one of what goes in."""
        walk = self.channels.walks[False]
        for name, module in self.modules.items():
            if not isinstance(module, nn.modules.batchnorm._NormBase) or module.affine or module.track_running_stats:
                continue
            for op in _inside(walk.trace, name)[:1]:
                for f, t in walk.values[op.args[0].index].layers.items():
                    if t.size == t.shape[f] == module.num_features:
                        patch = Patch(name, "num_features", module.num_features, t.ravel())
                        self.patches[name, "num_features"] = patch

    def fit(self, wanted: Mapping[str, float], scores: Mapping[str, Tensor]) -> Solution:
        """The cut that keeps about these fractions of the groups; groups that are not named stay whole."""
        self.tries = 0
        while True:
            counts = self.counts(wanted)
            mask = self.channels.slot_mask(self.channels.select(counts, scores, self.held))
            result = self.attempt(mask)
            if isinstance(result, dict):
                return Solution(self.cut(counts, mask), mask, result)
            if not self.repair(result, mask, wanted, scores):
                self.give_up(result, mask)

    def counts(self, wanted: Mapping[str, float]) -> dict[str, NDArray[np.int64]]:
        """Counts of every group's cells that satisfy all constraints and links."""
        result = {}
        linked = {name: link for link in self.links for name in link}
        for name, fraction in self.fractions(wanted).items():
            cells = self.channels.units.cells[self.groups[name]]
            if name in linked:
                result[name] = (cells.sizes * fraction + 0.5).astype(np.int64)
            elif fraction < 1:
                result[name] = cells.counts(fraction, self.held)
        return {name: count for name, count in result.items() if count.sum() < self.size(name)}

    def learned(self) -> list[str]:
        """Attributes and links that this network's forward needs, by name."""
        links = [" = ".join(sorted(link)[:3]) + (" ..." if len(link) > 3 else "") for link in self.links]
        return [*(f"{module}.{path}".lstrip(".") for module, path in self.patches), *links]

    def size(self, name: str) -> int:
        return self.channels.groups[self.groups[name]].size

    def units(self, name: str) -> Slots:
        """Numbers of a group's units."""
        return np.flatnonzero(self.channels.units.group_of == self.groups[name])

    def fractions(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """Fractions to keep: linked groups the same one, which all of them can keep exactly."""
        result = {name: f for name, f in wanted.items() if name not in self.put_back}
        for link in self.links:
            asked = {name: wanted[name] for name in link if name in wanted}
            for name in link:
                result.pop(name, None)
            if not asked or any(name in self.put_back or self.held[self.units(name)].any() for name in link):
                continue
            sizes = {name: self.channels.units.cells[self.groups[name]].sizes for name in link}
            parts = int(np.gcd.reduce(np.concatenate(list(sizes.values()))))
            weight = sum(self.size(name) for name in asked)
            mean = sum(f * self.size(name) for name, f in asked.items()) / weight
            j = min(max(int(mean * parts + 0.5), 1), parts)
            if j < parts:
                result |= dict.fromkeys(link, j / parts)
        return result

    def cut(self, counts: Mapping[str, NDArray[np.int64]], mask: Mask) -> PruningPlan:
        """The cut as a value."""
        kept = kept_indices(self.channels.graph.parameters, mask)
        shapes = {name: tuple(self.tensors[name].shape) for name in kept}
        widths = {name: (self.size(name), int(counts[name].sum())) for name in counts}
        return PruningPlan(kept, shapes, self.attributes(mask), widths)

    def attributes(self, mask: Mask) -> dict[str, dict[str, Attribute]]:
        """New values of module attributes."""
        kept = kept_indices(self.channels.graph.parameters, mask)
        shapes = {name: size_after(tuple(self.tensors[name].shape), dims) for name, dims in kept.items()}
        found = changed_attributes(self.channels.model, shapes)
        for (module, path), patch in self.patches.items():
            value = patch.value(mask)
            if value is not None and value != patch.old:
                found.setdefault(module, {})[path] = value
        return found

    def attempt(self, mask: Mask) -> "dict[bool, Trace] | tuple[bool, Mismatch]":
        """Run the cut network on shapes only: its operations, or where it leaves the predicted path."""
        self.tries += 1
        kept = kept_indices(self.channels.graph.parameters, mask)
        attributes = self.attributes(mask)
        saved = [
            (self.modules[module], path, get_attribute(self.modules[module], path))
            for module, values in attributes.items()
            for path in values
        ]
        try:
            for name, dims in kept.items():
                old = self.tensors[name]
                with self.fake if self.shapes_only else contextlib.nullcontext():
                    new = self._smaller(old, dims)
                for store, key in self.places[name]:
                    store[key] = new
            for module, values in attributes.items():
                for path, value in values.items():
                    set_attribute(self.modules[module], path, value)
            return self._run(mask)
        finally:
            for name in kept:
                for store, key in self.places[name]:
                    store[key] = self.tensors[name]
            for owner, path, before in saved:
                set_attribute(owner, path, before)

    def _smaller(self, old: Tensor, dims: Mapping[int, Kept]) -> Tensor:
        if self.shapes_only:
            shape = size_after(tuple(old.shape), dims)
            layout = torch.channels_last if is_channels_last(old) else torch.contiguous_format
            new = torch.empty(shape, dtype=old.dtype, device=old.device, memory_format=layout)
        else:
            new = take(old, dims)
        # matmul looks at requires_grad
        return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new

    def _run(self, mask: Mask) -> "dict[bool, Trace] | tuple[bool, Mismatch]":
        traces = {}
        for training, walk in self.channels.walks.items():
            with mode(self.skeleton, training):
                try:
                    traces[training] = record(
                        self.skeleton,
                        self.channels.inputs(training),
                        fake=self.fake if self.shapes_only else None,
                        expected=expected(walk, mask),
                    )
                except Mismatch as mismatch:
                    return training, mismatch
        return traces

    def better(self, mask: Mask, than: tuple[bool, Mismatch]) -> bool:
        """Whether the run gets further."""
        result = self.attempt(mask)
        if isinstance(result, dict):
            return True
        return (result[0], result[1].index) > (than[0], than[1].index)

    def repair(
        self, failed: tuple[bool, Mismatch], mask: Mask, wanted: Mapping[str, float], scores: Mapping[str, Tensor]
    ) -> bool:
        """Find an attribute, or a link, with which the run gets further."""
        training, mismatch = failed
        walk = self.channels.walks[training]
        if mismatch.index >= len(walk.trace.ops) or self.tries > TRIES:
            return False
        op = walk.trace.ops[mismatch.index]
        stack = op.modules if len(op.modules) >= len(mismatch.modules) else mismatch.modules
        return (
            self.patch(walk, failed, stack, mask, exact=True)
            or self.link(walk, failed, stack, wanted, scores)
            or self.patch(walk, failed, stack, mask, exact=False)
        )

    def patch(
        self, walk: Propagation, failed: tuple[bool, Mismatch], stack: Sequence[str], mask: Mask, *, exact: bool
    ) -> bool:
        """Let attributes of the modules in which it fails follow the cut, innermost first. exact: those that have the
        very size of what is cut; else multiples and parts of it."""
        op = walk.trace.ops[failed[1].index]
        for name in dict.fromkeys(reversed(stack)):
            for patches in self.candidates(walk, op, name, mask, exact=exact):
                before = dict(self.patches)
                self.patches |= patches
                if self.better(mask, failed):
                    self.siblings(walk, op, name, patches)
                    return True
                self.patches = before
        return False

    def candidates(
        self, walk: Propagation, op: Op, module: str, mask: Mask, *, exact: bool
    ) -> Iterator[dict[tuple[str, str], Patch]]:
        """Attributes of a module that may count a dimension of the operation."""
        lines = [line for line in sized_slots(walk, op) if not mask[line].all()]
        found: dict[tuple[str, str], list[Patch]] = {}
        for path, old in integers(self.modules[module]):
            if (module, path) in self.patches:
                continue
            for line in lines:
                patch, size = Patch(module, path, old, line), len(line)
                new = patch.value(mask)
                fits = old == size if exact else old != size and (old % size == 0 or size % old == 0)
                known = found.get((module, path), [])
                if fits and new is not None and new != old and all(p.value(mask) != new for p in known):
                    found.setdefault((module, path), []).append(patch)
        yield from combinations(found)

    def siblings(self, walk: Propagation, op: Op, module: str, patches: Mapping[tuple[str, str], Patch]) -> None:
        """The same attributes of modules of the same class, at the same place of their forward."""
        inside = _inside(walk.trace, module)
        place, n = inside.index(op), len(inside)
        lines = sized_slots(walk, op)
        cls = type(self.modules[module])
        for name, other in self.modules.items():
            if type(other) is not cls or name == module:
                continue
            ops = _inside(walk.trace, name)
            if len(ops) != n or ops[place].name != op.name:
                continue
            theirs = sized_slots(walk, ops[place])
            for (_, path), patch in patches.items():
                i = next(i for i, line in enumerate(lines) if line is patch.slots or np.array_equal(line, patch.slots))
                if i < len(theirs) and len(theirs) == len(lines):
                    old = get_attribute(other, path)
                    if (name, path) not in self.patches and old * len(lines[i]) == patch.old * len(theirs[i]):
                        self.patches[name, path] = Patch(name, path, old, theirs[i])

    def link(
        self,
        walk: Propagation,
        failed: tuple[bool, Mismatch],
        stack: Sequence[str],
        wanted: Mapping[str, float],
        scores: Mapping[str, Tensor],
    ) -> bool:
        """Keep the same fraction of all groups that meet in the failing module, and in its siblings."""
        for module in list(dict.fromkeys(reversed(stack)))[:2]:
            names = self.groups_of(_inside(walk.trace, module), walk)
            if len(names) < 2 or module == "" or any(names <= link for link in self.links):
                continue
            before = [set(link) for link in self.links]
            self.add_link(names)
            if not any(self.fractions(wanted).get(name, 1.0) < 1 for name in names):
                self.links = before  # linked, nothing could be cut
                continue
            counts = self.counts(dict.fromkeys(self.groups, 1.0) | dict(wanted))
            mask = self.channels.slot_mask(self.channels.select(counts, scores, self.held))
            if self.better(mask, failed) or any(
                self.patch(walk, failed, stack, mask, exact=exact) for exact in (True, False)
            ):
                cls = type(self.modules[module])
                for name, other in self.modules.items():
                    if type(other) is cls and name != module:
                        self.add_link(self.groups_of(_inside(walk.trace, name), walk))
                return True
            self.links = before
        return False

    def add_link(self, names: set[str]) -> None:
        if len(names) < 2:
            return
        touching = [link for link in self.links if link & names]
        self.links = [link for link in self.links if not link & names] + [names.union(*touching)]

    def groups_of(self, ops: Sequence[Op], walk: Propagation) -> set[str]:
        """Groups whose channels occur in the operations."""
        names = list(self.groups)
        found: set[int] = set()
        for op in ops:
            for line in sized_slots(walk, op):
                units = self.channels.units.of_slot[line]
                found |= set(np.unique(self.channels.units.group_of[units[units >= 0]]).tolist())
        return {names[i] for i in found}

    def give_up(self, failed: tuple[bool, Mismatch], mask: Mask) -> None:
        """Hold the channels that the failing operation counts; or else leave the groups there whole."""
        training, mismatch = failed
        walk = self.channels.walks[training]
        ops = walk.trace.ops
        index = min(mismatch.index, len(ops) - 1)
        if self.hold(walk, ops[index], mask):
            return
        cut_now = {name for name in self.groups if name not in self.put_back and self._is_cut(name, mask)}
        for near in (
            ops[index : index + 1],
            _inside(walk.trace, ops[index].modules[-1] if ops[index].modules else ""),
            ops,
        ):
            names = self.groups_of(near, walk) & cut_now
            if names:
                break
        else:
            names = cut_now
        if not names:
            raise RuntimeError(f"the network does not run as traced: {mismatch}")
        for name in names:
            self.put_back[name] = f"{mismatch} ({ops[index].where})"

    def hold(self, walk: Propagation, op: Op, mask: Mask) -> bool:
        """A part of a known size is taken: its channels stay, others can go."""
        if op.name not in ("aten.slice", "aten.split_with_sizes", "aten.split", "aten.narrow"):
            return False
        before = int(self.held.sum())
        source = max(len(line) for line in sized_slots(walk, op))
        for line in sized_slots(walk, op):
            units = self.channels.units.of_slot[line]
            if len(line) < source and not mask[line].all():
                self.held[units[units >= 0]] = True
        return int(self.held.sum()) > before

    def _is_cut(self, name: str, mask: Mask) -> bool:
        units = self.channels.units
        slots = units.slots[self.groups[name]]
        return not bool(mask[slots].all())


def _inside(trace: Trace, module: str) -> list[Op]:
    return [op for op in trace.ops if module in op.modules]
