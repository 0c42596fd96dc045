"""Training under a price on the length of the file: weights on grids, and what their integers cost to code."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constraints
from gossamer.constraints.base import Constraint
from gossamer.constraints.grid import Grid
from gossamer.train.loop import TrainingStep

LARGEST = (1 << 15) - 1  # of an integer in a file
PRIOR = 1.0  # how many weights of the tensor's mean density a row and a column are thought to have seen already
COMPARISONS, REFRESH = 500, 16  # at the prices: so often in a training, but not more steps apart
SWING = 80.0  # how far the logarithm of the exchange rate could move in a training
STIFF = 3.0  # how far the length may be off until the controller is at its fastest
MEMORY = "_gossamer_rate"  # the name of the buffer


def code_lengths(codes_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the integers of a matrix cost a coder that knows the density of every row and column, in nats.

    Gives (zero_RC, one_RC, further): of a zero, of a one with its sign, and of each further unit. A weight is not
    zero with probability d_r d_c / d (rows and columns independent, clamped); magnitudes beyond one are geometric.
    """
    there = (codes_RC != 0).to(torch.float32)
    rows, columns = there.shape
    mean = (there.sum() + 0.5) / (there.numel() + 1)
    density = mean.expand_as(there)
    if rows > 1 and columns > 1:
        row = (there.sum(1, keepdim=True) + PRIOR * mean) / (columns + PRIOR)
        column = (there.sum(0, keepdim=True) + PRIOR * mean) / (rows + PRIOR)
        density = row * column / mean
    density = density.clamp(1e-4, 1 - 1e-4)
    beyond = (codes_RC.abs().sum() - there.sum() + 0.5) / (there.sum() + 1)  # mean of |q| - 1 where q is not 0
    first, further = torch.log1p(beyond), torch.log1p(1 / beyond)
    return -torch.log1p(-density), -density.log() + math.log(2) + first, further


def total_length(codes_RC: Tensor, zero_RC: Tensor, one_RC: Tensor, further: Tensor) -> Tensor:
    """The length of all integers under these lengths, in nats."""
    size = codes_RC.abs()
    return torch.where(size == 0, zero_RC, one_RC + (size - 1) * further).sum()


class RateGrid(Constraint):
    """value = step * round(weight / step), the step trained, with a price for every weight's distance from zero.

    first: what it costs to go from 0 to 1, for every weight; further: for each unit beyond; both in nats and renewed by
    `reprice` while it trains. The gradient passes straight through the rounding.
    """

    first: Tensor
    further: Tensor
    start: Tensor

    def __init__(self, weight: Tensor, step: float, pace: float = 3.0) -> None:
        super().__init__()
        self.pace = pace
        self.register_buffer("start", torch.tensor(math.log(step)))
        self.moved = nn.Parameter(torch.zeros(()))  # with Adam, the logarithm of the step learns `pace` times as fast
        self.register_buffer("first", torch.zeros(weight.shape))
        self.register_buffer("further", torch.zeros(()))

    @property
    def step(self) -> Tensor:
        """The distance between two values."""
        return (self.start + self.pace * self.moved).exp()

    def forward(self, weight: Tensor) -> Tensor:
        step = self.step
        codes = (weight / step).clamp(-LARGEST, LARGEST)
        return step * (codes + (codes.round() - codes).detach())

    def price(self, weight: Tensor) -> Tensor:
        """The slope of the length at the weight times its distance from zero: its gradient is the slope."""
        distance = (weight / self.step).abs()
        return (torch.where(distance.detach() < 1, self.first, self.further) * distance).sum()

    @torch.no_grad()
    def reprice(self, weight: Tensor) -> float:
        """Look at the integers as they are now, renew the prices; gives the length in nats."""
        codes = (weight / self.step).clamp(-LARGEST, LARGEST).round()
        matrix = codes.flatten(1) if codes.ndim > 1 else codes.view(1, -1)
        zero, one, further = code_lengths(matrix)
        self.first.copy_((one - zero).clamp_min(0).view(weight.shape))
        self.further.copy_(further)
        return float(total_length(matrix, zero, one, further))

    def finalized(self) -> Constraint:
        return Grid(self.step.detach(), -LARGEST, LARGEST)


class Rate:
    """The exchange rate between loss and length: loss + rate * length. It is steered so that the length falls from
    where it starts to `target` bytes over the share `ramp` of the training, in equal ratios.

    A term of the training loss, and its `after_step`. What it must remember is a buffer of the model, which checkpoints
    hold, until `leave`: a module of its own would be run by networks that go through their children.
    overhead: bytes that are there whatever the weights are. measure: bytes of the file if it were written now; asked a
    few times, because a real coder is better, or worse, than the estimate.
    """

    task_weight = 1.0

    def __init__(self, model: nn.Module, target: float, ramp: float, measure: Callable[[nn.Module], int]) -> None:
        self.model, self.target, self.ramp, self.measure = model, target, ramp, measure
        model.register_buffer(MEMORY, torch.tensor([1e-7, 0.0, 1.0], dtype=torch.float64))

    @property
    def numbers(self) -> Tensor:
        """Rate, bytes at the start, real over estimated bytes."""
        numbers: Tensor = getattr(self.model, MEMORY)
        return numbers

    @staticmethod
    def leave(model: nn.Module) -> nn.Module:
        """Take out of the model what a rate remembers in it."""
        delattr(model, MEMORY)
        return model

    def grids(self) -> Mapping[str, tuple[RateGrid, Tensor]]:
        """Every grid that has a price, and the weight that it gets."""
        found = {}
        for name, stack in constraints(self.model).items():
            if isinstance(stack[-1], RateGrid):
                owner, _, key = name.rpartition(".")
                held: Any = self.model.get_submodule(owner).parametrizations
                weight = held[key].original
                for below in stack[:-1]:
                    weight = below(weight)
                found[name] = (stack[-1], weight)
        return found

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        prices = [grid.price(weight) for grid, weight in self.grids().values()]
        return float(self.numbers[0]) * torch.stack(prices).sum()

    def estimate(self) -> float:
        """Bytes of the integers by the estimate, prices renewed."""
        return sum(grid.reprice(weight) for grid, weight in self.grids().values()) / 8 / math.log(2)

    def after_step(self, step: TrainingStep) -> None:
        """Every few steps: look at the length, move the exchange rate. Often enough: measure a real file."""
        done = step.number / step.steps
        compared_every = max(step.steps // 12, 1)
        refresh = min(max(step.steps // COMPARISONS, 1), REFRESH)
        if step.number % refresh and step.number % compared_every and step.number > 1:
            return
        length = self.estimate()
        if step.number % compared_every == 0 or step.number == 1:
            self.numbers[2] = self.measure(self.model) / length
        length *= float(self.numbers[2])
        if not self.numbers[1]:
            self.numbers[1] = length
        start = max(float(self.numbers[1]), self.target)
        wanted = start * (self.target / start) ** min(1.0, done / self.ramp)
        off = max(-1.0, min(1.0, STIFF * math.log(length / wanted)))
        self.numbers[0] *= math.exp(min(0.5, SWING * refresh / step.steps) * off)
