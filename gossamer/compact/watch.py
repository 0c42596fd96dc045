"""What a network out of a file may allocate while it runs: looked at before every operation of the first run on inputs
of new sizes. Each operation first runs on the "meta" device, which computes sizes and holds no data."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from gossamer.errors import BadInput
from gossamer.gsr.format.operations import WRITES

MOST_MADE = 1 << 30  # bytes of what an operation makes without any tensor: zeros, full, arange
MOST_RESULT = 4 << 30  # bytes of every other result
MOST_ALIVE = 16 << 30  # bytes of all results that are needed at the same time
DEPENDS_ON_DATA = frozenset(("index.Tensor", "one_hot"))  # sizes that are not known before
RECURRENT = frozenset(("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"))
PIECES = frozenset(("unbind.int", "split.Tensor", "chunk", "tensor_split.sections"))
_TENSOR = torch._C.TensorType.get()
MOST_CLASSES = 1 << 24
MOST_REHEARSED = 4096
MOST_PIECES = 1 << 16
MOST_POWER = 64
MOST_SIZES = 1000  # kinds of inputs that are remembered


class NotForeseen(Exception):
    """A run on the "meta" device alone would take too long; nothing is wrong."""


class Watch:
    """Follows one run of a graph."""

    def __init__(self, outside: list[Any]) -> None:
        self.outside = {_memory(tensor) for tensor in outside if isinstance(tensor, Tensor)}
        self.users: dict[int, int] = {}  # how many values use a piece of memory
        self.alive = 0

    def before(self, op: str, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
        """Raise BadInput where the operation would make more than is admitted, or write where it must not."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        _check_numbers(op, args, given)
        if op in WRITES and _memory(args[0]) in self.outside:
            raise BadInput(f"the network writes into what is stored or what it is given, with {op}; it is not run")
        if op.startswith("py.") and not (args and isinstance(args[0], Tensor)):
            return
        if op in RECURRENT and given[0].is_meta and given[0].numel() // max(1, given[0].shape[-1]) > MOST_REHEARSED:
            raise NotForeseen
        with _disable_current_modes(), torch.no_grad():
            inside = _Inside(op in WRITES)
            made = _recurrent_bytes(given[0], args) if op in RECURRENT else inside.largest(function, args, kwargs)
        if inside.writes:
            raise BadInput(f"the network writes into what it only reads, with {inside.writes} in {op}; it is not run")
        most = MOST_RESULT if given else MOST_MADE
        if made > most or self.alive + made > MOST_ALIVE:
            raise BadInput(
                f"the network would make {made / 2**30:,.1f} GiB in {op}, with {self.alive / 2**30:.1f} GiB in use; "
                f"networks out of files may make {most >> 30} at a time and {MOST_ALIVE >> 30} in all; give it a "
                "smaller batch, or distrust the file"
            )

    def made(self, value: Any) -> None:
        """Count a result in."""
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and (key := _memory(leaf)) not in self.outside:
                if key not in self.users:
                    self.alive += leaf.untyped_storage().nbytes()
                self.users[key] = self.users.get(key, 0) + 1

    def freed(self, value: Any) -> None:
        """Count a result out."""
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and (key := _memory(leaf)) in self.users:
                self.users[key] -= 1
                if self.users[key] == 0:
                    del self.users[key]
                    self.alive -= leaf.untyped_storage().nbytes()


def sizes_of(inputs: tuple[Any, ...]) -> Any:
    """What tells inputs of one kind from those of another; None where nothing is allocated or another mode traces."""
    if torch.compiler.is_compiling() or any(isinstance(x, Tensor) and type(x) is not Tensor for x in inputs):
        return None
    return tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs)


class _Inside(TorchDispatchMode):
    """What an operation is made of. bytes: of the largest result. writes: what writes into what was given."""

    def __init__(self, may_write: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.writes = 0, ""
        self.reads: set[int] = set()
        self.may_write = may_write

    def largest(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> int:
        """Bytes of the largest result; of what is known before where the operation fails, which then says why."""
        args, kwargs = tree_map(on_meta, args), tree_map(on_meta, kwargs)
        if needs_device(function, args, kwargs):
            kwargs["device"] = torch.device("meta")
        self.reads = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        with contextlib.suppress(Exception), self:
            function(*args, **kwargs)
        return self.bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.may_write and any(_memory(t) in self.reads for t in _written(function, args, kwargs or {})):
            self.writes = str(function)
        result = function(*args, **(kwargs or {}))
        given = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _memory(leaf) not in given:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def needs_device(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation would make a tensor on a device of its own choice."""
    schema: Any = getattr(function, "_schema", None)
    if schema is None or kwargs.get("device") is not None or schema.arguments[0].type.isSubtypeOf(_TENSOR):
        return False
    return any(argument.name == "device" for argument in schema.arguments)


def _written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes into. Batch norms do not say so in their schema."""
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args)} | kwargs
    names = {argument.name for argument in function._schema.arguments if argument.is_write}
    if named.get("training") or named.get("train"):
        names |= {"running_mean", "running_var"}
    return [named[name] for name in names if isinstance(named.get(name), Tensor)]


def _check_numbers(op: str, args: list[Any], given: list[Tensor]) -> None:
    """Refuse what takes long before a tensor is made: numbers of thousands of digits, lists of millions of tensors."""
    numbers = [value for value in args if isinstance(value, int)]
    if op.startswith("py.") and any(abs(value) >= 1 << 63 for value in numbers):
        raise BadInput(f"the network computes with numbers of more than 64 bits, in {op}")
    if op == "py.pow" and not all(isinstance(value, int | float) and abs(value) <= MOST_POWER for value in args[1:]):
        raise BadInput(f"the network raises a size to a power above {MOST_POWER}")
    if op in PIECES and given and given[0].dim() and _pieces(op, given[0], args) > MOST_PIECES:
        raise BadInput(f"the network divides a tensor into more than {MOST_PIECES:,} parts, in {op}")
    if op == "one_hot" and given and args[1:] in ([], [-1]) and given[0].device.type != "meta" and given[0].numel():
        _check_classes(int(given[0].max()) + 1)


def _pieces(op: str, tensor: Tensor, args: list[Any]) -> int:
    """How many tensors an operation gives at most, along whatever dimension."""
    longest = max(tensor.shape)
    size = args[1] if len(args) > 1 and isinstance(args[1], int) else 1
    if op == "unbind.int":
        return longest
    return min(longest, size) if op in ("chunk", "tensor_split.sections") else longest // max(1, size)


def _check_classes(classes: int) -> None:
    if classes > MOST_CLASSES:
        raise BadInput(f"the network asks for {classes:,} classes; at most {MOST_CLASSES:,} are made")


def _recurrent_bytes(x: Tensor, args: list[Any]) -> int:
    """Of the gates of a recurrent layer, which has one weight of the gates' size first; without going through time."""
    gates = max((len(w) for w in tree_leaves(args[2:]) if isinstance(w, Tensor) and w.dim() == 2), default=1)
    return x.numel() // max(1, x.shape[-1]) * gates * x.element_size()


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def on_meta(value: Any) -> Any:
    """A tensor of the same sizes without data; everything else as it is, but devices."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value
