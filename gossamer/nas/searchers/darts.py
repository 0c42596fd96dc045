"""DARTS: one supernet of all cells is trained, with weights for its operations; the largest weights are the cell.

Source: Liu et al. 2019, arXiv:1806.09055, section 2.4 (two states of every block, by their strongest operations); Xu et
al. 2020, arXiv:1907.05737, section 3.3 (strength: weight of the edge times that of the operation); Liang et al. 2019,
arXiv:1909.06035 (DARTS+: at most two skip connections in the normal cell).
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import BadInput
from gossamer.nas.cells import Block, CellSpace
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space

SKIP, SKIPS = "same", 2  # of a normal cell, at most
TINY = 1e-12  # of a share, so that something can be drawn where one share is all
Array = NDArray[np.float64]


def _softmax(weights: Array) -> Array:
    """Softmax along the last dimension."""
    raised = np.exp(weights - weights.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def _states(edges: Array, blocks: int) -> list[Array]:
    """Softmax over the states of every block, which are 2, 3, 4, ..."""
    ends = np.cumsum([block + 2 for block in range(blocks)])[:-1]
    return [_softmax(part) for part in np.split(edges, ends)]


def strongest(operations_EO: Array, edges: Sequence[Array], names: Sequence[str], skips: int | None) -> list[Block]:
    """The cell of the largest weights: of every block the two states whose share, times that of their strongest
    operation, is largest, each with that operation.

    Where more than `skips` of them are skip connections, the weakest is forbidden, and all is chosen again.

    Args:
        operations_EO: shares of the operations of every edge.
        edges: shares of the states of every block.
        names: of the operations.
        skips: skip connections of a cell, at most; None: any number.
    """
    allowed_EO = np.array(operations_EO)
    while True:
        blocks, chosen, first = list[Block](), list[tuple[float, int]](), 0
        for shares_S in edges:
            rows = range(first, first + len(shares_S))
            strength = [float(share * allowed_EO[row].max()) for row, share in zip(rows, shares_S)]
            a, b = sorted(sorted(range(len(strength)), key=lambda state: -strength[state])[:2])
            found = [(state, names[int(allowed_EO[first + state].argmax())]) for state in (a, b)]
            blocks.append((*found[0], *found[1]))
            chosen += [(strength[state], first + state) for state, name in found if name == SKIP]
            first += len(shares_S)
        if skips is None or len(chosen) <= skips:
            return blocks
        allowed_EO[min(chosen)[1], list(names).index(SKIP)] = 0


def drawn(
    operations_EO: Array, edges: Sequence[Array], names: Sequence[str], skips: int | None, rng: Random
) -> list[Block]:
    """A cell drawn by the shares: two different states of every block, an operation of each."""
    blocks, first, left = list[Block](), 0, len(operations_EO) if skips is None else skips
    for shares_S in edges:
        states = list(range(len(shares_S)))
        one = rng.choices(states, list(shares_S))[0]
        rest = [state for state in states if state != one]
        other = rng.choices(rest, [float(shares_S[state]) + TINY for state in rest])[0]
        found = []
        for state in sorted((one, other)):
            row = operations_EO[first + state] + TINY
            name = rng.choices(names, [float(p) * (left > 0 or name != SKIP) for p, name in zip(row, names)])[0]
            left -= name == SKIP
            found.append((state, name))
        blocks.append((*found[0], *found[1]))
        first += len(shares_S)
    return blocks


class DartsSearch(Searcher):
    """Proposes the cells of the largest weights of a trained supernet; after it, and where it is outside of the limits,
    cells drawn by these weights. First order: the architecture is trained as if the weights stayed as they are.

    Args:
        space: of cells.
        seed: of everything that is drawn.
        start: architectures that are proposed first.

    Raises:
        BadInput: the space is not one of cells.

    Example:
        >>> searcher = DartsSearch(CellSpace(channels=1, classes=10, blocks=1))
        >>> evenly = [[0.0] * 12 + [1.0]] * 2
        >>> searcher.prepare({"architecture": [evenly, [0.0, 0.0], evenly, [0.0, 0.0]]})
        >>> searcher.space.words(searcher.ask().genes)
        'normal 0:sep7+1:sep7; reduction 0:sep7+1:sep7'
    """

    order: ClassVar[int | None] = 1

    def __init__(self, space: Space, seed: int = 0, *, start: Sequence[Genes] = ()) -> None:
        if not isinstance(space, CellSpace):
            raise BadInput(
                f"the searcher darts relaxes the operations of cells; {space!r} has none: take CellSpace, or another "
                "searcher",
                shell="--searcher darts relaxes the operations of cells: take --space cells, or another searcher",
            )
        super().__init__(space, seed, start=start)
        self.cells: list[tuple[Array, list[Array], int | None]] = []

    def prepare(self, found: Mapping[str, Any]) -> None:
        rows, blocks = found["architecture"], self.space.blocks  # type: ignore[attr-defined]
        for number, skips in ((0, SKIPS), (2, None)):
            operations, edges = np.asarray(rows[number]), np.asarray(rows[number + 1])
            self.cells.append((_softmax(operations), _states(edges, blocks), skips))

    def ask(self) -> Proposal:
        names = self.space.operations  # type: ignore[attr-defined]
        best = self._encoded([strongest(*cell[:2], names, cell[2]) for cell in self.cells])
        if best not in self.seen and all(one in self.seen for one in self.start):
            self.seen.add(best)
            return Proposal(best)
        return Proposal(self.unseen(lambda: self._encoded([drawn(*c[:2], names, c[2], self.rng) for c in self.cells])))

    def _encoded(self, cells: list[list[Block]]) -> Genes:
        found: Genes = self.space.encoded(*map(tuple, cells))  # type: ignore[attr-defined]
        return found


class SecondOrderDarts(DartsSearch):
    """DARTS of second order: the architecture is trained as if the weights followed by one step.

    Args:
        space: of cells.
        seed: of everything that is drawn.
        start: architectures that are proposed first.

    Raises:
        BadInput: the space is not one of cells.

    Example:
        >>> SecondOrderDarts.order
        2
    """

    order: ClassVar[int | None] = 2
