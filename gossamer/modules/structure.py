"""How a changed network differs from the one it was made of, as data: stored next to weights, and replayed on a network
of the original's class, so that the weights of a compressed network come back into the user's own code."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.core.copies import state_of
from gossamer.errors import BadInput, CorruptFile, first_line
from gossamer.modules import binary, inserted

MOST_BYTES, MOST_NODES, MOST_DEPTH, MOST_DIMENSIONS = 1 << 22, 1 << 16, 24, 32
_TORCH_OWN = frozenset(vars(nn.Module()))

_HOMES: dict[str, Any] = {"nn": nn, "inserted": inserted, "binary": binary}

Plain = bool | int | float | str | None | list[Any]


class Unreplayable(BadInput):
    """What differs cannot be told as data; the message says where and why."""


@dataclass
class Node:
    """A module as it differs from another, or a new one.

    made: the class of a new module. moved: the path of a module of the original that goes here. attributes: new values
    by path ("sizes.1"). parameters, buffers: shapes of those that are new or have another shape, behind the dtype where
    it is not float32; None for those that are gone. children: the nodes of modules, by their name; None where there is
    None instead, False where there is no such name any more. order: the names of all children, where it is another one.
    """

    made: str | None = None
    moved: str | None = None
    attributes: dict[str, Plain] = field(default_factory=dict)
    parameters: dict[str, list[Any] | None] = field(default_factory=dict)
    buffers: dict[str, list[Any] | None] = field(default_factory=dict)
    children: dict[str, "Node | Literal[False] | None"] = field(default_factory=dict)
    order: list[str] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return vars(self) == vars(Node())

    def plain(self) -> dict[str, Any]:
        """JSON values, without what is empty."""
        raw = {key: value for key, value in vars(self).items() if value and key != "children"}
        if self.children:
            raw["children"] = {
                key: child.plain() if isinstance(child, Node) else child for key, child in self.children.items()
            }
        return raw


@dataclass(frozen=True)
class Structure:
    """The root's node, and the network that it applies to: its class, and a digest of the names and shapes of its
    tensors."""

    root: Node
    of: str
    digest: str

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has the tensors of the original, by names and shapes."""
        return structure_digest(model) == self.digest

    def text(self) -> str:
        """As it is stored: compact JSON."""
        return json.dumps({"of": self.of, "digest": self.digest, "root": self.root.plain()}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> "Structure":
        """From a stored text. Raises CorruptFile where it is not one, or exceeds a limit."""
        if len(text) > MOST_BYTES:
            raise CorruptFile(f"its structure takes {len(text):,} bytes; at most {MOST_BYTES:,} are read")
        try:
            raw = json.loads(text)
            root, of, sum_ = _node(raw["root"], [0], 0), raw["of"], raw["digest"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptFile(f"its structure is damaged: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(of, str) or not isinstance(sum_, str):
            raise CorruptFile("its structure does not say which network it is of")
        return cls(root, of, sum_)


def structure_digest(model: nn.Module) -> str:
    """Of the names and shapes of the tensors of the state."""
    rows = sorted(f"{name} {list(tensor.shape)}" for name, tensor in state_of(model).items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


# --- finding


def difference(original: nn.Module, changed: nn.Module) -> Structure | None:
    """What `changed` was made of `original` by, None where they have one structure. Neither may be constrained.

    Raises Unreplayable where modules or attributes differ that are no plain data.
    """
    if type(original) is not type(changed):
        raise Unreplayable(f"the network was a {type(original).__name__} and is a {type(changed).__name__}")
    root = _changes(original, changed, original, "")
    return None if root.empty else Structure(root, type(original).__name__, structure_digest(original))


def _changes(old: nn.Module, new: nn.Module, root: nn.Module, path: str) -> Node:
    """How a module differs from one of its class. root: the original; path: of the module in the changed network."""
    node = Node()
    theirs = {key: value for key, value in vars(new).items() if key not in _TORCH_OWN}
    for key, value in vars(old).items():
        if key in theirs:
            node.attributes.update(_attribute_changes(key, value, theirs[key], join_path(path, key), 0))
    node.parameters, node.buffers = _tensor_changes(old, new, path)
    for name in {**old._modules, **new._modules}:
        before, after, at = old._modules.get(name), new._modules.get(name), join_path(path, name)
        if after is None:
            gone: Literal[False] | None = None if name in new._modules else False
            if before is not None or (gone is None) != (name in old._modules):
                node.children[name] = gone
        elif before is not None and type(before) is type(after):
            child = _changes(before, after, root, at)
            if not child.empty:
                node.children[name] = child
        else:
            node.children[name] = _new(after, root, at)
    if list(new._modules) != _replayed_order(old, node):
        node.order = list(new._modules)
    return node


def _new(module: nn.Module, root: nn.Module, path: str) -> Node:
    """A module that the original has not at this path: of a known class, or moved from elsewhere."""
    name = _known_name(type(module))
    if name is None:
        source, old = _source(module, root, path)
        node = _changes(old, module, root, path)
        node.moved = source
        return node
    node = Node(made=name)
    for key, value in vars(module).items():
        if key not in _TORCH_OWN:
            node.attributes[key] = _plain(value, join_path(path, key))
    node.parameters = {key: _spec(p) for key, p in module._parameters.items()}
    node.buffers = {key: _spec(b) for key, b in module._buffers.items()}
    if module._non_persistent_buffers_set:
        raise Unreplayable(f"{path} has buffers that are not part of its state")
    for key, child in module._modules.items():
        node.children[key] = None if child is None else _new(child, root, join_path(path, key))
    return node


def _source(module: nn.Module, root: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module of the original that a module was made of: of its class, the nearest to its path."""

    def distance(name: str) -> tuple[int, int]:
        pairs = zip(name.split("."), path.split("."))
        alike = next((i for i, (a, b) in enumerate(pairs) if a != b), min(name.count("."), path.count(".")) + 1)
        return -alike, name.count(".")

    names = [name for name, other in root.named_modules() if name and type(other) is type(module)]
    if not names:
        raise Unreplayable(f"{path} is a {type(module).__name__}, which is neither of torch.nn nor in the original")
    nearest = min(names, key=distance)
    return nearest, root.get_submodule(nearest)


def _attribute_changes(path: str, old: Any, new: Any, where: str, depth: int) -> Iterator[tuple[str, Plain]]:
    """Paths and new values of what differs inside an attribute, as far as it is plain data."""
    if old is new or depth > 4 or isinstance(old, nn.Module | Tensor | type) or callable(old):
        return
    if _is_plain(old) and _is_plain(new):
        if old != new or type(old) is not type(new):
            yield path, _plain(new, where)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from _attribute_changes(f"{path}.{i}", a, b, where, depth + 1)
    elif hasattr(old, "__dict__") and type(old) is type(new) and "." not in path:
        for key, value in vars(old).items():
            if key in vars(new):
                yield from _attribute_changes(f"{path}.{key}", value, vars(new)[key], where, depth + 1)


def _tensor_changes(old: nn.Module, new: nn.Module, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    kinds: Any = ((old._parameters, new._parameters), (old._buffers, new._buffers))
    for result, (before, after) in zip(found, kinds):
        for name in {**before, **after}:
            a, b = before.get(name), after.get(name)
            if (None if a is None else a.shape) == (None if b is None else b.shape):
                continue
            if name in new._non_persistent_buffers_set:
                raise Unreplayable(f"{join_path(path, name)} has another shape and is not part of the state")
            result[name] = None if b is None else _spec(b)
    return found


def _spec(tensor: Tensor | None) -> list[Any] | None:
    """Shape, behind the dtype where it is not float32."""
    if tensor is None:
        return None
    kind = [] if tensor.dtype == torch.float32 else [str(tensor.dtype).removeprefix("torch.")]
    return [*kind, *tensor.shape]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any, where: str) -> Plain:
    if not _is_plain(value):
        raise Unreplayable(f"{where} is a {type(value).__name__}, which is no plain data")
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def known_class(name: str) -> type[nn.Module] | None:
    """The class of a name, if modules of it may be made from data: those of torch.nn, and gossamer's own."""
    prefix, _, own = name.partition(".")
    kind = vars(_HOMES[prefix]).get(own) if prefix in _HOMES else None
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def _known_name(kind: type) -> str | None:
    return next((name for name in (f"{home}.{kind.__name__}" for home in _HOMES) if known_class(name) is kind), None)


def join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _replayed_order(old: nn.Module, node: Node) -> list[str]:
    """The names of the children after a replay without an order."""
    kept = [key for key in old._modules if node.children.get(key, True) is not False]
    return [*kept, *(key for key, child in node.children.items() if child is not False and key not in kept)]


# --- reading


def _node(raw: Any, count: list[int], depth: int) -> Node:
    """A node of JSON values. Raises ValueError for what is none, and over the limits."""
    count[0] += 1
    if count[0] > MOST_NODES or depth > MOST_DEPTH:
        raise ValueError("it has more modules, or modules nested deeper, than are read")
    if not isinstance(raw, dict) or raw.keys() - vars(Node()).keys():
        raise ValueError("a module has unknown fields")
    node = Node(**{key: value for key, value in raw.items() if key != "children"})
    if not all(isinstance(part, dict) for part in (node.attributes, node.parameters, node.buffers)):
        raise ValueError("a module has fields of other types")
    for text in (node.made, node.moved):
        if text is not None and not isinstance(text, str):
            raise ValueError("the name of a module is no text")
    for key, value in node.attributes.items():
        if not _is_plain(value) or key.split(".")[0] in _TORCH_OWN or any(k.startswith("__") for k in key.split(".")):
            raise ValueError(f"the attribute {key} cannot be set")
    for shapes in (node.parameters, node.buffers):
        for key, shape in shapes.items():
            _check_spec(key, shape)
    if node.order is not None and not all(isinstance(name, str) for name in node.order):
        raise ValueError("an order is no list of names")
    for key, child in raw.get("children", {}).items():
        node.children[_name(key)] = child if child is None or child is False else _node(child, count, depth + 1)
    return node


def _check_spec(name: str, shape: list[Any] | None) -> None:
    _name(name)
    if shape is None:
        return
    sizes = shape[1:] if shape and isinstance(shape[0], str) else shape
    if (
        not isinstance(shape, list)
        or len(sizes) > MOST_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 1 << 40 for size in sizes)
    ):
        raise ValueError(f"{name} has no shape of a tensor")
    if sizes is not shape and not isinstance(getattr(torch, shape[0], None), torch.dtype):
        raise ValueError(f"{name} has an unknown dtype")


def _name(text: str) -> str:
    if not text or "." in text or text.startswith("__"):
        raise ValueError(f"{text!r} is no name of a module or a tensor")
    return text
