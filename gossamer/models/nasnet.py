"""NASNet-A (Zoph et al. 2018, arXiv:1707.07012, figure 4): the cells that a search on CIFAR-10 found."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import he_normal

# As in the released code; the paper names none.
EPSILON = 1e-3

# Pairs of (state, operation) that are added. State 0 is the cell's input, 1 the input of the cell before, then results.
Pairs = tuple[tuple[tuple[int, str], tuple[int, str]], ...]
NORMAL: Pairs = (
    ((0, "sep5"), (1, "sep3")),
    ((1, "sep5"), (1, "sep3")),
    ((0, "avg"), (1, "same")),
    ((1, "avg"), (1, "avg")),
    ((0, "sep3"), (0, "same")),
)
REDUCTION: Pairs = (
    ((0, "sep5"), (1, "sep7")),
    ((0, "max"), (1, "sep7")),
    ((0, "avg"), (1, "sep5")),
    ((3, "same"), (2, "avg")),
    ((2, "sep3"), (0, "max")),
)


def project(in_channels: int, out_channels: int) -> nn.Sequential:
    """ReLU, 1x1, BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out_channels, EPSILON))


def separable_convolution(channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Twice ReLU, depthwise, pointwise, BatchNorm; the first depthwise one has the stride."""
    layers: list[nn.Module] = []
    for step in (stride, 1):
        depthwise = nn.Conv2d(channels, channels, kernel, step, kernel // 2, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        layers += [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, EPSILON)]
    return nn.Sequential(*layers)


def operation(name: str, channels: int, stride: int) -> nn.Module:
    """An operation of the search space by its name in the pairs."""
    match name:
        case "same":
            return nn.Identity()
        case "max":
            return nn.MaxPool2d(3, stride, 1)
        case "avg":
            return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        case _:
            return separable_convolution(channels, int(name.removeprefix("sep")), stride)


class FactorizedReduction(nn.Module):
    """ReLU, then two strided 1x1 on the pixels of even and of odd coordinates, side by side, BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, half, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - half, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, EPSILON)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(x_NCHW)
        shifted_NCHW = F.pad(x_NCHW, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.even(x_NCHW), self.odd(shifted_NCHW)], 1))  # type: ignore[no-any-return]


class Cell(nn.Module):
    """Five pairs of operations on the two inputs, brought to `channels` first, and on each other's results.

    halve: the earlier input is twice as large as the other one. A reduction cell has stride 2 on its inputs and gives
    its last four results, 4 channels; a normal cell gives the earlier input and all five results, 6 channels.
    """

    def __init__(self, current: int, previous: int, channels: int, *, reduction: bool, halve: bool) -> None:
        super().__init__()
        self.pairs, self.first = (REDUCTION, 3) if reduction else (NORMAL, 1)
        self.current = project(current, channels)
        self.previous = FactorizedReduction(previous, channels) if halve else project(previous, channels)
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if reduction and state < 2 else 1)
            for pair in self.pairs
            for state, name in pair
        )

    def forward(self, current_NCHW: Tensor, previous_NCHW: Tensor) -> Tensor:
        states = [self.current(current_NCHW), self.previous(previous_NCHW)]
        for number, ((a, _), (b, _)) in enumerate(self.pairs):
            states.append(self.operations[2 * number](states[a]) + self.operations[2 * number + 1](states[b]))
        return torch.cat(states[self.first :], 1)


class NASNetA(nn.Module):
    """Three stages of `repeats` normal cells, a reduction cell before the second and third; widths double at each.

    filters: channels inside the first cells. stem: "cifar", one 3x3; "imagenet", a strided 3x3 and two reduction cells
    of a quarter and half the width. skip: the normal cell after a reduction sees what the reduction cell saw as the
    earlier input, not its input. Where there is no earlier input, the input is taken twice.
    """

    def __init__(
        self,
        repeats: int,
        filters: int,
        first: int,
        *,
        stem: str = "imagenet",
        skip: bool = False,
        in_channels: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        imagenet = stem == "imagenet"
        conv = nn.Conv2d(in_channels, first, 3, 2 if imagenet else 1, 0 if imagenet else 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(first, EPSILON))
        # Of each cell: its filters, and whether it reduces.
        plan = [(filters // 4, True), (filters // 2, True)] if imagenet else []
        for stage in range(3):
            plan += [(filters * 2**stage, True)] * (stage > 0) + [(filters * 2**stage, False)] * repeats
        self.skip = skip
        self.cells = nn.ModuleList()
        self.sources: list[tuple[int, int]] = []
        # Of each output so far, the stem's first: channels, and how often it was halved.
        outputs = [(first, 0)]
        for number, (width, reduction) in enumerate(plan):
            current = len(outputs) - 1
            previous = max(current - 1, 0)
            after_reduction = number > 0 and plan[number - 1][1] and not reduction
            if skip and after_reduction and (not imagenet or number > 2):
                previous -= 1
            halve = outputs[previous][1] < outputs[current][1]
            self.cells.append(Cell(outputs[current][0], outputs[previous][0], width, reduction=reduction, halve=halve))
            self.sources.append((current, previous))
            outputs.append(((4 if reduction else 6) * width, outputs[current][1] + reduction))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(outputs[-1][0], classes)
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        outputs = [self.stem(x_NCHW)]
        for cell, (current, previous) in zip(self.cells, self.sources):
            outputs.append(cell(outputs[current], outputs[previous]))
        return self.fc(self.dropout(F.relu(outputs[-1]).mean((2, 3))))  # type: ignore[no-any-return]
