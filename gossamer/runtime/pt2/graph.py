"""The graph of a `.pt2` as a list of ATen operations, the same as that of a `.gsr`.

Nothing of torch's own loader runs: it evaluates the file's expressions of sizes, guards and names as Python.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.compact.watch import needs_device
from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.format.graph import (
    DEVICE_OF_INPUT,
    FORMATS,
    Graph,
    State,
    Step,
    Value,
)
from gossamer.gsr.format.operations import IDENTITIES, WRITES, function_of, listed_name
from gossamer.gsr.format.safety import mistyped, writes_outside
from gossamer.runtime.pt2.archive import DTYPES
from gossamer.runtime.pt2.operations import (
    ALLOWED,
    ARITHMETIC,
    CHECKS,
    COPIED,
    SET,
    TWINS,
)

MOST_STEPS = 1 << 15
MOST_NESTED = 16  # tuples, lists and dictionaries inside one another, in what the network takes and gives
IN_PLACE = re.compile(r"torch\.ops\.aten\.(?!__)\w+_\.\w+")
OPERATION = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
WRAPPED = {"torch.ops.higher_order.wrap_with_set_grad_enabled": 1, "torch.ops.higher_order.wrap_with_autocast": 4}
POSITIONAL = 1
STRIDED = 7
PLAIN = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings")
NUMBERS = {"as_int": int, "as_float": float, "as_bool": bool, "as_string": str}
FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


@dataclass(frozen=True)
class Taken:
    """One leaf of what the network takes. enters: whether the graph reads it; else it must be the constant.

    sizes: of a tensor, None where one is free. hints: those that it was exported with. No sizes: a whole number.
    """

    enters: bool
    constant: Any = None
    sizes: tuple[int | None, ...] | None = None
    hints: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def example(self) -> Any:
        """Such an input, without data."""
        return 2 if self.sizes is None else torch.empty(self.hints, dtype=self.dtype, device="meta")

    def check(self, value: Any, number: int) -> None:
        """Raise BadInput where the value is none that the network was exported for. number: of the input, from 1."""
        if not self.enters:
            if value is not self.constant and value != self.constant:
                raise BadInput(f"input {number} is {value!r:.40}; the network was exported for {self.constant!r:.40}")
        elif self.sizes is None:
            if not isinstance(value, int | torch.SymInt):
                raise BadInput(f"input {number} must be a whole number, got {type(value).__name__}")
        elif not isinstance(value, Tensor):
            raise BadInput(f"input {number} must be a tensor, got {type(value).__name__}")
        elif value.dim() != len(self.sizes) or any(
            size is not None and size != got for size, got in zip(self.sizes, value.shape)
        ):
            wanted = "x".join("?" if size is None else str(size) for size in self.sizes)
            got = "x".join(map(str, value.shape))
            raise BadInput(f"input {number} has the shape {got}; the network was exported for {wanted}")


@dataclass(frozen=True)
class Program:
    """graph: its States are places in `states`, names of stored tensors. takes: the leaves of the inputs, in order."""

    graph: Graph
    states: tuple[str, ...]
    takes: tuple[Taken, ...]


def read_program(document: dict[str, Any], stored: list[str]) -> Program:
    """The program of a file. stored: names of its tensors. Raises CorruptFile for what must not run."""
    if document["schema_version"]["major"] != 8:
        raise CorruptFile(f"written in version {document['schema_version']['major']} of the format; 8 is read")
    return _Reader(document["graph_module"], stored).program()


class _Reader:
    """Goes through the graph once. known: what every name of the file stands for."""

    def __init__(self, module: dict[str, Any], stored: list[str]) -> None:
        self.module, self.names = module, module["treespec_namedtuple_fields"]
        self.states = list(stored)
        self.place = {name: index for index, name in enumerate(stored)}
        self.known: dict[str, Any] = {}
        self.steps: list[Step] = []
        self.inputs = 0

    def program(self) -> Program:
        graph, signature = self.module["graph"], self.module["signature"]
        takes = [one for spec in signature["input_specs"] if (one := self._input(spec, graph)) is not None]
        if self.inputs == 0:
            raise CorruptFile("the network takes no tensors")
        self._own_inputs(graph["nodes"])
        self._nodes(graph["nodes"])
        [call] = [entry["signature"] for entry in self.module["module_call_graph"] if entry["fqn"] == ""]
        leaves = iter([self._output(spec) for spec in signature["output_specs"]])
        output = _structure(json.loads(call["out_spec"])[1], leaves, self.names)
        if next(leaves, leaves) is not leaves:
            raise CorruptFile("the network gives more than its outputs have places for")
        whole = Graph(self.inputs, tuple(self.steps), output)
        if why := writes_outside(whole):
            raise CorruptFile(why)
        for step in whole.steps:
            if why := mistyped(step):
                raise CorruptFile(f"{step.op} {why}")
        return Program(whole, tuple(self.states), tuple(takes))

    def _input(self, spec: dict[str, Any], graph: dict[str, Any]) -> Taken | None:
        kind, body = _only(spec)
        if kind == "constant_input":
            return Taken(enters=False, constant=_plain(*_only(body["value"])))
        if kind in ("parameter", "buffer", "tensor_constant"):
            target = body[{"parameter": "parameter_name", "buffer": "buffer_name"}.get(kind, "tensor_constant_name")]
            if target not in self.place:
                raise CorruptFile(f"takes the tensor {target!r:.80}, which is not stored")
            self.known[body["arg"]["name"]] = State(self.place[target])
            return None
        if kind != "user_input":
            raise CorruptFile(f"takes a {kind!r:.40}, which is no tensor")
        how, argument = _only(body["arg"])
        if how not in ("as_tensor", "as_sym_int"):
            return Taken(enters=False, constant=_plain(how, argument))
        name = argument["name" if how == "as_tensor" else "as_name"]
        self.known[name] = Value(self.inputs)
        self.inputs += 1
        if how == "as_sym_int":
            return Taken(enters=True)
        meta = graph["tensor_values"][name]
        sizes = tuple(size.get("as_int") for size in meta["sizes"])
        hints = tuple(_hint(size) for size in meta["sizes"])
        return Taken(enters=True, sizes=sizes, hints=hints, dtype=DTYPES[meta["dtype"]])

    def _own_inputs(self, nodes: list[dict[str, Any]]) -> None:
        """Copy the inputs that the network writes into: what the user gives stays as it is."""
        first = [node["inputs"][0]["arg"] for node in nodes if node["inputs"] and IN_PLACE.fullmatch(node["target"])]
        for name in {argument["as_tensor"]["name"]: None for argument in first if "as_tensor" in argument}:
            if isinstance(value := self.known.get(name), Value):
                self.steps.append(Step("clone", (value,), {}))
                self.known[name] = Value(self.inputs + len(self.steps) - 1)

    def _output(self, spec: dict[str, Any]) -> Any:
        kind, body = _only(spec)
        if kind != "user_output":
            raise CorruptFile(f"its graph ends in {kind!r:.40}: it changes what is stored or what it is given")
        return self._argument(body["arg"])

    def _nodes(self, nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            target, outputs = node["target"], node["outputs"]
            if target in WRAPPED:
                self._wrapped(node)
                continue
            name = _name(target)
            if name in CHECKS:
                continue
            self._add(*self._call(name, target, node["inputs"]), outputs)

    def _call(self, name: str | None, target: str, inputs: list[dict[str, Any]]) -> tuple[str, list[Any], Any]:
        """An operation that may run, with its arguments."""
        args, kwargs = self._arguments(inputs)
        bare = (name or "").partition(".")[0].rstrip("_")
        if bare in IDENTITIES:
            if len(args) != 3 or kwargs or not isinstance(args[2], bool):
                raise CorruptFile(f"calls {target!r:.100} in a way that is not read")
            if not args[2]:
                return "alias", args[:1], {}
            self.steps.append(Step("clone", (args[0],), {}))  # where it drops nothing it gives its input
            args[0] = Value(self.inputs + len(self.steps) - 1)
        if name in ("detach_", "lift_fresh"):
            name = "detach"
        if name in COPIED:
            self.steps.append(Step(name, tuple(args), kwargs))
            return "clone", [Value(self.inputs + len(self.steps) - 1)], {}
        name = SET.get(name or "", name)
        if name is not None and bare and name.partition(".")[0].endswith("_") and name not in WRITES:
            packet, dot, overload = name.partition(".")
            twin = self._allow(TWINS.get(name, packet[:-1] + dot + overload), target)
            self.steps.append(Step(twin, tuple(args), kwargs))
            return "copy_", [args[0], Value(self.inputs + len(self.steps) - 1)], {}
        name = self._allow(name, target)
        if needs_device(function_of(name), args, kwargs):
            kwargs["device"] = DEVICE_OF_INPUT
        return name, args, kwargs

    def _allow(self, name: str | None, target: str) -> str:
        if name is None or name not in ALLOWED:
            raise CorruptFile(f"calls {target!r:.100}, which is no operation of torch that a .pt2 may call")
        if function_of(name) is None:
            raise CorruptFile(f"calls {target!r}, which torch {torch.__version__} does not have; install a newer torch")
        return name

    def _arguments(self, inputs: list[dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for entry in inputs:
            value = self._argument(entry["arg"])
            if entry.get("kind", POSITIONAL) == POSITIONAL or not entry["name"]:
                args.append(value)
            elif entry["name"] not in ("layout", "pin_memory"):
                kwargs[entry["name"]] = value
        return args, kwargs

    def _add(self, name: str, args: list[Any], kwargs: dict[str, Any], outputs: list[dict[str, Any]]) -> None:
        if len(self.steps) > MOST_STEPS:
            raise CorruptFile(f"has more than {MOST_STEPS:,} operations")
        self.steps.append(Step(name, tuple(args), kwargs))
        whole = Value(self.inputs + len(self.steps) - 1)
        if len(outputs) == 1 and "as_tensors" not in outputs[0]:
            self._bind(outputs[0], whole)
        elif len(outputs) == 1:
            self._unpack([{"as_tensor": one} for one in outputs[0]["as_tensors"]], whole)
        else:
            self._unpack(outputs, whole)

    def _unpack(self, outputs: list[dict[str, Any]], whole: Value) -> None:
        for index, output in enumerate(outputs):
            kind, _ = _only(output)
            if kind == "as_none":
                continue
            self.steps.append(Step("py.getitem", (whole, index), {}))
            item = Value(self.inputs + len(self.steps) - 1)
            if kind == "as_tensors":
                self._unpack([{"as_tensor": one} for one in output["as_tensors"]], item)
            else:
                self._bind(output, item)

    def _bind(self, output: dict[str, Any], value: Any) -> None:
        kind, body = _only(output)
        if kind == "as_tensor":
            name = body["name"]
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            name = body["as_name"]
        else:
            raise CorruptFile(f"an operation gives a {kind!r:.40}")
        if name in self.known:
            raise CorruptFile(f"{name!r:.80} is made twice")
        self.known[name] = value

    def _wrapped(self, node: dict[str, Any]) -> None:
        """A part that ran without gradients or without autocast: its operations, in the place of the call."""
        given = [entry["arg"] for entry in node["inputs"]]
        at = WRAPPED[node["target"]]
        if len(given) <= at or "as_graph" not in given[at] or (at == 4 and given[2] != {"as_bool": False}):
            raise CorruptFile(f"calls {node['target']!r} in a way that is not read")
        inner, outer = given[at]["as_graph"]["graph"], self.known
        self.known = {}
        for place, argument in zip(inner["inputs"], given[at + 1 :], strict=True):
            kind, body = _only(place)
            self.known[body["name" if kind == "as_tensor" else "as_name"]] = _within(self, argument, outer)
        self._nodes(inner["nodes"])
        results = [self._argument(output) for output in inner["outputs"]]
        self.known = outer
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            outputs = [{"as_tensor": one} for one in outputs[0]["as_tensors"]]
        for output, result in zip(outputs, results, strict=True):
            if "as_none" not in output:
                self._bind(output, result)

    def _argument(self, argument: dict[str, Any]) -> Any:
        kind, body = _only(argument)
        match kind:
            case "as_tensor":
                return self._named_value(body["name"])
            case "as_tensors":
                return [self._named_value(one["name"]) for one in body]
            case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._sized(one) for one in body]
            case "as_sym_int" | "as_sym_float" | "as_sym_bool" | "as_optional_tensor":
                return self._sized(body)
            case "as_scalar_type":
                return DTYPES[body]
            case "as_memory_format":
                return FORMATS[{1: 0, 2: 2, 3: 3, 4: 1}[body]]
            case "as_device":
                return DEVICE_OF_INPUT
            case "as_layout" if body == STRIDED:
                return torch.strided
            case _:
                return _plain(kind, body)

    def _sized(self, argument: dict[str, Any]) -> Any:
        """A member of a list: a name, an optional tensor or a number."""
        kind, body = _only(argument)
        if kind == "as_name":
            return self._named_value(body)
        return self._named_value(body["name"]) if kind == "as_tensor" else _plain(kind, body)

    def _named_value(self, name: str) -> Any:
        if name not in self.known:
            raise CorruptFile(f"an operation takes {name!r:.80}, which does not exist yet")
        return self.known[name]


def _within(reader: _Reader, argument: dict[str, Any], names: dict[str, Any]) -> Any:
    """What an argument of a wrapped part stands for outside."""
    inner, reader.known = reader.known, names
    value = reader._argument(argument)
    reader.known = inner
    return value


def _name(target: str) -> str | None:
    """An operation by its name in the list; None where it can be none of them."""
    found = OPERATION.fullmatch(target)
    if found is None:
        return ARITHMETIC.get(target)
    packet, overload = found.groups()
    return listed_name(packet if overload == "default" else f"{packet}.{overload}")


def _only(union: dict[str, Any]) -> tuple[str, Any]:
    """Kind and value of something that is one of several kinds."""
    [(kind, body)] = union.items()
    return kind, body


def _hint(size: dict[str, Any]) -> int:
    """A size with which the network was exported; 2 where the file does not say."""
    kind, body = _only(size)
    hint = {"as_int": body} if kind == "as_int" else body.get("hint") or {"as_int": 2}
    found: Any = hint["as_int"]
    if not isinstance(found, int) or not 0 <= found < 1 << 40:
        raise CorruptFile(f"{found!r:.40} is no size of an input")
    return int(found)


def _plain(kind: str, body: Any) -> Any:
    """A value that is no tensor."""
    if kind == "as_none":
        return None
    if kind not in PLAIN:
        raise CorruptFile(f"holds a value of the kind {kind!r:.40}")
    if kind.endswith("s"):
        if not isinstance(body, list):
            raise CorruptFile(f"{kind} is no list")
        return [_plain(kind[:-1], item) for item in body]
    if kind == "as_float" and isinstance(body, int | str):
        return FLOATS[body] if isinstance(body, str) else float(body)
    fits = kind != "as_int" or (isinstance(body, int) and -(1 << 63) <= body < 1 << 63)
    if not fits or type(body) is not NUMBERS[kind]:
        raise CorruptFile(f"{kind} is {body!r:.40}")
    return body


def _structure(spec: dict[str, Any], leaves: Any, names: dict[str, Any], depth: int = 0) -> Any:
    """Tuples, lists and dictionaries as the network gives them, classes of their own as dictionaries or tuples."""
    if depth > MOST_NESTED:
        raise CorruptFile(f"its outputs are nested more than {MOST_NESTED} deep")
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        leaf = next(leaves, leaves)
        if leaf is leaves:
            raise CorruptFile("its outputs have more places than the network gives")
        return leaf
    items = [_structure(child, leaves, names, depth + 1) for child in children]
    if kind == "builtins.list":
        return items
    context = json.loads(spec["context"]) if isinstance(spec["context"], str) else None
    keys = names.get(context, {}).get("field_names") if isinstance(context, str) else _keys(context)
    if isinstance(context, str) or not _names_of(keys, items):
        return tuple(items)
    return dict(zip(keys, items, strict=True))


def _keys(context: Any) -> Any:
    """Keys of a dictionary; those of a defaultdict stand behind what makes new values."""
    return context[-1] if isinstance(context, list) and context and isinstance(context[-1], list) else context


def _names_of(keys: Any, items: list[Any]) -> bool:
    return isinstance(keys, list) and len(keys) == len(items) and all(isinstance(key, str) for key in keys)
