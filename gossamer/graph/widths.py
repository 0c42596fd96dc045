"""From wanted fractions of groups to counts that the constraints allow, with what earlier attempts have shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gossamer.graph.channel_index import Indices
from gossamer.graph.coupling import Mask
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import counted_indices
from gossamer.graph.tracer import Op

if TYPE_CHECKING:
    from gossamer.graph.groups import ChannelGroups

Counts = dict[str, NDArray[np.int64]]


@dataclass
class Widths:
    """Which widths a network can take.

    Args:
        channels: its groups, with the constraints on the counts of each.
        linked: groups whose forward takes one width from another (C // heads): they keep the same fraction.
        skipped: groups that stay whole, with the reason.
        required: coupled channels that must stay, shape (coupled channels,).
    """

    channels: "ChannelGroups"
    linked: list[set[str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    required: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def __post_init__(self) -> None:
        self.required = np.zeros(len(self.channels.coupled.group_of), dtype=np.bool_)
        self.groups = {group.name: i for i, group in enumerate(self.channels.groups) if group.reason is None}

    def size(self, name: str) -> int:
        """Number of coupled channels of a group."""
        return self.channels.groups[self.groups[name]].size

    def counts(self, wanted: Mapping[str, float]) -> Counts:
        """Counts per equivalence class of every group that shrinks, so that all constraints and links hold."""
        result = {}
        linked = {name for link in self.linked for name in link}
        for name, fraction in self.fractions(wanted).items():
            classes = self.channels.coupled.classes[self.groups[name]]
            if name in linked:  # `fractions` chose one that every class can keep exactly
                result[name] = (classes.sizes * fraction + 0.5).astype(np.int64)
            elif fraction < 1:
                result[name] = classes.counts(fraction, self.required)
        return {name: count for name, count in result.items() if count.sum() < self.size(name)}

    def fractions(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """Fractions to keep. Linked groups get the same one, which all of their classes can keep exactly."""
        result = {name: f for name, f in wanted.items() if name not in self.skipped}
        for link in self.linked:
            asked = {name: wanted[name] for name in link if name in wanted}
            for name in link:
                result.pop(name, None)
            # Required channels of one group need not be a fraction that the others can keep: such a link stays whole.
            if not asked or any(name in self.skipped or self._has_required(name) for name in link):
                continue
            # Multiples of 1 / divisor are whole numbers in every class; take the nearest to the mean of what is asked.
            sizes = [self.channels.coupled.classes[self.groups[name]].sizes for name in link]
            divisor = int(np.gcd.reduce(np.concatenate(sizes)))
            # The mean is weighted by size: it keeps about as many channels in total as were asked for.
            # Names that were not asked for follow the others: their sizes do not weigh.
            weight = sum(self.size(name) for name in asked)
            mean = sum(f * self.size(name) for name, f in asked.items()) / weight
            j = min(max(int(mean * divisor + 0.5), 1), divisor)
            if j < divisor:
                result |= dict.fromkeys(sorted(link), j / divisor)  # sets of names have another order in every process
        return result

    def _has_required(self, name: str) -> bool:
        members: Indices = np.flatnonzero(self.channels.coupled.group_of == self.groups[name])
        return bool(self.required[members].any())

    def link(self, names: set[str]) -> None:
        """Let these groups keep the same fraction from now on; links that share a group become one."""
        if len(names) < 2:
            return
        # Links stay disjoint, so every group has one fraction at most.
        touching = [link for link in self.linked if link & names]
        self.linked = [link for link in self.linked if not link & names] + [names.union(*touching)]

    def skip(self, name: str, reason: str) -> None:
        """Leave a group whole from now on. What it was linked with may shrink, if that runs without the link."""
        self.skipped[name] = reason
        self.linked = [link - {name} for link in self.linked if len(link - {name}) > 1]

    def groups_in(self, ops: Sequence[Op], propagation: Propagation) -> set[str]:
        """Names of the groups whose channels occur in the operations."""
        names = list(self.groups)
        found: set[int] = set()
        for op in ops:
            for line in counted_indices(propagation, op):
                channels = self.channels.coupled.of_index[line]
                # A channel of no group is numbered -1; it stays in any case.
                found |= set(np.unique(self.channels.coupled.group_of[channels[channels >= 0]]).tolist())
        return {names[i] for i in found}

    def shrinking(self, mask: Mask) -> set[str]:
        """Names of the groups of which the mask removes something."""
        # One index of each coupled channel is enough: all of its indices stay or go together.
        indices = self.channels.coupled.indices
        return {name for name, i in self.groups.items() if name not in self.skipped and not mask[indices[i]].all()}

    def require_part(self, propagation: Propagation, op: Op, mask: Mask) -> bool:
        """Let channels stay of which the operation takes a part of known size; whether this changes anything.

        `x[:, :8]` names a size in the forward that no attribute has. The eight channels stay, and others can go.
        """
        if op.name not in ("aten.slice", "aten.split_with_sizes", "aten.split", "aten.narrow"):
            return False
        before = int(self.required.sum())
        lines = counted_indices(propagation, op)
        # Lines shorter than the longest are what the operation takes out of it.
        source = max(len(line) for line in lines)
        for line in lines:
            channels = self.channels.coupled.of_index[line]
            if len(line) < source and not mask[line].all():
                self.required[channels[channels >= 0]] = True
        return int(self.required.sum()) > before
