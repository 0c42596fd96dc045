"""What an edit says beyond words: what a layer was replaced by, and how groups of weights became zero."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BlockPart:
    """One layer of a module. kind: the size of a kernel, "linear", or the name of another class. column: how many
    layers come before it, on the longest way; row: of the branch that it is in."""

    kind: str
    inputs: int = 0
    outputs: int = 0
    groups: int = 1
    stride: str = ""
    column: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class SpectrumRow:
    """What was left out with the rank of one mode. what: "singular values", over the largest, or "error", the relative
    one. values: of the singular values from 1 to R, or with the ranks 0 to R, at these of them. rank: the one taken."""

    mode: str
    what: str
    ranks: list[int]
    values: list[float]
    rank: int


@dataclass(frozen=True, kw_only=True)
class SwapRecord:
    """What a layer was, and what was put in its place. error: |new - old| / |old| of what `of` says, before any
    training of the whole network. gone: modules that have nothing to do any more."""

    before: list[BlockPart]
    after: list[BlockPart]
    gone: list[str] = field(default_factory=list)
    error: float | None = None
    of: str = ""
    spectra: list[SpectrumRow] = field(default_factory=list)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "SwapRecord":
        """From JSON values."""
        rows = {"before": BlockPart, "after": BlockPart, "spectra": SpectrumRow}
        return cls(**raw | {key: [row(**values) for values in raw[key]] for key, row in rows.items()})


@dataclass(frozen=True, kw_only=True)
class GroupPath:
    """How groups of weights became zero in a training, at some of its steps: the regularization path.

    steps: counted from 1. strength: of the penalty. cost: multiply-adds or parameters of what is not
    zero. alive: how many groups are not zero, by layer.
    """

    steps: list[int]
    strength: list[float]
    cost: list[float]
    alive: dict[str, list[int]]
