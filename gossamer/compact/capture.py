"""The graph of a network in eval mode, from torch's exporter, with the batch size free."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from gossamer.compact.free_dimensions import free_dimensions
from gossamer.compact.torch_export import export_failure, exported_program, plain_outputs, refuse_compiled, silent
from gossamer.core.copies import copy_network
from gossamer.core.outputs import has_marks, marked, places
from gossamer.errors import BadInput
from gossamer.graph.tracer import warm_up
from gossamer.gsr.format.graph import (
    DEVICE_OF_INPUT,
    DTYPES,
    FORMATS,
    Graph,
    State,
    Step,
    Value,
    values_in,
)
from gossamer.gsr.format.operations import IDENTITIES, VIEWS, WRITES, name_of
from gossamer.gsr.format.safety import unsafe

WEIGHTS_ONLY = "save the weights alone with example_inputs=None and load them with load(path, into=model)"


def capture(
    model: nn.Module, example_inputs: tuple[Any, ...], names: list[str], *, dynamic_batch: bool
) -> tuple[Graph, list[Tensor]]:
    """The graph, and the constants that the network makes while it runs: tensors that follow those of `names`."""
    refuse_compiled(model, ".gsr")
    copied = copy_network(model).eval()
    call = free_dimensions(copied, example_inputs, {}, {}, dynamic_batch=dynamic_batch)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            warm_up(copied, call.args)
            program = exported_program(copied, call)
            structure = places(copied.forward(*call.args))
        except Exception as error:
            raise BadInput(f"{export_failure(copied, '.gsr', error, call)}; or {WEIGHTS_ONLY}") from error
    graph, constants = _Converter(program, names, type(model).__name__).graph()
    if has_marks(structure):
        graph = replace(graph, output=marked(graph.output, structure))
    return graph, constants


class _Converter:
    """Turns an exported program into steps, one node after the other."""

    def __init__(self, program: torch.export.ExportedProgram, names: list[str], model: str) -> None:
        self.program, self.model = program, model
        self.names = [*names, *["a constant"] * len(program.constants)]
        self.place = {name: index for index, name in enumerate(names)}
        self.constants: list[Tensor] = []
        self.known: dict[fx.Node, Any] = {}
        self.steps: list[Step] = []
        self.inputs = 0
        self.group: dict[int, int] = {}  # values that may share memory

    def graph(self) -> tuple[Graph, list[Tensor]]:
        signature = self.program.graph_signature
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        for spec in signature.input_specs:
            if isinstance(spec.arg, ConstantArgument):
                raise self._refuse("takes an input that is not a tensor")
            self.known[nodes[spec.arg.name]] = self._input(spec)
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                raise self._refuse("computes a part in a mode of its own (autocast, no_grad): turn it on outside")
            elif node.op not in ("placeholder", "output"):
                raise self._refuse(f"needs {node.op} {node.target}")
        outputs = []
        for out in signature.output_specs:
            if out.kind.name != "USER_OUTPUT":
                raise self._refuse(f"changes {out.target or 'one of its inputs'} while it runs in eval mode")
            outputs.append(out.arg.value if isinstance(out.arg, ConstantArgument) else self._by_name(out.arg.name))
        output = _plain(pytree.tree_unflatten(outputs, self.program.call_spec.out_spec), self._refuse)
        graph = _without_dead(Graph(self.inputs, tuple(self.steps), output))
        if why := unsafe(graph):
            raise self._refuse(f"{why}, which a stored network must not do")
        return graph, self.constants

    def _by_name(self, name: str) -> Any:
        return next(value for node, value in self.known.items() if node.name == name)

    def _input(self, spec: Any) -> Value | State:
        if spec.kind == InputKind.USER_INPUT:
            self.group[self.inputs] = self.inputs
            self.inputs += 1
            return Value(self.inputs - 1)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in self.place:
            return State(self.place[spec.target])
        source = self.program.constants if spec.target in self.program.constants else self.program.state_dict
        if not isinstance(source.get(spec.target), Tensor):
            raise self._refuse(f"needs {spec.target}, which is not a tensor")
        return self._constant(source[spec.target])

    def _constant(self, tensor: Tensor) -> State:
        for index, other in enumerate(self.constants):
            if other.dtype == tensor.dtype and other.shape == tensor.shape and torch.equal(other, tensor):
                return State(len(self.place) + index)
        self.constants.append(tensor.detach())
        return State(len(self.place) + len(self.constants) - 1)

    def _call(self, node: fx.Node) -> None:
        name = str(node.target)
        if "_assert" in name or "sym_constrain" in name:
            return
        if name.startswith("aten.") and name.split(".")[1].rstrip("_") in IDENTITIES:
            self.known[node] = self.known[_first(node)]
            return
        op, before = name_of(node.target), self.known.get(_first(node))
        writes = name.startswith("aten.") and name.split(".")[1].endswith("_") and not name.startswith("aten.__")
        if writes:
            op = self._without_writing(node, op)
        if op is None:
            raise self._refuse(f"calls {name}, which the format does not know")
        args, kwargs = _by_position(node)
        self.steps.append(Step(op, tuple(self._fill(arg) for arg in args), self._fill(kwargs)))
        result = Value(self.inputs + len(self.steps) - 1)
        self.known[node] = result
        shares = (op in VIEWS or op in WRITES) and isinstance(before, Value)
        self.group[result.index] = self.group[before.index] if shares else result.index  # type: ignore[union-attr]
        if writes:
            # What was written into is now the result, for all that reads it later.
            self.known.update({other: result for other, value in self.known.items() if value == before})

    def _without_writing(self, node: fx.Node, op: str | None) -> str | None:
        """The same operation with a new tensor as its result, where nothing else sees the memory it writes into."""
        target, written = node.target, self.known[_first(node)]
        if isinstance(written, State):
            raise self._refuse(f"changes {self.names[written.index]} while it runs in eval mode")
        packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").rstrip("_"), None)  # type: ignore[union-attr]
        twin = name_of(getattr(packet, target._overloadname, None))  # type: ignore[union-attr]
        alone = isinstance(written, Value) and list(self.group.values()).count(self.group[written.index]) == 1
        return twin if alone and twin is not None else op

    def _fill(self, value: Any) -> Any:
        match value:
            case fx.Node():
                if value not in self.known:
                    raise self._refuse(f"uses the result of {value.target}")
                return self.known[value]
            case list() | tuple():
                return (
                    type(value)(self._fill(item) for item in value)
                    if type(value) is tuple
                    else [*map(self._fill, value)]
                )
            case dict():
                return {key: self._fill(item) for key, item in value.items()}
            case torch.device():
                return DEVICE_OF_INPUT
            case None | bool() | int() | float() | str() | torch.layout():
                return value
            case torch.dtype() if value in DTYPES:
                return value
            case torch.memory_format() if value in FORMATS:
                return value
            case _:
                raise self._refuse(f"has an argument of type {type(value).__name__}")

    def _refuse(self, why: str) -> BadInput:
        return BadInput(f"{self.model} {why}; {WEIGHTS_ONLY}")


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def _by_position(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, with as few names as possible."""
    args, kwargs = list(node.args), dict(node.kwargs)
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        for argument in schema.arguments[len(args) :]:
            if argument.kwarg_only or argument.name not in kwargs:
                break
            args.append(kwargs.pop(argument.name))
    return args, {key: value for key, value in kwargs.items() if key not in ("layout", "pin_memory")}


def _plain(value: Any, refuse: Callable[[str], BadInput]) -> Any:
    """The structure of the outputs, in plain tuples, lists and dictionaries."""
    match value:
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _plain(item, refuse) for key, item in value.items()}
        case list():
            return [_plain(item, refuse) for item in value]
        case tuple():
            return tuple(_plain(item, refuse) for item in value)
        case Value() | State() | None | bool() | int() | float():
            return value
        case _:
            raise refuse(f"gives a {type(value).__name__}; tensors, tuples, lists and dictionaries can be stored")


def _without_dead(graph: Graph) -> Graph:
    """The graph without steps whose result nothing uses, and that write nowhere."""
    used = set(values_in(graph.output))
    keep = []
    for number in reversed(range(len(graph.steps))):
        step = graph.steps[number]
        if step.op in WRITES or graph.inputs + number in used:
            keep.append(number)
            used.update(values_in([*step.args, *step.kwargs.values()]))
    keep.reverse()
    place = {index: index for index in range(graph.inputs)}
    place.update({graph.inputs + number: graph.inputs + new for new, number in enumerate(keep)})
    steps = tuple(
        Step(step.op, _moved(step.args, place), _moved(step.kwargs, place)) for step in (graph.steps[n] for n in keep)
    )
    return Graph(graph.inputs, steps, _moved(graph.output, place))


def _moved(value: Any, place: dict[int, int]) -> Any:
    match value:
        case Value(index):
            return Value(place[index])
        case list():
            return [_moved(item, place) for item in value]
        case tuple():
            return tuple(_moved(item, place) for item in value)
        case dict():
            return {key: _moved(item, place) for key, item in value.items()}
        case _:
            return value
