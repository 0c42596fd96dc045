"""The network of a `.gsr` file: a graph of ATen operations with its tensors, callable without the class."""

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compact.watch import DEPENDS_ON_DATA, MOST_SIZES, NotForeseen, Watch, sizes_of
from gossamer.core.outputs import has_marks, unmarked
from gossamer.errors import BadInput, GossamerError, first_line
from gossamer.gsr.format.graph import Device, Graph, State, Value, values_in
from gossamer.gsr.format.operations import function_of
from gossamer.gsr.format.stream import damaged


class Network(nn.Module):
    """Runs the graph operation by operation; nothing of it is ever compiled from text.

    state_dict() has the names of the original. It can be trained: train() lets gradients into the weights. The layers
    stay as they were stored, in eval mode: batch norms use their statistics, nothing is dropped.
    """

    out_of_file = True

    def __init__(
        self, graph: Graph, names: list[str], tensors: list[Tensor], parameters: list[bool], *, file_bytes: int
    ) -> None:
        super().__init__()
        self.training = False
        self._graph = graph
        self._names = names
        self._file_bytes = file_bytes
        self._functions = [_function(step.op) for step in graph.steps]
        self._last_use = _last_uses(graph)
        self._classes = has_marks(graph.output)
        self._seen: set[Any] = set()  # sizes of inputs with which it ran
        self._always = any(step.op in DEPENDS_ON_DATA for step in graph.steps)
        for name, tensor, parameter in zip(names, tensors, parameters):
            _register(self, name, tensor, parameter)

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        inputs = (x, *more)
        if len(inputs) != self._graph.inputs:
            raise BadInput(f"this network takes {self._graph.inputs} inputs, not {len(inputs)}")
        state = [_find(self, name) for name in self._names]
        sizes = sizes_of(inputs)
        if sizes is None:
            return self._run(inputs, state, None)
        watch = None if sizes in self._seen else Watch(state, inputs, self._file_bytes)
        try:
            output = self._run(inputs, state, watch)
        except (GossamerError, NotForeseen):
            raise
        except Exception as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs if isinstance(x, Tensor))
            raise BadInput(f"this network cannot run on inputs of shape {shapes}: {first_line(error)}") from error
        if not self._always and len(self._seen) < MOST_SIZES:
            self._seen.add(sizes)
        return output

    def _run(self, inputs: tuple[Any, ...], state: list[Tensor], watch: Watch | None) -> Any:
        graph = self._graph
        values: list[Any] = [*inputs, *[None] * len(graph.steps)]
        device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
        context = _Context(values, state, device)
        for number, step in enumerate(graph.steps):
            args = [context.fill(value) for value in step.args]
            kwargs = {key: context.fill(value) for key, value in step.kwargs.items()}
            if watch is not None:
                watch.before(step.op, self._functions[number], args, kwargs)
            result = values[graph.inputs + number] = self._functions[number](*args, **kwargs)
            if watch is not None:
                watch.created(result)
            for index in self._last_use[number]:
                if watch is not None and index >= graph.inputs:
                    watch.freed(values[index])
                values[index] = None
        output = context.fill(graph.output)
        return unmarked(output) if self._classes else output

    def train(self, mode: bool = True) -> "Network":
        for parameter in self.parameters() if mode else ():
            parameter.requires_grad_(parameter.is_floating_point())
        return self


def parts_of(network: Network) -> tuple[Graph, list[str], list[Tensor]]:
    """The graph, the names of the tensors that its States count, and the tensors."""
    return network._graph, network._names, [_find(network, name) for name in network._names]


class _Context:
    def __init__(self, values: list[Any], state: list[Tensor], device: torch.device) -> None:
        self.values, self.state, self.device = values, state, device

    def fill(self, value: Any) -> Any:
        """The argument with tensors in the place of what stands for them."""
        match value:
            case Value(index):
                return self.values[index]
            case State(index):
                return self.state[index]
            case Device():
                return self.device
            case list():
                return [self.fill(item) for item in value]
            case tuple():
                return tuple(self.fill(item) for item in value)
            case dict():
                return {key: self.fill(item) for key, item in value.items()}
            case _:
                return value


def _function(name: str) -> Any:
    function = function_of(name)
    if function is None:
        raise BadInput(f"the file calls {name}, which torch {torch.__version__} does not have; install a newer torch")
    return function


def _last_uses(graph: Graph) -> list[list[int]]:
    """After which step which values are not needed any more."""
    last = dict.fromkeys(values_in(graph.output))
    freed: list[list[int]] = [[] for _ in graph.steps]
    for number in reversed(range(len(graph.steps))):
        step = graph.steps[number]
        for index in [*values_in([*step.args, *step.kwargs.values()]), graph.inputs + number]:
            if index not in last:
                last[index] = None
                freed[number].append(index)
    return freed


def _register(root: nn.Module, name: str, tensor: Tensor, parameter: bool) -> None:
    """Put a tensor where its dotted name says, as a parameter that needs no gradient or as a buffer."""
    *path, leaf = name.split(".")
    module = root
    try:
        for part in path:
            child = module._modules.get(part)
            if child is None:
                child = nn.Module()
                child.training = False
                module.add_module(part, child)
            module = child
        if parameter:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    except KeyError as error:
        raise damaged("header", f"a tensor cannot be named {name!r}") from error


def _find(root: nn.Module, name: str) -> Tensor:
    *path, leaf = name.split(".")
    module = root
    for part in path:
        module = module._modules[part]  # type: ignore[assignment]
    found: Tensor = getattr(module, leaf)  # it may be constrained
    return found
