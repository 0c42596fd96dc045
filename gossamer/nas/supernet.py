"""All networks of a space of cells as one: every operation on every state, mixed by trained weights.

Source: Liu et al. 2019, arXiv:1806.09055, section 2.2 (DARTS: the relaxation); Xu et al. 2020, arXiv:1907.05737 (PC-
DARTS: a part of the channels goes through the operations, edges have weights of their own).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import he_normal
from gossamer.models.nasnet import EPSILON, FactorizedReduction, project
from gossamer.nas.cells import CellSpace, cell_operation

PARTS = 4  # one of so many channels goes through the operations, or of fewer, so that two of them do
SMALL_START = 1e-3  # standard deviation of the weights of operations and edges
POOLS = ("avg", "max", "max5", "max7")


class MixedOperations(nn.Module):
    """All operations on one state, mixed. They see the first of every so many channels; the others go past them, and
    all are shuffled, so that the next one sees others.

    Args:
        names: of the operations.
        channels: in and out.
        stride: 1, or 2 in a reduction cell on its inputs.
        parts: one of so many channels goes through the operations.
    """

    def __init__(self, names: tuple[str, ...], channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.parts, self.inner = parts, channels // parts
        self.operations = nn.ModuleList(_without_scale(name, self.inner, stride) for name in names)
        self.past = nn.Identity() if stride == 1 else nn.MaxPool2d(stride, stride, ceil_mode=True)

    def forward(self, x_NCHW: Tensor, shares_O: Tensor) -> Tensor:
        mixed_NCHW = sum(
            share * operation(x_NCHW[:, : self.inner]) for share, operation in zip(shares_O, self.operations)
        )
        assert isinstance(mixed_NCHW, Tensor)
        if self.parts == 1:
            return mixed_NCHW
        both_NCHW = torch.cat([mixed_NCHW, self.past(x_NCHW[:, self.inner :])], 1)
        samples, _, *size = both_NCHW.shape
        return both_NCHW.reshape(samples, self.parts, self.inner, *size).transpose(1, 2).flatten(1, 2)


def _without_scale(name: str, channels: int, stride: int) -> nn.Module:
    """An operation whose batch norms scale nothing, and pools with one: else the weights of operations would be what
    scales say."""
    found = cell_operation(name, channels, stride)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return nn.Sequential(found, nn.BatchNorm2d(channels, EPSILON, affine=False)) if name in POOLS else found


class RelaxedCell(nn.Module):
    """A cell whose blocks take all earlier states by all operations.

    A block of the space adds two operations. Here it is twice the mean over its states, so that two states with a
    weight of a half each are what a block of the space adds. What the cell gives are the results of all blocks, each
    times how far no later block takes it: a state of weight b is taken by min(1, 2 b) of a block.

    current, previous: channels of its two inputs. halve: the earlier input is twice as large as the other one.
    """

    def __init__(
        self, space: CellSpace, current: int, previous: int, channels: int, *, reduction: bool, halve: bool, parts: int
    ) -> None:
        super().__init__()
        parts = next(one for one in range(parts, 0, -1) if one == 1 or (channels % one == 0 and channels // one > 1))
        self.reduction, self.blocks = reduction, space.blocks
        self.current = project(current, channels)
        self.previous = (FactorizedReduction if halve else project)(previous, channels)
        self.edges = nn.ModuleList(
            MixedOperations(space.operations, channels, 2 if reduction and state < 2 else 1, parts)
            for block in range(space.blocks)
            for state in range(block + 2)
        )
        self.out_channels = channels * space.blocks

    def forward(
        self, current_NCHW: Tensor, previous_NCHW: Tensor, operations_EO: Tensor, edges: tuple[Tensor, ...]
    ) -> Tensor:
        """operations_EO: shares of the operations of every edge. edges: of every block, shares of its states."""
        states, free, first = [self.current(current_NCHW), self.previous(previous_NCHW)], list[Tensor](), 0
        for shares_S in edges:
            pairs = enumerate(shares_S)
            terms = [2 * b * self.edges[first + i](states[i], operations_EO[first + i]) for i, b in pairs]
            free = [left * (1 - (2 * b).clamp(max=1)) for left, b in zip(free, shares_S[2:])]
            free.append(torch.ones_like(shares_S[0]))
            states.append(torch.stack(terms).sum(0))
            first += len(shares_S)
        return torch.cat([left * state for left, state in zip(free, states[2:])], 1)


class Supernet(nn.Module):
    """The networks of a space of cells, with the weights of operations and edges as parameters.

    Args:
        space: whose networks.
        parts: one of so many channels goes through the operations, or of fewer, so that two of them do.

    Example:
        >>> supernet = Supernet(CellSpace(channels=1, classes=10, blocks=2, filters=4, stages=2))
        >>> supernet(torch.zeros(2, 1, 8, 8)).shape, [tuple(a.shape) for a in supernet.architecture()]
        (torch.Size([2, 10]), [(5, 13), (5,), (5, 13), (5,)])
    """

    def __init__(self, space: CellSpace, *, parts: int = PARTS) -> None:
        super().__init__()
        self.space = space
        edges = sum(block + 2 for block in range(space.blocks))
        stem = nn.Conv2d(space.channels, space.filters, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(space.filters, EPSILON))
        self.cells = nn.ModuleList()
        widths, halvings = [space.filters, space.filters], [0, 0]
        for stage in range(space.stages):
            for reduces in [True] * (stage > 0) + [False] * space.repeats:
                channels, halve = space.filters * 2**stage, halvings[-2] < halvings[-1]
                cell = RelaxedCell(space, widths[-1], widths[-2], channels, reduction=reduces, halve=halve, parts=parts)
                self.cells.append(cell)
                widths.append(cell.out_channels)
                halvings.append(halvings[-1] + reduces)
        self.fc = nn.Linear(widths[-1], space.classes)
        he_normal(self)
        shapes = ((edges, len(space.operations)), (edges,)) * 2
        self.relaxation = nn.ParameterList(nn.Parameter(SMALL_START * torch.randn(shape)) for shape in shapes)

    def architecture(self) -> list[nn.Parameter]:
        """Operations and edges of the normal cell, then those of the reduction cell, before the softmax."""
        return list(self.relaxation)

    def weights(self) -> list[nn.Parameter]:
        """What is trained on training data."""
        own = {id(one) for one in self.relaxation}
        return [one for one in self.parameters() if id(one) not in own and one.requires_grad]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        operations, edges = self.relaxation[::2], self.relaxation[1::2]
        shares = [
            (operations_EO.softmax(1), shares_of_states(edges_E, self.space.blocks))
            for operations_EO, edges_E in zip(operations, edges)
        ]
        before = now = self.stem(x_NCHW)
        for cell in self.cells:
            before, now = now, cell(now, before, *shares[cell.reduction])  # type: ignore[index]
        return self.fc(F.relu(now).mean((2, 3)))  # type: ignore[no-any-return]


def shares_of_states(edges_E: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """The shares of the states of every block: a softmax for each, of 2, 3, 4, ... states."""
    return tuple(part.softmax(0) for part in torch.split(edges_E, [block + 2 for block in range(blocks)]))
