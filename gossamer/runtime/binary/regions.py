"""Parts of a graph that treat every number of a channel alike: functions of one number for each channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gossamer.gsr.format.graph import Device, Graph, State, Value, values_in
from gossamer.gsr.format.operations import function_of

# One constant, or numbers of each channel, and one tensor.
_MONOTONE = """
batch_norm add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar sub.Scalar mul.Scalar div.Scalar rsub.Scalar neg
ge.Scalar gt.Scalar le.Scalar lt.Scalar ge.Tensor gt.Tensor le.Tensor lt.Tensor sign to.dtype _to_copy clone alias
detach relu relu6 hardtanh clamp clamp_min clamp_max sigmoid tanh contiguous where.self
where.ScalarOther where.ScalarSelf where.Scalar
"""
MONOTONE = frozenset(_MONOTONE.split())
ELEMENTWISE = MONOTONE | frozenset(("prelu", "leaky_relu", "elu", "abs", "square", "hardswish", "silu", "gelu"))


class Constants:
    """What a graph computes from its stored tensors alone, and who uses what.

    Args:
        graph: the steps.
        tensors: stored.
    """

    def __init__(self, graph: Graph, tensors: Sequence[Tensor]) -> None:
        self.graph, self.tensors = graph, tensors
        self.known: dict[int, Any] = {}
        self.users: dict[int, list[int]] = {}
        for number, step in enumerate(graph.steps):
            read = list(values_in([*step.args, *step.kwargs.values()]))
            for index in dict.fromkeys(read):
                self.users.setdefault(index, []).append(number)
            states = states_in([*step.args, *step.kwargs.values()])
            if all(index in self.known for index in read) and (read or states):
                with torch.no_grad():
                    self.known[graph.inputs + number] = self.call(number, {})
        self.given = set(values_in(graph.output))

    def call(self, number: int, values: dict[int, Any]) -> Any:
        """Run one step on values."""
        step, found = self.graph.steps[number], _Filled(values, self)
        function = function_of(step.op)
        assert function is not None  # loading the network has looked at that
        return function(*map(found.fill, step.args), **{key: found.fill(value) for key, value in step.kwargs.items()})

    def output(self, values: dict[int, Any]) -> Any:
        """What the graph gives, from its values."""
        return _Filled(values, self).fill(self.graph.output)

    def variables(self, number: int) -> list[int]:
        """The values that a step reads and that are no constants, each as often as it is read."""
        step = self.graph.steps[number]
        return [index for index in values_in([*step.args, *step.kwargs.values()]) if index not in self.known]

    def maker(self, value: int) -> int | None:
        """The step that makes a value; None for an input of the network."""
        return value - self.graph.inputs if value >= self.graph.inputs else None


class _Filled:
    """Arguments with tensors in the place of what stands for them."""

    def __init__(self, values: dict[int, Any], constants: Constants) -> None:
        self.values, self.constants = values, constants

    def fill(self, value: Any) -> Any:
        """One argument."""
        match value:
            case Value(index):
                return self.values[index] if index in self.values else self.constants.known[index]
            case State(index):
                return self.constants.tensors[index]
            case Device():
                return torch.device("cpu")
            case list() | tuple():
                return type(value)(map(self.fill, value))
            case dict():
                return {key: self.fill(item) for key, item in value.items()}
            case _:
                return value


def states_in(value: Any) -> list[int]:
    """The stored tensors that arguments name."""
    found: list[int] = []
    tree_map(lambda leaf: found.append(leaf.index) if isinstance(leaf, State) else None, value)
    return found


@dataclass(frozen=True)
class Region:
    """A function of one value, made of steps in order.

    Attributes:
        constants: of the graph.
        root: the value that goes in.
        top: the value that comes out.
        steps: between them.
    """

    constants: Constants
    root: int
    top: int
    steps: tuple[int, ...]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        values: dict[int, Any] = {self.root: x}
        for number in self.steps:
            values[self.constants.graph.inputs + number] = self.constants.call(number, values)
        result: Tensor = values[self.top]
        return result

    def of_channels(self, x: Tensor, dims: int) -> Tensor:
        """The function of numbers (values, channels), which the network sees with so many dimensions.

        Raises:
            ValueError: it is not one number for each channel.
        """
        shaped = x.reshape(*x.shape, *[1] * (dims - 2))
        found = self(shaped)
        if found.shape != shaped.shape or not found.is_floating_point():
            raise ValueError("not one number for each channel")
        return found.reshape(x.shape)

    @property
    def alone(self) -> bool:
        """Whether nothing else reads what lies between, or what goes in."""
        between = {self.root, *(self.constants.graph.inputs + number for number in self.steps)} - {self.top}
        inside = set(self.steps)
        return all(
            value not in self.constants.given and inside.issuperset(self.constants.users.get(value, []))
            for value in between
        )

    @property
    def monotone(self) -> bool:
        """Whether it never turns the order of numbers of a channel, or always does: one step after the other."""
        steps = self.constants.graph.steps
        return all(steps[number].op in MONOTONE and len(self.constants.variables(number)) == 1 for number in self.steps)


def regions(constants: Constants, top: int) -> list[Region]:
    """All functions of one value that end in `top`, the shortest first; the first one has no steps."""
    found = [Region(constants, top, top, ())]
    waiting, steps = {top}, set[int]()
    while True:
        last = max(waiting)  # values that it may stem from come earlier
        number = constants.maker(last)
        if number is None or constants.graph.steps[number].op not in ELEMENTWISE:
            return found
        steps.add(number)
        waiting = (waiting - {last}) | set(constants.variables(number))
        if len(waiting) == 1:
            found.append(Region(constants, next(iter(waiting)), top, tuple(sorted(steps))))
