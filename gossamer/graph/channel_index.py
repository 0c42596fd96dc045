"""Which channel indices each element of each tensor of a trace goes with.

A channel index is one position of one dimension of one parameter or buffer. Indices are numbered from 1 over the whole
network; 0 means "fixed". A tensor carries, for every dimension that can shrink, an integer array of channel indices
with the tensor's rank and size 1 where it does not vary. Parameters and activations are described alike.

Operations only append facts to the `CouplingGraph`: couplings (removed together), equal counts (every row keeps the
same number), and fixed indices (never removed, and why). Nothing is decided until all operations have been seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Shape = tuple[int, ...]
# Positions of one dimension that stay; for the second dimension of a grouped convolution one list for each group.
Kept = list[int] | list[list[int]]


@dataclass(slots=True)
class IndexedValue:
    """The channel indices of one tensor of a trace.

    Args:
        axes: for every dimension that can shrink, the channel indices of its positions: an array of the tensor's rank,
            size 1 along dimensions on which the indices do not depend.
        free: dimensions of any size, because one value is repeated along them.
        view: whether it shares memory with another tensor.
        lost: why it has no channel indices, where its parameter or what it was computed from had some.
    """

    axes: dict[int, Indices] = field(default_factory=dict)
    free: frozenset[int] = frozenset()
    view: bool = False
    lost: str = ""


@dataclass
class CouplingGraph:
    """The facts that the operations of a network state about its channel indices.

    Args:
        size: one more than the largest channel index.
        parameters: the axes of every parameter and buffer, by name.
        couplings: pairs of arrays; what stands at the same place is removed together.
        equal_counts: matrices of channel indices; all rows of one matrix keep the same number.
        fixed: channel indices that cannot be removed, with the reason.
        produced: channel indices that a weighted operation produces, with the number of the operation.
    """

    size: int = 1
    parameters: dict[str, IndexedValue] = field(default_factory=dict)
    couplings: list[tuple[Indices, Indices]] = field(default_factory=list)
    equal_counts: dict[tuple[Shape, bytes], Indices] = field(default_factory=dict)
    fixed: list[tuple[Indices, str]] = field(default_factory=list)
    produced: list[tuple[int, Indices]] = field(default_factory=list)

    def new_indices(self, count: int) -> Indices:
        """Number `count` new channel indices, shape (count,)."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def couple(self, a: Indices, b: Indices) -> None:
        """State that what stands at the same place of two arrays is removed together."""
        if a is not b:
            # An index array of size 1 along a dimension stands for the same index all along it.
            a, b = np.broadcast_arrays(a, b)
            self.couplings.append((a.ravel(), b.ravel()))

    def couple_along(self, indices: Indices, dim: int) -> Indices:
        """State that everything along a dimension is removed together; returns the array with size 1 there."""
        if indices.shape[dim] == 1:
            return indices
        # Coupling all with the first is enough: `find_coupled_channels` takes connected components.
        first = indices.take([0], axis=dim)
        self.couple(indices, first)
        return first

    def fix(self, indices: Indices, reason: str) -> None:
        """State that these channel indices cannot be removed."""
        self.fixed.append((distinct(indices), reason))

    def require_equal_counts(self, indices: Indices, dim: int) -> None:
        """State that every line of the array along `dim` keeps the same number of channel indices."""
        # A tensor stays rectangular only if each of its lines loses the same number of elements.
        rows = np.ascontiguousarray(np.moveaxis(indices, dim, -1)).reshape(-1, indices.shape[dim])
        if len(rows) > 1:  # the bytes are the key: deep networks state the same fact many times
            self.equal_counts.setdefault((rows.shape, rows.tobytes()), rows)


def distinct(numbers: Indices) -> Indices:
    """The different numbers in ascending order; ten times as fast as `np.unique` on long runs of integers."""
    ordered: Indices = np.sort(numbers, axis=None)
    result: Indices = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return result


def is_constant(indices: Indices, dim: int) -> bool:
    """Whether nothing changes along the dimension."""
    return bool((indices == indices.take([0], axis=dim)).all())


def regroup(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The dimensions of the old and the new shape that a view maps to each other, in order.

    Each pair is as small as possible: (6, 4) to (2, 3, 4) gives [([0], [0, 1]), ([1], [2])].
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = list(range(i, min(i + 1, len(old)))), list(range(j, min(j + 1, len(new))))
        i, j = i + 1, j + 1
        a, b = (old[olds[0]] if olds else 1), (new[news[0]] if news else 1)
        # The smaller side takes its next dimension until both hold the same number of elements.
        while a != b:
            if a < b:
                a *= old[i]
                olds.append(i)
                i += 1
            else:
                b *= new[j]
                news.append(j)
                j += 1
        groups.append((olds, news))
    return groups


Choose = Callable[[Sequence[int], Shape], int]


def last(dims: Sequence[int], shape: Shape) -> int:
    """Of the dimensions that a channel dimension is split into, the last one shrinks: heads and groups stay."""
    return dims[-1]


def first(dims: Sequence[int], shape: Shape) -> int:
    """Of the dimensions that a channel dimension is split into, the first one shrinks."""
    return dims[0]


def reshape(
    graph: CouplingGraph, value: IndexedValue, old: Shape, new: Shape, where: str, choose: Choose = last
) -> IndexedValue:
    """The channel indices of a view: the same reshape, done on the index arrays.

    Args:
        graph: receives the facts that the view implies.
        value: what is known of the tensor before the view.
        old: its shape before.
        new: its shape after.
        where: the operation and its place, for reasons.
        choose: which of several new dimensions shrinks where a channel dimension is split.

    Returns:
        What is known of the tensor after the view.
    """
    if not value.axes and not value.free:
        return IndexedValue(view=True)
    # A view moves no element, so reshaping the index arrays alike keeps every index with its element.
    groups = regroup(old, new)
    axes: dict[int, Indices] = {}
    for axis in sorted(value.axes):
        indices = value.axes[axis]
        # Only the dimensions that `axis` is merged or split with decide what becomes of it.
        home = next(group for group in groups if axis in group[0])
        for d in home[0]:
            # Merging (c, d): elements of row c follow each other. If rows kept different positions of d, compaction
            # would move elements between positions, so all rows must keep the same ones.
            if d > axis and indices.shape[d] > 1:
                indices = graph.couple_along(indices, d)
        # Index arrays are expanded only in the groups of dimensions in which they vary: they stay small.
        wide, target = list(indices.shape), [1] * len(new)
        for olds, news in groups:
            if any(indices.shape[d] > 1 for d in olds):
                for d in olds:
                    wide[d] = old[d]
                for d in news:
                    target[d] = new[d]
        indices = np.broadcast_to(indices, wide).reshape(target)
        # Back to size 1 where nothing varies: only real variation counts below.
        for d, size in enumerate(target):
            if size > 1 and is_constant(indices, d):
                indices = indices.take([0], axis=d)
        varying = [d for d in home[1] if indices.shape[d] > 1]
        if not varying:
            graph.fix(indices, f"a dimension of size 1 after {where}")
            continue
        # Only one of the new dimensions can shrink: heads, or channels of a head, but not both.
        new_axis = choose(varying, new)
        for d in varying:
            if d > new_axis:
                indices = graph.couple_along(indices, d)
        graph.require_equal_counts(indices, new_axis)
        if new_axis in axes:
            graph.fix(axes[new_axis], f"two kinds of channels in one dimension after {where}")
        axes[new_axis] = indices
    free = frozenset(n[0] for o, n in groups if len(o) == len(n) == 1 and o[0] in value.free)
    return IndexedValue(axes, free, view=True)


def permute(value: IndexedValue, dims: Sequence[int]) -> IndexedValue:
    """Dimensions in another order."""
    # dims[i] is the old dimension at the new place i; `place` is its inverse.
    place = {d: i for i, d in enumerate(dims)}
    return IndexedValue(
        {place[axis]: indices.transpose(dims) for axis, indices in value.axes.items()},
        frozenset(place[d] for d in value.free),
        view=True,
    )


# A tensor with a label for each of its dimensions, as an operand of einsum.
Operand = tuple[IndexedValue, Shape, Sequence[int]]


def join_values(graph: CouplingGraph, operands: Sequence[Operand], out: Sequence[int], where: str) -> IndexedValue:
    """Let operands meet as in einsum: dimensions with the same label run together.

    Channel indices that meet on one label are coupled. An operand that has a real size on a label but no channel
    indices for it fixes those of the others, unless it is free there.

    Args:
        graph: receives the facts.
        operands: tensors with their shapes and the labels of their dimensions.
        out: labels of the result's dimensions; a label that is missing here is contracted.
        where: the operation and its place, for reasons.

    Returns:
        What is known of the result.
    """
    labels = sorted({label for _, _, names in operands for label in names} | set(out))
    position = {label: i for i, label in enumerate(labels)}
    # All index arrays in one common layout, one dimension for each label, so that they broadcast against each other.
    found: dict[int, list[Indices]] = {}
    for value, _, names in operands:
        for dim, indices in value.axes.items():
            order = sorted(range(indices.ndim), key=lambda d: position[names[d]])
            shape = [1] * len(labels)
            for d in order:
                shape[position[names[d]]] = indices.shape[d]
            found.setdefault(names[dim], []).append(indices.transpose(order).reshape(shape))
    axes: dict[int, Indices] = {}
    for label, arrays in found.items():
        if met := _of_fixed_size(operands, label):
            cause = next((f" ({value.lost})" for value in met if value.lost and not value.axes), "")
            for indices in arrays:
                graph.fix(indices, f"meets something of fixed size at {where}{cause}")
            continue
        indices = min(arrays, key=lambda array: array.size)
        for other in arrays:
            graph.couple(indices, other)
        if label not in out:
            continue  # contracted: the coupling of the operands is all that is left of it
        # The result has no dimension for a contracted label, so its indices must not depend on it.
        for contracted in labels:
            if contracted not in out:
                indices = graph.couple_along(indices, position[contracted])
        kept = indices.reshape([n for a, n in zip(labels, indices.shape) if a in out])
        ordered = sorted(out)
        axes[list(out).index(label)] = kept.transpose([ordered.index(a) for a in out])
    free = frozenset(i for i, label in enumerate(out) if label not in found and _is_free(operands, label))
    return IndexedValue(axes, free)


def _of_fixed_size(operands: Sequence[Operand], label: int) -> list[IndexedValue]:
    """The operands that have more than one element along the label, of which nothing is known."""
    return [
        value
        for value, shape, names in operands
        for d in range(len(shape))
        if names[d] == label and shape[d] > 1 and d not in value.axes and d not in value.free
    ]


def _is_free(operands: Sequence[Operand], label: int) -> bool:
    sizes = [
        (shape[d], d in value.free) for value, shape, names in operands for d in range(len(shape)) if names[d] == label
    ]
    return any(free for _, free in sizes) and all(free or size == 1 for size, free in sizes)


def broadcast(graph: CouplingGraph, operands: Sequence[tuple[IndexedValue, Shape]], where: str) -> IndexedValue:
    """Operands of an elementwise operation, aligned at their last dimensions."""
    rank = max(len(shape) for _, shape in operands)
    return join_values(graph, [(v, s, range(rank - len(s), rank)) for v, s in operands], range(rank), where)
