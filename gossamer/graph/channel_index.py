"""Which parameter slots each element of each tensor of a trace goes with.

A slot is one index of one dimension of one parameter or buffer; slots are numbered from 1, and 0 means "fixed".
A tensor carries, for every dimension that can shrink, an integer array of slots that has the tensor's rank and size 1
where it does not vary. Parameters and activations are the same thing. Going through the operations only ever appends
facts to the Graph: ties (cut together), rows (every row keeps the same count), pins (cannot be cut, and why).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(slots=True)
class Value:
    """What is known of a tensor. layers: slots by the dimension that shrinks; free: dimensions of any size, because
    one value is repeated along them; view: it shares memory with another tensor."""

    layers: dict[int, Slots] = field(default_factory=dict)
    free: frozenset[int] = frozenset()
    view: bool = False


@dataclass
class CouplingGraph:
    """The facts. parameters: layers by name; emitted: slots that a weighted operation produces, with its index."""

    size: int = 1
    parameters: dict[str, Value] = field(default_factory=dict)
    ties: list[tuple[Slots, Slots]] = field(default_factory=list)
    rows: dict[tuple[Shape, bytes], Slots] = field(default_factory=dict)
    pins: list[tuple[Slots, str]] = field(default_factory=list)
    emitted: list[tuple[int, Slots]] = field(default_factory=list)

    def fresh(self, count: int) -> Slots:
        """New slots."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def tie(self, a: Slots, b: Slots) -> None:
        """What stands at the same place goes together."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self.ties.append((a.ravel(), b.ravel()))

    def tie_along(self, t: Slots, dim: int) -> Slots:
        """Everything along a dimension goes together; the array without it (size 1)."""
        if t.shape[dim] == 1:
            return t
        first = t.take([0], axis=dim)
        self.tie(t, first)
        return first

    def pin(self, t: Slots, reason: str) -> None:
        """Cannot be cut."""
        self.pins.append((distinct(t), reason))

    def even(self, t: Slots, dim: int) -> None:
        """Every row along `dim` keeps the same count."""
        rows = np.ascontiguousarray(np.moveaxis(t, dim, -1)).reshape(-1, t.shape[dim])
        if len(rows) > 1:
            self.rows.setdefault((rows.shape, rows.tobytes()), rows)


def distinct(numbers: Slots) -> Slots:
    """The different numbers, in order; `np.unique` takes ten times as long for long runs of integers."""
    ordered: Slots = np.sort(numbers, axis=None)
    result: Slots = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return result


def is_constant(t: Slots, dim: int) -> bool:
    """Nothing changes along the dimension."""
    return bool((t == t.take([0], axis=dim)).all())


def regroup(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Dimensions of the old and the new shape that a view maps to each other, smallest groups first to last."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = list(range(i, min(i + 1, len(old)))), list(range(j, min(j + 1, len(new))))
        i, j = i + 1, j + 1
        a, b = (old[olds[0]] if olds else 1), (new[news[0]] if news else 1)
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


def reshape(graph: CouplingGraph, value: Value, old: Shape, new: Shape, where: str, choose: Choose = last) -> Value:
    """A view. Slots are expanded only in the groups of dimensions in which they vary."""
    if not value.layers and not value.free:
        return Value(view=True)
    groups = regroup(old, new)
    layers: dict[int, Slots] = {}
    for f in sorted(value.layers):
        t = value.layers[f]
        home = next(group for group in groups if f in group[0])
        for d in home[0]:
            if d > f and t.shape[d] > 1:  # compaction would change the order if these kept different places
                t = graph.tie_along(t, d)
        wide, target = list(t.shape), [1] * len(new)
        for olds, news in groups:
            if any(t.shape[d] > 1 for d in olds):
                for d in olds:
                    wide[d] = old[d]
                for d in news:
                    target[d] = new[d]
        t = np.broadcast_to(t, wide).reshape(target)
        for d, size in enumerate(target):
            if size > 1 and is_constant(t, d):
                t = t.take([0], axis=d)
        varying = [d for d in home[1] if t.shape[d] > 1]
        if not varying:
            graph.pin(t, f"a dimension of size 1 after {where}")
            continue
        f_new = choose(varying, new)
        for d in varying:
            if d > f_new:
                t = graph.tie_along(t, d)
        graph.even(t, f_new)
        if f_new in layers:
            graph.pin(layers[f_new], f"two kinds of channels in one dimension after {where}")
        layers[f_new] = t
    free = frozenset(n[0] for o, n in groups if len(o) == len(n) == 1 and o[0] in value.free)
    return Value(layers, free, view=True)


def permute(value: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    place = {d: i for i, d in enumerate(dims)}
    return Value(
        {place[f]: t.transpose(dims) for f, t in value.layers.items()},
        frozenset(place[d] for d in value.free),
        view=True,
    )


Operand = tuple[Value, Shape, Sequence[int]]


def join(graph: CouplingGraph, operands: Sequence[Operand], out: Sequence[int], where: str) -> Value:
    """Operands whose dimensions have axis numbers meet, as in einsum; axes that are not in `out` are contracted.

    Slots that meet on one axis are tied. An operand that has a real size on an axis but no slots for it fixes the
    others, unless it is free there.
    """
    axes = sorted({a for _, _, names in operands for a in names} | set(out))
    place = {a: i for i, a in enumerate(axes)}
    found: dict[int, list[Slots]] = {}
    for value, _, names in operands:
        for f, t in value.layers.items():
            order = sorted(range(t.ndim), key=lambda d: place[names[d]])
            shape = [1] * len(axes)
            for d in order:
                shape[place[names[d]]] = t.shape[d]
            found.setdefault(names[f], []).append(t.transpose(order).reshape(shape))
    layers: dict[int, Slots] = {}
    for axis, arrays in found.items():
        bare = any(
            shape[d] > 1 and d not in value.layers and d not in value.free
            for value, shape, names in operands
            for d in range(len(shape))
            if names[d] == axis
        )
        if bare:
            for t in arrays:
                graph.pin(t, f"meets something of fixed size at {where}")
            continue
        t = min(arrays, key=lambda array: array.size)
        for other in arrays:
            graph.tie(t, other)
        if axis not in out:
            continue
        for a in axes:
            if a not in out:
                t = graph.tie_along(t, place[a])
        kept = t.reshape([n for a, n in zip(axes, t.shape) if a in out])
        ordered = sorted(out)
        layers[list(out).index(axis)] = kept.transpose([ordered.index(a) for a in out])
    free = frozenset(i for i, a in enumerate(out) if a not in found and _free_axis(operands, a))
    return Value(layers, free)


def _free_axis(operands: Sequence[Operand], axis: int) -> bool:
    sizes = [
        (shape[d], d in value.free) for value, shape, names in operands for d in range(len(shape)) if names[d] == axis
    ]
    return any(free for _, free in sizes) and all(free or size == 1 for size, free in sizes)


def broadcast(graph: CouplingGraph, operands: Sequence[tuple[Value, Shape]], where: str) -> Value:
    """Operands of an elementwise operation, aligned at their last dimensions."""
    rank = max(len(shape) for _, shape in operands)
    return join(graph, [(v, s, range(rank - len(s), rank)) for v, s in operands], range(rank), where)
