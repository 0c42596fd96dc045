"""What a network out of a file may allocate and compute while it runs.

It is looked at before every operation of the first run on inputs of new sizes. Each operation first runs on the "meta"
device, which computes sizes and holds no data.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from gossamer.compact.work import OPERATION, STEP, hidden_bytes, most_work, recurrent_work, work_of
from gossamer.errors import BadInput, first_line
from gossamer.gsr.format.operations import WRITES

MOST_MADE = 1 << 30  # bytes of what an operation makes without any tensor: zeros, full, arange
MOST_RESULT = 4 << 30  # bytes of every other result
MOST_ALIVE = 16 << 30  # bytes of all results that are needed at the same time
DEPENDS_ON_DATA = frozenset(("index.Tensor", "index_put", "index_put_", "one_hot"))  # sizes are not known before
RECURRENT = frozenset(("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"))
PIECES = frozenset(("unbind.int", "split.Tensor", "chunk", "tensor_split.sections"))
MASKS = (torch.bool, torch.uint8)
_TENSOR = torch._C.TensorType.get()
MOST_CLASSES = 1 << 24
MOST_REHEARSED = 4096
MOST_PIECES = 1 << 16
MOST_POWER = 64
MOST_SIZES = 1000  # kinds of inputs that are remembered


class NotForeseen(Exception):
    """A run on the "meta" device alone would take too long; nothing is wrong."""


class Watch:
    """Follows one run of a graph.

    Args:
        stored: Tensors of the file.
        inputs: What the graph is given.
        file_bytes: Size of the file.
    """

    def __init__(self, stored: list[Tensor], inputs: tuple[Any, ...], file_bytes: int) -> None:
        self.outside = {_memory(tensor) for tensor in (*stored, *inputs) if isinstance(tensor, Tensor)}
        self.users: dict[int, int] = {}  # how many values use a piece of memory
        self.alive = 0
        self.work, self.most_work = 0, most_work(inputs, stored, file_bytes)

    def before(self, op: str, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
        """Look at an operation.

        Raises:
            BadInput: It would make or compute too much, or write where it must not.
            RuntimeError: It cannot run on tensors of these sizes and types.
        """
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        _check_numbers(op, args, given)
        if op in WRITES and _memory(args[0]) in self.outside:
            raise BadInput(f"the network writes into what is stored or what it is given, with {op}; it is not run")
        if op.startswith("py.") and not (args and isinstance(args[0], Tensor)):
            self.charge(op, 0, MOST_MADE, OPERATION)
            return
        if op in RECURRENT and given[0].is_meta and given[0].numel() // max(1, given[0].shape[-1]) > MOST_REHEARSED:
            raise NotForeseen
        most = MOST_RESULT if given else MOST_MADE
        self.charge(op, 0, most, STEP)
        if op in RECURRENT:
            self.charge(op, _recurrent_bytes(given[0], args), most, recurrent_work(args))
            return
        inside = _Inside(op in WRITES, lambda created, work: self.charge(op, created, most, work))
        try:
            with _disable_current_modes(), torch.no_grad():
                inside.run(function, sizes_known(op, args), kwargs)
        except (BadInput, NotForeseen):
            raise
        except Exception as error:
            raise RuntimeError(f"{op}: {first_line(error)}") from error
        if inside.writes:
            raise BadInput(f"the network writes into what it only reads, with {inside.writes} in {op}; it is not run")

    def charge(self, op: str, created: int, most: int, work: int) -> None:
        """Count operations in, and look at the bytes of what they make. Raises BadInput where it is too much."""
        if created > most or self.alive + created > MOST_ALIVE:
            raise BadInput(
                f"the network would make {created / 2**30:,.1f} GiB in {op}, with {self.alive / 2**30:.1f} GiB in use; "
                f"networks out of files may make {most >> 30} at a time and {MOST_ALIVE >> 30} in all; give it a "
                "smaller batch, or distrust the file"
            )
        self.work += work
        if self.work > self.most_work:
            raise BadInput(
                f"the network would take more than {self.most_work:.2g} operations, in {op}, the most for a file and "
                "inputs of these sizes; distrust the file, or run the network in its own class"
            )

    def created(self, value: Any) -> None:
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
    """What an operation is made of.

    charge is told the bytes and the work of each part; writes is what writes into what was given.
    """

    def __init__(self, may_write: bool, charge: Callable[[int, int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes = ""
        self.reads: set[int] = set()
        self.may_write = may_write
        self.charge = charge

    def run(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
        """Call an operation on tensors without data."""
        cast = any(torch.is_autocast_enabled(x.device.type) for x in tree_leaves((args, kwargs)) if _on_device(x))
        args, kwargs = tree_map(on_meta, args), tree_map(on_meta, kwargs)
        if cast:
            # There operands of several precisions meet; without data nothing casts them. The widest is followed.
            args, kwargs = tree_map(_full, args), tree_map(_full, kwargs)
        if needs_device(function, args, kwargs):
            kwargs["device"] = torch.device("meta")
        self.reads = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        with self:
            function(*args, **kwargs)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.may_write and any(_memory(t) in self.reads for t in _written(function, args, kwargs)):
            self.writes = str(function)
        result = function(*args, **kwargs)
        given = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _memory(t) not in given]
        if new or function._schema.is_mutable:
            sizes = [tensor.untyped_storage().nbytes() for tensor in new]
            self.charge(max([hidden_bytes(function, args, result), *sizes]), work_of(function, args, result))
        else:
            self.charge(0, OPERATION)  # a view
        return result


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def sizes_known(op: str, args: list[Any]) -> list[Any]:
    """The arguments of an operation whose result has sizes that depend on data, with others whose sizes say it.

    Masks become as many positions as they hold, and classes are counted. Raises NotForeseen where there are no data.
    """
    if op not in DEPENDS_ON_DATA:
        return args
    if op == "one_hot":
        if args[1:] not in ([], [-1]):
            return args
        if args[0].is_meta:
            raise NotForeseen
        return [args[0], int(args[0].max()) + 1 if args[0].numel() else -1]
    if any(isinstance(index, Tensor) and index.dtype in MASKS and index.is_meta for index in args[1]):
        raise NotForeseen
    return [args[0], [place for index in args[1] for place in _positions(index)], *args[2:]]


def _positions(index: Any) -> list[Any]:
    """What a mask stands for as an index: one row of positions for each of its dimensions."""
    if not isinstance(index, Tensor) or index.dtype not in MASKS:
        return [index]
    found = torch.empty(int(index.count_nonzero()), dtype=torch.int64, device="meta")
    return [found] * index.dim()


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
