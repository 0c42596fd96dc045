"""The space of NASNet: a normal and a reduction cell, each of some blocks that add two operations on earlier results.

Source: Zoph et al. 2018, arXiv:1707.07012, section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.models.layers import he_normal
from gossamer.models.nasnet import EPSILON, FactorizedReduction, operation, project
from gossamer.nas.space import Genes, Space

OPERATIONS = (
    "same",
    "1x3-3x1",
    "1x7-7x1",
    "dil3",
    "avg",
    "max",
    "max5",
    "max7",
    "conv1",
    "conv3",
    "sep3",
    "sep5",
    "sep7",
)
Block = tuple[int, str, int, str]  # a state and what is done with it, twice; both are added
GENES_OF_BLOCK = 4
SMALLEST = 8


def cell_operation(name: str, channels: int, stride: int) -> nn.Module:
    """One of the thirteen operations, from `channels` to as many.

    Args:
        name: one of `OPERATIONS`.
        channels: in and out.
        stride: 1, or 2 in a reduction cell on its inputs.
    """
    if name == "same" and stride == 2:
        return FactorizedReduction(channels, channels)
    if name in ("max5", "max7"):
        size = int(name.removeprefix("max"))
        return nn.MaxPool2d(size, stride, size // 2)
    if name in ("1x3-3x1", "1x7-7x1"):
        size = int(name[2])
        return _spatially_separable(channels, size, stride)
    if name in ("conv1", "conv3", "dil3"):
        size, dilation = int(name[-1]), 2 if name == "dil3" else 1
        conv = nn.Conv2d(channels, channels, size, stride, dilation * (size // 2), dilation, bias=False)
        return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels, EPSILON))
    return operation(name, channels, stride)


def _spatially_separable(channels: int, size: int, stride: int) -> nn.Module:
    layers: list[nn.Module] = []
    for kernel in ((1, size), (size, 1)):
        steps = tuple(stride if k > 1 else 1 for k in kernel)
        padding = tuple(k // 2 for k in kernel)
        conv = nn.Conv2d(channels, channels, kernel, steps, padding, bias=False)  # type: ignore[arg-type]
        layers += [nn.ReLU(), conv, nn.BatchNorm2d(channels, EPSILON)]
    return nn.Sequential(*layers)


class SearchedCell(nn.Module):
    """A cell of any blocks; it gives all results that no block of it uses.

    current, previous: channels of its two inputs. halve: the earlier input is twice as large as the other one.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        current: int,
        previous: int,
        channels: int,
        *,
        reduction: bool,
        halve: bool,
    ) -> None:
        super().__init__()
        self.sources = [(a, b) for a, _, b, _ in blocks]
        used = {state for pair in self.sources for state in pair}
        # An input that no block takes costs nothing.
        self.current = project(current, channels) if 0 in used else None
        earlier = FactorizedReduction if halve else project
        self.previous = earlier(previous, channels) if 1 in used else None
        self.unused = [state for state in range(2, len(blocks) + 2) if state not in used]
        self.operations = nn.ModuleList(
            cell_operation(name, channels, 2 if reduction and state < 2 else 1)
            for a, first, b, second in blocks
            for state, name in ((a, first), (b, second))
        )
        self.out_channels = channels * len(self.unused)

    def forward(self, current_NCHW: Tensor, previous_NCHW: Tensor) -> Tensor:
        inputs = ((self.current, current_NCHW), (self.previous, previous_NCHW))
        states = [x_NCHW if brought is None else brought(x_NCHW) for brought, x_NCHW in inputs]
        for number, (a, b) in enumerate(self.sources):
            states.append(self.operations[2 * number](states[a]) + self.operations[2 * number + 1](states[b]))
        return torch.cat([states[state] for state in self.unused], 1)


class CellNetwork(nn.Module):
    """A stem, then stages of normal cells with a reduction cell before all but the first, whose widths double."""

    def __init__(
        self,
        normal: tuple[Block, ...],
        reduction: tuple[Block, ...],
        *,
        repeats: int,
        filters: int,
        stages: int,
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, filters, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(filters, EPSILON))
        self.cells = nn.ModuleList()
        widths, halvings = [filters, filters], [0, 0]
        for stage in range(stages):
            kinds = [True] * (stage > 0) + [False] * repeats
            for reduces in kinds:
                cell = SearchedCell(
                    reduction if reduces else normal,
                    widths[-1],
                    widths[-2],
                    filters * 2**stage,
                    reduction=reduces,
                    halve=halvings[-2] < halvings[-1],
                )
                self.cells.append(cell)
                widths.append(cell.out_channels)
                halvings.append(halvings[-1] + reduces)
        self.fc = nn.Linear(widths[-1], classes)
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        before = now = self.stem(x_NCHW)
        for cell in self.cells:
            before, now = now, cell(now, before)
        return self.fc(F.relu(now).mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class CellSpace(Space):
    """Two cells of `blocks` blocks each, stacked as NASNet stacks them.

    A block takes two earlier states (the cell's two inputs or results of blocks before it), one of 13 operations on
    each, and adds both. Its two halves can change places, so half of the vectors, nearly, are of the same networks.

    Args:
        channels: of the images.
        classes: outputs.
        blocks: of a cell; 5 in the paper.
        repeats: normal cells of a stage.
        filters: channels inside the first cells.
        stages: with a reduction cell between two of them.

    Example:
        >>> import torch
        >>> space = CellSpace(channels=1, classes=10, blocks=2, filters=4)
        >>> space.size == ((2 * 13) ** 2 * (3 * 13) ** 2) ** 2
        True
        >>> space.build(tuple(0 for _ in space.choices))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    channels: int
    classes: int
    blocks: int = 5
    repeats: int = 1
    filters: int = 16
    stages: int = 3
    operations: ClassVar[tuple[str, ...]] = OPERATIONS

    def __post_init__(self) -> None:
        for name in ("blocks", "repeats", "filters", "stages"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 1")

    @property
    def choices(self) -> tuple[int, ...]:
        ops = len(self.operations)
        cell = tuple(n for block in range(self.blocks) for n in (block + 2, ops, block + 2, ops))
        return cell * 2

    def decoded(self, genes: Genes) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """The blocks of the normal and of the reduction cell."""
        ops = self.operations
        found = [
            (a, ops[first], b, ops[second])
            for a, first, b, second in (
                genes[i : i + GENES_OF_BLOCK] for i in range(0, len(self.choices), GENES_OF_BLOCK)
            )
        ]
        return tuple(found[: self.blocks]), tuple(found[self.blocks :])

    def encoded(self, normal: tuple[Block, ...], reduction: tuple[Block, ...]) -> Genes:
        """The vector of two cells, in its canonical form.

        Raises:
            BadInput: an operation or a state that the space does not have.
        """
        for _, first, _, second in (*normal, *reduction):
            if first not in self.operations or second not in self.operations:
                raise BadInput(f"{first!r}, {second!r}: operations are {', '.join(self.operations)}")
        ops = self.operations
        genes = [g for a, f, b, s in (*normal, *reduction) for g in (a, ops.index(f), b, ops.index(s))]
        return self.checked(genes)

    def canonical(self, genes: Genes) -> Genes:
        """The halves of every block in order."""
        blocks = (genes[i : i + GENES_OF_BLOCK] for i in range(0, len(genes), GENES_OF_BLOCK))
        return tuple(g for a, f, b, s in blocks for half in sorted(((a, f), (b, s))) for g in half)

    def build(self, genes: Genes) -> nn.Module:
        normal, reduction = self.decoded(genes)
        return CellNetwork(
            normal,
            reduction,
            repeats=self.repeats,
            filters=self.filters,
            stages=self.stages,
            channels=self.channels,
            classes=self.classes,
        )

    def words(self, genes: Genes) -> str:
        cells = [", ".join(f"{a}:{f}+{b}:{s}" for a, f, b, s in cell) for cell in self.decoded(genes)]
        return f"normal {cells[0]}; reduction {cells[1]}"
