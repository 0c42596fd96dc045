"""From ties, rows and pins to units: what is cut together, in which groups, and which counts are possible."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gossamer.graph.channel_index import CouplingGraph, Slots, distinct

Mask = NDArray[np.bool_]


@dataclass
class EquivalenceClasses:
    """Units of a group that are alike to every constraint. members: unit numbers of each cell; rows: pairs of a matrix
    (rows, cells) and a constant (rows,): `matrix @ counts + constant` must be the same number in every row."""

    members: list[NDArray[np.int64]]
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([len(m) for m in self.members], dtype=np.int64)

    @property
    def parts(self) -> int:
        """The group can keep any multiple of 1/parts of itself."""
        return math.gcd(*self.sizes.tolist()) if self.rows else int(self.sizes.sum())

    def allowed(self, counts: NDArray[np.int64]) -> bool:
        """Whether every constraint holds."""
        return all(len(set((matrix @ counts + constant).tolist())) == 1 for matrix, constant in self.rows)

    def counts(self, fraction: float, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Counts to keep in each cell, nearest to the fraction: at least 1, and every constraint holds.

        held: units (of the whole network) that must stay.
        """
        least = np.array([max(1, int(held[m].sum())) for m in self.members], dtype=np.int64)
        wanted = np.maximum(self.sizes * fraction, least)
        near: NDArray[np.int64] = np.floor(wanted + 0.5).astype(np.int64)
        if self.allowed(near):
            return near
        parts = self.parts
        if parts > 1:
            j = min(max(int(fraction * parts + 0.5), 1), parts)
            exact: NDArray[np.int64] = self.sizes * j // parts
            if self.allowed(exact) and bool((exact >= least).all()):
                return exact
        return self._programmed(wanted, least)

    def _programmed(self, wanted: NDArray[Any], least: NDArray[np.int64]) -> NDArray[np.int64]:
        n = len(self.members)
        differences, constants = [], []
        for matrix, constant in self.rows:
            differences.append(matrix[1:] - matrix[:1])
            constants.append(constant[0] - constant[1:])
        equal, right = np.concatenate(differences), np.concatenate(constants)
        eye = np.eye(n)
        constraints = [
            LinearConstraint(np.hstack([equal, np.zeros_like(equal)]), right, right),
            LinearConstraint(np.hstack([eye, -eye]), -np.inf, wanted),
            LinearConstraint(np.hstack([eye, eye]), wanted, np.inf),
        ]
        solved = milp(
            np.concatenate([np.zeros(n), np.ones(n)]),
            constraints=constraints,
            integrality=np.concatenate([np.ones(n), np.zeros(n)]),
            bounds=Bounds(np.concatenate([least, np.zeros(n)]), np.concatenate([self.sizes, self.sizes])),
            options={"time_limit": 5.0},
        )
        return self.sizes if solved.x is None else np.round(solved.x[:n]).astype(np.int64)


@dataclass
class CoupledUnits:
    """of_slot: unit of every slot, -1 where it stays. group_of: group of every unit. first: for every group, pinned
    ones after the others, the operation and the slot that first produce it. reasons: why a group cannot be cut."""

    of_slot: NDArray[np.int64]
    group_of: NDArray[np.int64]
    first: list[tuple[int, int]]
    slots: list[Slots]
    reasons: list[str | None]
    cells: list[EquivalenceClasses] = field(default_factory=list)


def find_units(graph: CouplingGraph, kind_of_slot: NDArray[np.int64]) -> CoupledUnits:
    """Connected components of the ties; those that a weighted operation produces and nothing pins are units.

    kind_of_slot: a number for the parameter dimension that a slot belongs to. Units that occur in the same parameter
    dimensions form a group, and groups whose counts depend on each other are one.
    """
    component, count = _components(graph)
    first_op, first_slot = _first_emission(graph, component, count)
    reason = _pinned(graph, component, count)
    kinds = int(kind_of_slot.max()) + 1
    signature = _signatures(component, kind_of_slot, count, kinds)
    made = first_op < np.iinfo(np.int64).max
    free = made & (reason < 0)
    order = np.lexsort((np.arange(count), first_slot))
    units = order[free[order]]
    unit_of_component = np.full(count, -1, dtype=np.int64)
    unit_of_component[units] = np.arange(len(units))
    of_slot = unit_of_component[component]
    of_slot[0] = -1
    rows = _unit_rows(graph, of_slot)
    group_of = _merge(signature[units], rows)
    fixed = order[(made & (reason >= 0))[order]]
    slots_of = _Slots(component, count)
    n_groups = int(group_of.max()) + 1 if len(group_of) else 0
    first: list[tuple[int, int]] = []
    slots: list[Slots] = []
    reasons: list[str | None] = []
    for members in [units[group_of == g] for g in range(n_groups)]:
        first.append(_earliest(members, first_op, first_slot))
        slots.append(slots_of.of(members))
        reasons.append(None)
    texts = [text for _, text in graph.pins]
    for key in np.unique(signature[fixed]):
        members = fixed[signature[fixed] == key]
        first.append(_earliest(members, first_op, first_slot))
        slots.append(slots_of.of(members))
        why = reason[members[0]]
        reasons.append(texts[why] if why < len(texts) else "meets something of fixed size")
    result = CoupledUnits(of_slot, group_of, first, slots, reasons)
    result.cells = _cells(group_of, n_groups, signature[units], rows)
    return result


def _components(graph: CouplingGraph) -> tuple[NDArray[np.int64], int]:
    if not graph.ties:
        return np.arange(graph.size), graph.size
    a, b = (np.concatenate([pair[i] for pair in graph.ties]) for i in (0, 1))
    real = (a != 0) & (b != 0)
    a, b = a[real], b[real]
    links = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(graph.size, graph.size))
    count, component = connected_components(links, directed=False)
    return component.astype(np.int64), int(count)


def _first_emission(graph: CouplingGraph, component: Slots, count: int) -> tuple[Slots, Slots]:
    op = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
    slot = np.full(count, graph.size, dtype=np.int64)
    for index, t in reversed(graph.emitted):
        flat = t.ravel()
        flat = flat[flat != 0]
        op[component[flat]] = index
        slot[component[flat[::-1]]] = flat[::-1]
    return op, slot


def _pinned(graph: CouplingGraph, component: Slots, count: int) -> Slots:
    reason = np.full(count, -1, dtype=np.int64)
    for a, b in graph.ties:
        for x, y in ((a, b), (b, a)):
            if (y == 0).any():
                reason[component[x[y == 0]]] = len(graph.pins)
    for i in range(len(graph.pins) - 1, -1, -1):
        reason[component[graph.pins[i][0]]] = i
    for rows in graph.rows.values():
        if rows.shape[1] == 1:
            reason[component[rows.ravel()]] = np.where(
                reason[component[rows.ravel()]] < 0, len(graph.pins), reason[component[rows.ravel()]]
            )
    return reason


def _signatures(component: Slots, kind: Slots, count: int, kinds: int) -> NDArray[np.uint64]:
    pairs = distinct(component * kinds + kind)
    hashes = _hashes(kinds)
    hashes[0] = 0
    signature = np.zeros(count, dtype=np.uint64)
    np.add.at(signature, pairs // kinds, hashes[pairs % kinds])
    return signature


def _hashes(n: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(1, 2**63, size=n, dtype=np.uint64)


class _Slots:
    """Slots of components."""

    def __init__(self, component: Slots, count: int) -> None:
        self.order = np.argsort(component, kind="stable")
        self.ends = np.cumsum(np.bincount(component, minlength=count))

    def of(self, members: Slots) -> Slots:
        starts = np.where(members > 0, self.ends[members - 1], 0)
        return np.concatenate([self.order[a:b] for a, b in zip(starts.tolist(), self.ends[members].tolist())])


def _earliest(members: Slots, first_op: Slots, first_slot: Slots) -> tuple[int, int]:
    m = members[np.lexsort((first_slot[members], first_op[members]))[0]]
    return int(first_op[m]), int(first_slot[m])


def _unit_rows(graph: CouplingGraph, of_slot: Slots) -> list[Slots]:
    found: dict[tuple[tuple[int, ...], bytes], Slots] = {}
    for rows in graph.rows.values():
        units = np.sort(of_slot[rows], axis=1)
        units = np.unique(units, axis=0)
        if len(units) > 1 and (units >= 0).any():
            found.setdefault((units.shape, units.tobytes()), units)
    return list(found.values())


def _merge(signature: NDArray[np.uint64], rows: Sequence[Slots]) -> Slots:
    """Number of the group of every unit, in the order of their first units."""
    if not len(signature):
        return np.zeros(0, dtype=np.int64)
    _, of_unit = np.unique(signature, return_inverse=True)
    parent = list(range(int(of_unit.max()) + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for units in rows:
        present = np.unique(of_unit[units[units >= 0]]).tolist()
        for other in present[1:]:
            parent[root(other)] = root(present[0])
    roots = np.array([root(i) for i in range(len(parent))])[of_unit]
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[inverse].astype(np.int64)


def _cells(
    group_of: Slots, n_groups: int, signature: NDArray[np.uint64], rows: Sequence[Slots]
) -> list[EquivalenceClasses]:
    n = len(group_of)
    key = signature.copy()
    owned: list[list[Slots]] = [[] for _ in range(n_groups)]
    for i, units in enumerate(rows):
        real = units >= 0
        hashes = np.broadcast_to(_hashes(len(units), seed=i + 1)[:, None], units.shape)
        with np.errstate(over="ignore"):
            np.add.at(key, units[real], hashes[real])
        owned[int(group_of[units[real][0]])].append(units)
    result = []
    for g in range(n_groups):
        members = np.flatnonzero(group_of == g)
        _, cell = np.unique(key[members], return_inverse=True)
        n_cells = int(cell.max()) + 1
        cell_of = np.full(n + 1, n_cells, dtype=np.int64)
        cell_of[members] = cell
        matrices = []
        for units in owned[g]:
            full = np.zeros((len(units), n_cells + 1), dtype=np.int64)
            line = np.broadcast_to(np.arange(len(units))[:, None], units.shape)
            np.add.at(full, (line.ravel(), cell_of[units].ravel()), 1)
            sizes = np.bincount(cell, minlength=n_cells)
            matrix, constant = full[:, :n_cells] // sizes, full[:, n_cells]
            unique = np.unique(np.hstack([matrix, constant[:, None]]), axis=0)
            if len(unique) > 1:
                matrices.append((unique[:, :-1], unique[:, -1]))
        result.append(EquivalenceClasses([members[cell == c] for c in range(n_cells)], matrices))
    return result
