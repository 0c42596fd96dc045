"""What a run must do, operation by operation, and where it does not."""

from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Mismatch(Exception):
    """A run that left the expected path. index: of the first operation that differs; line: of the user's code."""

    def __init__(self, index: int, modules: tuple[str, ...], message: str, line: str = "") -> None:
        super().__init__(message)
        self.index, self.modules, self.line = index, modules, line


class Expected(NamedTuple):
    """What an operation must be and give; a size of -1 is not compared.

    optional: it only lays out memory and may be missing.
    """

    name: str
    shapes: tuple[Shape | None, ...]
    optional: bool = False


LAYOUT = frozenset(
    # What a layout needs depends on strides, which change with the widths.
    f"aten.{name}"
    for name in ("clone", "alias", "contiguous", "expand", "slice", "view", "_unsafe_view", "detach", "as_strided_")
)


def canonical(name: str) -> str:
    """The same name for operations that differ in their choice of memory layout only."""
    return "aten.view" if name in ("aten._unsafe_view", "aten.reshape") else name


def fits(expected: Sequence[Shape | None], got: Sequence[Shape | None]) -> bool:
    """Whether these are the expected shapes."""
    if len(expected) != len(got):
        return False
    return all(
        e is None or g is None or (len(e) == len(g) and all(a in (-1, b) for a, b in zip(e, g)))
        for e, g in zip(expected, got)
    )
