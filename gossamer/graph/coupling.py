"""From facts about channel indices to coupled channels, and to the groups that they form.

A coupled channel is a connected component of the couplings: the channel indices that are removed together. It can be
removed if a weighted operation produces it and nothing fixes it. Coupled channels that occur in the same parameter
dimensions form a group; groups whose counts depend on each other are one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gossamer.graph.channel_index import CouplingGraph, Indices, distinct
from gossamer.graph.counts import EquivalenceClasses

Mask = NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max  # number of the operation that produces what none produces


@dataclass
class CoupledChannels:
    """All coupled channels of a network. Groups that cannot be pruned come after the others.

    Args:
        of_index: the coupled channel of every channel index, -1 where the index always stays.
        group_of: the group of every coupled channel that can be removed.
        first: for every group, the operation and the channel index that first produce it.
        indices: the channel indices of every group.
        reasons: why a group cannot be pruned, None where it can.
        classes: the equivalence classes of every group that can be pruned.
    """

    of_index: NDArray[np.int64]
    group_of: NDArray[np.int64]
    first: list[tuple[int, int]]
    indices: list[Indices]
    reasons: list[str | None]
    classes: list[EquivalenceClasses] = field(default_factory=list)


@dataclass(frozen=True)
class _Components:
    """Connected components of the couplings.

    of: the component of every channel index. count: their number. first_op, first_index: where each is first produced.
    reason: number of the fact that fixes it, -1 for none. signature: equal for equal sets of parameter dimensions.
    """

    of: Indices
    count: int
    first_op: Indices
    first_index: Indices
    reason: Indices
    signature: NDArray[np.uint64]

    def earliest(self, members: Indices) -> tuple[int, int]:
        """The first operation, and its first channel index, that produces one of these components."""
        m = members[np.lexsort((self.first_index[members], self.first_op[members]))[0]]
        return int(self.first_op[m]), int(self.first_index[m])


def find_coupled_channels(graph: CouplingGraph, dimension_of_index: NDArray[np.int64]) -> CoupledChannels:
    """Group what is coupled.

    Args:
        graph: all facts about the network.
        dimension_of_index: a number for the parameter dimension that each channel index belongs to.
    """
    # 1. Components of the couplings, and which of them can go: produced by a weight, and fixed by nothing.
    #    What no weight produces (a norm directly on the inputs) has nothing that could be cut.
    components = _describe(graph, dimension_of_index)
    # Memory that is filled later has indices too: where it meets no parameter's dimension, it is no channel.
    produced = (components.first_op < NEVER) & (components.signature != 0)
    by_index = np.lexsort((np.arange(components.count), components.first_index))
    channels = by_index[(produced & (components.reason < 0))[by_index]]
    fixed = by_index[(produced & (components.reason >= 0))[by_index]]

    # 2. Coupled channels are numbered by their first index, so that numbers follow the order of the parameters.
    channel_of_component = np.full(components.count, -1, dtype=np.int64)
    channel_of_component[channels] = np.arange(len(channels))
    of_index = channel_of_component[components.of]
    # Index 0 is "fixed" itself and would take part in the numbering as a component of its own.
    of_index[0] = -1
    # 3. Groups: channels that occur in the same parameter dimensions, joined where one constraint spans several.
    equal_counts = _channel_rows(graph, of_index)
    group_of = _merge(components.signature[channels], equal_counts)
    n_groups = int(group_of.max()) + 1 if len(group_of) else 0

    groups = [channels[group_of == g] for g in range(n_groups)]
    fixed_groups = [fixed[components.signature[fixed] == key] for key in np.unique(components.signature[fixed])]
    members_of = _IndicesOfComponents(components.of, components.count)
    texts = [text for _, text in graph.fixed]
    reasons = [components.reason[members[0]] for members in fixed_groups]
    return CoupledChannels(
        of_index=of_index,
        group_of=group_of,
        first=[components.earliest(members) for members in [*groups, *fixed_groups]],
        indices=[members_of.of(members) for members in [*groups, *fixed_groups]],
        reasons=[None] * n_groups + [texts[r] if r < len(texts) else "meets something of fixed size" for r in reasons],
        classes=_equivalence_classes(group_of, n_groups, components.signature[channels], equal_counts),
    )


def _describe(graph: CouplingGraph, dimension_of_index: Indices) -> _Components:
    component, count = _components(graph)
    first_op, first_index = _first_production(graph, component, count)
    return _Components(
        component,
        count,
        first_op,
        first_index,
        _fixed_reasons(graph, component, count),
        _signatures(component, dimension_of_index, count),
    )


def _components(graph: CouplingGraph) -> tuple[NDArray[np.int64], int]:
    """The component of every channel index, and their number."""
    if not graph.couplings:
        return np.arange(graph.size), graph.size
    a, b = (np.concatenate([pair[i] for pair in graph.couplings]) for i in (0, 1))
    # 0 means "fixed" and is no channel index: as a node it would join all that meets something fixed.
    real = (a != 0) & (b != 0)
    a, b = a[real], b[real]
    links = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(graph.size, graph.size))
    count, component = connected_components(links, directed=False)
    return component.astype(np.int64), int(count)


def _first_production(graph: CouplingGraph, component: Indices, count: int) -> tuple[Indices, Indices]:
    """The first operation that produces each component (NEVER for none), and its first channel index there."""
    op = np.full(count, NEVER, dtype=np.int64)
    first_index = np.full(count, graph.size, dtype=np.int64)
    # From the last to the first: with repeated places numpy keeps what is written last, so the earliest wins.
    for number, indices in reversed(graph.produced):
        flat = indices.ravel()
        flat = flat[flat != 0]
        op[component[flat]] = number
        first_index[component[flat[::-1]]] = flat[::-1]
    return op, first_index


def _fixed_reasons(graph: CouplingGraph, component: Indices, count: int) -> Indices:
    """Number of the first fact that fixes each component, -1 for none; one more than the last: it meets index 0."""
    unnamed = len(graph.fixed)
    reason = np.full(count, -1, dtype=np.int64)
    for a, b in graph.couplings:
        for x, y in ((a, b), (b, a)):
            if (y == 0).any():
                reason[component[x[y == 0]]] = unnamed
    # Backwards, so that the first reason stays: it is nearest to where the channels come from.
    for i in range(len(graph.fixed) - 1, -1, -1):
        reason[component[graph.fixed[i][0]]] = i
    for rows in graph.equal_counts.values():
        if rows.shape[1] == 1:  # rows of one index each: they stay, or a whole dimension would go
            found = component[rows.ravel()]
            reason[found] = np.where(reason[found] < 0, unnamed, reason[found])
    return reason


def _signatures(component: Indices, dimension_of_index: Indices, count: int) -> NDArray[np.uint64]:
    """A number for the set of parameter dimensions in which each component occurs."""
    # The sum of one random number for each member of the set: equal sets have equal sums, and different ones collide
    # with a probability of about 2**-64. Sets of Python objects take minutes for large networks.
    n_dimensions = int(dimension_of_index.max()) + 1
    pairs = distinct(component * n_dimensions + dimension_of_index)
    hashes = _hashes(n_dimensions)
    hashes[0] = 0
    signature = np.zeros(count, dtype=np.uint64)
    np.add.at(signature, pairs // n_dimensions, hashes[pairs % n_dimensions])
    return signature


def _hashes(n: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(1, 2**63, size=n, dtype=np.uint64)


class _IndicesOfComponents:
    """The channel indices of components, sorted once for all of them."""

    def __init__(self, component: Indices, count: int) -> None:
        self.order = np.argsort(component, kind="stable")
        self.ends = np.cumsum(np.bincount(component, minlength=count))

    def of(self, members: Indices) -> Indices:
        starts = np.where(members > 0, self.ends[members - 1], 0)
        return np.concatenate([self.order[a:b] for a, b in zip(starts.tolist(), self.ends[members].tolist())])


def _channel_rows(graph: CouplingGraph, of_index: Indices) -> list[Indices]:
    """The equal-count constraints over coupled channels instead of channel indices, each different one once."""
    found: dict[tuple[tuple[int, ...], bytes], Indices] = {}
    for rows in graph.equal_counts.values():
        # Neither the order inside a row nor that of the rows matters to a count.
        channels = np.unique(np.sort(of_index[rows], axis=1), axis=0)
        if len(channels) > 1 and (channels >= 0).any():
            found.setdefault((channels.shape, channels.tobytes()), channels)
    return list(found.values())


def _merge(signature: NDArray[np.uint64], equal_counts: Sequence[Indices]) -> Indices:
    """Number of the group of every coupled channel, in the order of their first channels."""
    if not len(signature):
        return np.zeros(0, dtype=np.int64)
    _, of_channel = np.unique(signature, return_inverse=True)
    # Union-find: sets of dimensions that meet in one constraint are one group.
    parent = list(range(int(of_channel.max()) + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for channels in equal_counts:
        present = np.unique(of_channel[channels[channels >= 0]]).tolist()
        for other in present[1:]:
            parent[root(other)] = root(present[0])
    # `unique` sorts by root; ranking the roots by their first channel gives groups in the order of the network.
    roots = np.array([root(i) for i in range(len(parent))])[of_channel]
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[inverse].astype(np.int64)


def _equivalence_classes(
    group_of: Indices, n_groups: int, signature: NDArray[np.uint64], equal_counts: Sequence[Indices]
) -> list[EquivalenceClasses]:
    """The classes of every group, with the constraints as matrices over their counts."""
    # A channel's class: its dimensions, and how often each row of each constraint has it. Summed random numbers again.
    key = signature.copy()
    owned: list[list[Indices]] = [[] for _ in range(n_groups)]
    # Channels are interchangeable for a constraint if each of its rows has them equally often: a random number for
    # each row is added once for every occurrence, so equal sums mean equal occurrences.
    for i, channels in enumerate(equal_counts):
        real = channels >= 0
        hashes = np.broadcast_to(_hashes(len(channels), seed=i + 1)[:, None], channels.shape)
        with np.errstate(over="ignore"):
            np.add.at(key, channels[real], hashes[real])
        owned[int(group_of[channels[real][0]])].append(channels)
    result = []
    for g in range(n_groups):
        members = np.flatnonzero(group_of == g)
        _, class_index = np.unique(key[members], return_inverse=True)
        n_classes = int(class_index.max()) + 1
        # Everything that is not of this group, and the place of -1, counts in one more column: the constant part.
        class_of = np.full(len(group_of) + 1, n_classes, dtype=np.int64)
        class_of[members] = class_index
        sizes = np.bincount(class_index, minlength=n_classes)
        found = [_as_matrix(class_of[channels], sizes) for channels in owned[g]]
        matrices = [(rows[:, :-1], rows[:, -1]) for rows in found if len(rows) > 1]
        result.append(EquivalenceClasses([members[class_index == c] for c in range(n_classes)], matrices))
    return result


def _as_matrix(classes: Indices, sizes: Indices) -> Indices:
    """One constraint as different rows of coefficients, the constant part last; classes: of every element."""
    # Row r keeps sum over classes of (occurrences of the class in r / its size) x count, plus the constant part.
    counted = np.zeros((len(classes), len(sizes) + 1), dtype=np.int64)
    row = np.broadcast_to(np.arange(len(classes))[:, None], classes.shape)
    np.add.at(counted, (row.ravel(), classes.ravel()), 1)
    # Every member of a class occurs equally often in a row, so the occurrences divide by the size of the class.
    matrix, constant = counted[:, :-1] // sizes, counted[:, -1]
    return np.unique(np.hstack([matrix, constant[:, None]]), axis=0)
