"""What networks give: a tensor, or several in tuples, dicts and objects of the user's own classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from gossamer.errors import BadInput

TUPLE, OBJECT = "tuple", "object"  # what stands before the fields of a named tuple and of an object in `places`


class Fields(dict[str, Any]):
    """Outputs of a class of the user's, as far as a measure can tell: by attribute, by name, by number."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's outputs have no {name!r}; they have {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class Named(tuple[Any, ...]):
    """Outputs that are a named tuple."""

    names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self[self.names.index(name)]
        raise AttributeError(f"the network's outputs have no {name!r}; they have {', '.join(self.names)}")


def named(names: Sequence[str], values: Sequence[Any]) -> Named:
    """A named tuple."""
    made = Named(values)
    made.names = tuple(names)
    return made


pytree.register_pytree_node(Fields, lambda x: (list(x.values()), list(x)), lambda v, k: Fields(zip(k, v)))
pytree.register_pytree_node(Named, lambda x: (list(x), x.names), lambda v, names: named(names, list(v)))


def parts(output: Any) -> tuple[str, dict[str, Any]] | None:
    """TUPLE or OBJECT, and the parts by name, of what has names and is no plain dict; None for all else."""
    names: Any = getattr(type(output), "_fields", None)
    if isinstance(output, tuple) and isinstance(names, tuple):
        return TUPLE, dict(zip(names, output))
    if isinstance(output, Named):
        return TUPLE, dict(zip(output.names, output))
    if isinstance(output, Mapping):
        return (OBJECT, dict(output)) if type(output).__module__ != "builtins" and _has_attributes(output) else None
    if is_dataclass(output) and not isinstance(output, type):
        return OBJECT, {f.name: getattr(output, f.name) for f in fields(output)}
    if isinstance(output, Tensor | list | tuple) or not hasattr(output, "__dict__"):
        return None
    found = {name: value for name, value in vars(output).items() if any(True for _ in tensors(value))}
    return (OBJECT, found) if found else None


def _has_attributes(output: Mapping[Any, Any]) -> bool:
    """Whether a dict of a class of its own gives its values as attributes, too."""
    return all(isinstance(name, str) for name in output) and type(output).__module__ != "collections"


def plain(output: Any) -> Any:
    """The same in tuples and dicts alone, which every exporter takes."""
    if (found := parts(output)) is not None:
        kind, inner = found
        values = {name: plain(value) for name, value in inner.items() if value is not None or kind == TUPLE}
        return values if kind == OBJECT else tuple(values.values())
    if isinstance(output, Mapping):
        return {name: plain(value) for name, value in output.items()}
    return tuple(plain(value) for value in output) if isinstance(output, tuple | list) else output


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors, in the order of a graph's outputs."""
    if isinstance(output, Tensor):
        yield output
    elif (found := parts(output)) is not None:
        for value in found[1].values():
            yield from tensors(value)
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors(value)


def places(output: Any) -> Any:
    """Where the tensors stand in outputs, in the order of a graph's: `{"boxes": 0, "labels": 1}`; null is no tensor;
    `["object", {"logits": 0}]` has its parts as attributes, `["tuple", {"a": 0, "b": 1}]` is a named tuple. None for
    what JSON cannot say: dicts by anything but text."""
    try:
        return _places(output, iter(range(len(list(tensors(output))))))
    except TypeError:
        return None


def _places(output: Any, count: Iterator[int]) -> Any:
    if isinstance(output, Tensor):
        return next(count)
    if (found := parts(output)) is not None:
        return [found[0], {name: _places(value, count) for name, value in found[1].items()}]
    if isinstance(output, Mapping):
        if not all(isinstance(name, str) for name in output):
            raise TypeError("a name that is no text")
        return {name: _places(value, count) for name, value in output.items()}
    return [_places(value, count) for value in output] if isinstance(output, tuple | list) else None


def marked(output: Any, structure: Any) -> Any:
    """Plain outputs with `(OBJECT, {...})` and `(TUPLE, {...})` where `places` says so of what they were."""
    if is_mark(structure):
        kind, inner = structure
        values = output if kind == OBJECT else dict(zip(inner, output))
        return kind, {name: marked(values.get(name), place) for name, place in inner.items()}
    if isinstance(structure, dict):
        return {name: marked(output[name], place) for name, place in structure.items()}
    return tuple(map(marked, output, structure)) if isinstance(structure, list) else output


def is_mark(value: Any) -> bool:
    """Whether a value stands for an object or a named tuple."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and not isinstance(value[0], Tensor)
    return bool(pair and value[0] in (TUPLE, OBJECT) and isinstance(value[1], dict))


def has_marks(value: Any) -> bool:
    """Whether there are some inside."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return is_mark(value) or any(map(has_marks, inner))


def unmarked(output: Any) -> Any:
    """`Fields` and `Named` in the place of marks."""
    if is_mark(output):
        kind, inner = output[0], {name: unmarked(value) for name, value in output[1].items()}
        return Fields(inner) if kind == OBJECT else named(list(inner), list(inner.values()))
    if isinstance(output, dict):
        return {name: unmarked(value) for name, value in output.items()}
    return type(output)(map(unmarked, output)) if type(output) in (list, tuple) else output


def put(outputs: Sequence[Tensor], structure: Any) -> Any:
    """Tensors where `places` found them; lists become tuples, objects `Fields`, named tuples `Named`."""
    if isinstance(structure, dict):
        return {name: put(outputs, inner) for name, inner in structure.items()}
    if isinstance(structure, list | tuple):
        if is_mark(structure):
            inner = put(outputs, structure[1])
            return Fields(inner) if structure[0] == OBJECT else named(list(inner), list(inner.values()))
        return tuple(put(outputs, inner) for inner in structure)
    return outputs[structure] if isinstance(structure, int) else None


def first_tensor(output: Any) -> Tensor:
    """The output of a network, of several the first."""
    found = next(tensors(output), None)
    if found is None:
        raise BadInput(f"the network gives no tensor but a {type(output).__name__}")
    return found
