"""The ATen operations of one run, recorded at the dispatcher: nothing has to be exportable, Python just runs."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gossamer.errors import BadInput

Shape = tuple[int, ...]

# The operations that weighted layers of torch.nn become.
LAYER_OPS = ("aten.convolution", "aten.addmm", "aten.mm", "aten.linear")


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of a trace, by number."""

    index: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. modules: names of the modules it ran in, outermost first ("" is the network itself)."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[Ref | None, ...]
    modules: tuple[str, ...]

    @property
    def where(self) -> str:
        """The operation and its place, for messages."""
        return f"{self.name} in {(self.modules[-1] if self.modules else '') or 'the network'}"

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        for i, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if i < len(self.args):
                    return self.args[i]
                return argument.default_value if argument.has_default_value() else default
        return default

    def refs(self) -> list[Ref]:
        """The tensors that go in, in order."""
        return list(_refs((self.args, self.kwargs)))


@dataclass
class Trace:
    """What one run did. shapes: of every tensor, by number; names: parameters and buffers; constants: other tensors
    that the run met and did not make; outputs: of the whole network; matched: for a run that was compared with an
    expected one, the operation here by the number of the one there; fake: whether only shapes were computed."""

    ops: list[Op] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    inputs: list[Ref] = field(default_factory=list)
    matched: dict[int, int] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)
    fake: bool = True


class Mismatch(Exception):
    """A run that left the expected path. index: of the first operation that differs."""

    def __init__(self, index: int, modules: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.index, self.modules = index, modules


class Expected(NamedTuple):
    """What an operation must be and give; a size of -1 is not compared. idle: it changes nothing and may be missing."""

    name: str
    shapes: tuple[Shape | None, ...]
    idle: bool = False


LAYOUT = frozenset(
    f"aten.{name}"
    for name in ("clone", "alias", "contiguous", "expand", "slice", "view", "_unsafe_view", "detach", "as_strided_")
)


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _refs(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _refs(v)


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor is one argument, a tuple or list several, a mapping keyword ones."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def own_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same with copies of all tensors, for forwards that write into their inputs."""
    args, kwargs = arguments(example_inputs)
    return tree_map_only(Tensor, torch.Tensor.clone, (args, kwargs))  # type: ignore[no-any-return]


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in what a network returns: nested containers, and the fields of objects."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += output_tensors(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += output_tensors(list(vars(leaf).values()))
    return found


def tensor_names(model: nn.Module) -> dict[int, str]:
    """Name of every parameter and buffer by `id`; a shared one has its first name."""
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), name)
    return names


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace, model: nn.Module, expected: Sequence[Expected] | None, *, fake: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.expected, self.fake = trace, expected, fake
        self.parameters = tensor_names(model)
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.skipped = 0
        self.by_id: dict[int, Ref] = {}

    def ref(self, tensor: Tensor) -> Ref:
        known = tensor.__dict__.get("_gossamer_ref")
        if known is not None and known[0] is self:
            return known[1]  # type: ignore[no-any-return]
        found = self.by_id.get(id(tensor))
        if found is not None:
            return found
        ref = Ref(len(self.trace.shapes))
        self.trace.shapes.append(tuple(tensor.shape))
        self.by_id[id(tensor)] = ref
        if id(tensor) in self.parameters:
            self.trace.names[ref.index] = self.parameters[id(tensor)]
        else:
            self.trace.constants[ref.index] = tensor
        return ref

    def made(self, tensor: Any) -> Ref | None:
        if not isinstance(tensor, Tensor):
            return None
        ref = Ref(len(self.trace.shapes))
        self.trace.shapes.append(tuple(tensor.shape))
        if id(tensor) in self.by_id:  # an in-place operation on a parameter or a constant
            self.by_id[id(tensor)] = ref
        else:
            tensor.__dict__["_gossamer_ref"] = (self, ref)
        return ref

    def to_refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.ref(value)
        if isinstance(value, list | tuple):
            return type(value)([self.to_refs(v) for v in value]) if type(value) in (list, tuple) else value
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name = str(func.overloadpacket)
        modules = tuple(self.stack)
        refs = self.to_refs(args), {key: self.to_refs(value) for key, value in kwargs.items()}
        if self.fake and name in ("aten.native_batch_norm", "aten.cudnn_batch_norm") and len(args) > 5:
            out = _batch_norm_shapes(args)
            out = (*out, args[0].new_empty(0, dtype=torch.uint8)) if "cudnn" in name else out
        else:
            out = func(*args, **kwargs)
        flat = list(out) if isinstance(out, list | tuple) else [out]
        outs = tuple(self.made(tensor) for tensor in flat)
        index = len(self.trace.ops)
        self.trace.ops.append(Op(name, func, refs[0], refs[1], outs, modules))
        if self.expected is not None:
            self.compare(index, self.trace.ops[index])
        return out

    def at(self) -> int:
        """Number of the expected operation that is next."""
        return len(self.trace.matched) + self.skipped

    def compare(self, index: int, op: Op) -> None:
        """Step along the expected operations. Those that only lay out memory may be there or not: torch copies or not
        as the strides, and so the widths, allow it."""
        assert self.expected is not None
        shapes = [None if ref is None else self.trace.shapes[ref.index] for ref in op.outs]
        while True:
            at = self.at()
            here = self.expected[at] if at < len(self.expected) else None
            if here is not None and _same(here.name) == _same(op.name) and _fits(here.shapes, shapes):
                self.trace.matched[at] = index
                return
            if op.name in LAYOUT and _idle(self.trace, op):
                return
            if here is None or not here.idle:
                break
            self.skipped += 1
        if here is None:
            raise Mismatch(at, tuple(self.stack), f"an operation more: {op.name}")
        if here.name != op.name:
            raise Mismatch(at, tuple(self.stack), f"{op.name} where {here.name} was expected")
        got, wanted = ([list(s) for s in given if s is not None] for given in (shapes, here.shapes))
        raise Mismatch(at, tuple(self.stack), f"{op.name} gives {got}, not {wanted}")

    def enter(self, module: nn.Module, args: Any) -> None:
        name = self.modules.get(id(module))
        self.stack.append(name if name is not None else (self.stack[-1] if self.stack else ""))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()


def _same(name: str) -> str:
    return "aten.view" if name in ("aten._unsafe_view", "aten.reshape") else name


def _fits(expected: Sequence[Shape | None], got: Sequence[Shape | None]) -> bool:
    if len(expected) != len(got):
        return False
    return all(
        e is None or g is None or (len(e) == len(g) and all(a in (-1, b) for a, b in zip(e, g)))
        for e, g in zip(expected, got)
    )


def _idle(trace: Trace, op: Op) -> bool:
    source, out = op.args[0], op.outs[0]
    return isinstance(source, Ref) and out is not None and trace.shapes[source.index] == trace.shapes[out.index]


def _batch_norm_shapes(args: Sequence[Any]) -> tuple[Tensor, ...]:
    """What torch's own shape function gives, a hundred times faster; it refuses what batch norm refuses."""
    x, *parameters, training = args[:6]
    for p in parameters:
        if p is not None and tuple(p.shape) != (x.shape[1],):
            raise RuntimeError(f"batch norm of {x.shape[1]} channels has a tensor of {list(p.shape)}")
    saved = x.new_empty(x.shape[1] if training else 0)
    return torch.empty_like(x), saved, saved.clone()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever a forward stores in its modules (caches, counters, mode, buffers) is as before afterwards, and so is
    torch's generator."""
    saved = []
    for module in model.modules():
        inner = [(v, type(v)(v)) for v in module.__dict__.values() if type(v) in (dict, list, set)]
        saved.append((module, dict(module.__dict__), inner))
    values = [(b, b.clone(), b._version) for b in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, attributes, inner in saved:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for container, before in inner:
                    container.clear()
                    container.extend(before) if isinstance(container, list) else container.update(before)
            with torch.no_grad():
                for buffer, value, version in values:
                    if buffer._version != version:
                        buffer.copy_(value)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused transformer kernels, which hide their operations, and no log lines about fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, fast = logger.level, torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logger.setLevel(level)


def record(
    model: nn.Module, example_inputs: Any, *, fake: FakeTensorMode | None, expected: Sequence[Expected] | None = None
) -> Trace:
    """One run of the model in the mode that it is in; on fake tensors (shapes only, no memory) if a mode is given.

    Raises Mismatch at the first operation that is not the expected one; an exception of the forward counts as one.
    """
    trace = Trace(fake=fake is not None)
    args, kwargs = arguments(example_inputs) if fake is not None else own_arguments(example_inputs)
    recorder = _Recorder(trace, model, expected, fake=fake is not None)
    with contextlib.ExitStack() as context:
        context.enter_context(plain_kernels())
        context.enter_context(torch.no_grad())
        if fake is not None:
            args, kwargs = tree_map_only(Tensor, lambda t: _to_fake(fake, t), (args, kwargs))
            context.enter_context(fake)
        trace.inputs = [ref for t in output_tensors((args, kwargs)) if (ref := recorder.made(t)) is not None]
        for register, hook in (
            (register_module_forward_pre_hook, recorder.enter),
            (register_module_forward_hook, recorder.leave),
        ):
            context.callback(register(hook).remove)
        context.enter_context(recorder)
        try:
            output = model(*args, **kwargs)
        except Mismatch:
            raise
        except Exception as error:
            if expected is None:
                raise
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Mismatch(recorder.at(), tuple(recorder.stack), message) from error
    if expected is not None and any(not e.idle for e in expected[recorder.at() :]):
        raise Mismatch(recorder.at(), (), "the run ends too early")
    trace.outputs = [recorder.ref(t) for t in output_tensors(output)]
    return trace


def _to_fake(fake: FakeTensorMode, tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, FakeTensor) else fake.from_tensor(tensor, static_shapes=True)


def fake_mode() -> FakeTensorMode:
    """Fake tensors that may meet real ones (the parameters)."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in training mode, or none."""
    with untouched(model):
        model.train(training)
        yield


def trace(model: nn.Module, example_inputs: Any, *, training: bool = False) -> Trace:
    """The operations of one run on fake tensors, or on real ones where fake ones fail.

    example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments. The model, its buffers
    and torch's generator stay as they are. Raises BadInput with the model's own error if it rejects the inputs.
    """
    with mode(model, training):
        try:
            return record(model, example_inputs, fake=fake_mode())
        except Exception:
            try:
                return record(model, example_inputs, fake=None)
            except Exception as error:
                raise rejected(model, example_inputs, error) from error


def rejected(model: nn.Module, example_inputs: Any, error: Exception) -> BadInput:
    """The model's own error, with what it was given."""
    shapes = ", ".join(f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in output_tensors(example_inputs))
    message = f"{type(error).__name__}: {error}"
    return BadInput(f"{type(model).__name__} cannot run on the example inputs ({shapes}): {message}")
