"""The ATen operations of one run, recorded at PyTorch's dispatcher.

Nothing has to be exportable: the forward runs as it is, on tensors without data where possible. Optionally the run is
compared with an expected one, operation by operation.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gossamer.core.arguments import arguments
from gossamer.core.copies import check_network
from gossamer.errors import BadInput, first_line
from gossamer.graph.code_lines import Frames, code_line, running_modules
from gossamer.graph.decisions import Decision, decide, selects, take
from gossamer.graph.expectation import LAYOUT, Expected, Mismatch, Shape, canonical, fits
from gossamer.graph.fake_tensors import batch_norm_shapes, fake_mode, to_fake
from gossamer.graph.isolation import mode, plain_kernels, plain_recurrence

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
    """What one run did. Tensors are numbered in the order in which the run met or made them.

    Args:
        ops: the operations, in order.
        shapes: of every tensor, by number.
        names: of parameters and buffers, by number.
        constants: other tensors that the run used and did not make, by number.
        inputs: the tensors among the example inputs.
        matched: for a run that was compared with an expected one, the operation here by the number of the one there.
        outputs: what the network returned.
        fake: whether only shapes were computed.
        decisions: of a run on real tensors, what operations took or gave that depends on data, by their number.
        masks: the tensors that hold truth values.

    Example:
        >>> run = trace(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4))
        >>> sorted(run.names.values())
        ['0.bias', '0.weight']
    """

    ops: list[Op] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    inputs: list[Ref] = field(default_factory=list)
    matched: dict[int, int] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)
    fake: bool = True
    decisions: dict[int, Decision] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)

    def inside(self, module: str) -> list[Op]:
        """The operations that ran inside a module, in order."""
        return [op for op in self.ops if module in op.modules]


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _refs(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _refs(v)


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
    def __init__(
        self,
        trace: Trace,
        model: nn.Module,
        expected: Sequence[Expected] | None,
        decided: Mapping[int, Decision],
        *,
        fake: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.expected, self.decided, self.fake = trace, expected, decided, fake
        self.parameters = tensor_names(model)
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.skipped = 0
        self.by_id: dict[int, Ref] = {}

    def ref(self, tensor: Tensor) -> Ref:
        # Tensors of the run carry their number: by id, a new tensor could be taken for one that was freed. Parameters
        # and constants outlive the run, and their __dict__ is the user's.
        known = tensor.__dict__.get("_gossamer_ref")
        if known is not None and known[0] is self:
            return known[1]  # type: ignore[no-any-return]
        found = self.by_id.get(id(tensor))
        if found is not None:
            return found
        ref = self.numbered(tensor)
        self.by_id[id(tensor)] = ref
        if id(tensor) in self.parameters:
            self.trace.names[ref.index] = self.parameters[id(tensor)]
        else:
            self.trace.constants[ref.index] = tensor
        return ref

    def numbered(self, tensor: Tensor) -> Ref:
        ref = Ref(len(self.trace.shapes))
        if tensor.dtype in (torch.bool, torch.uint8):
            self.trace.masks.add(ref.index)
        self.trace.shapes.append(tuple(tensor.shape))
        return ref

    def new_ref(self, tensor: Any) -> Ref | None:
        if not isinstance(tensor, Tensor):
            return None
        ref = self.numbered(tensor)
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
        # Questions about tensors (their device), not operations on them.
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name = str(func.overloadpacket)
        # Before the run: an operation in place gives its argument a new number.
        refs = self.to_refs(args), {key: self.to_refs(value) for key, value in kwargs.items()}
        index = len(self.trace.ops)
        decision = self.decision(name) if self.decided else None
        if decision is not None:
            out = take(decision, func, args, kwargs)
        # Its shape function in PyTorch is slow, and there are hundreds of batch norms in one run.
        elif self.fake and name in ("aten.native_batch_norm", "aten.cudnn_batch_norm") and len(args) > 5:
            out = batch_norm_shapes(args)
            out = (*out, args[0].new_empty(0, dtype=torch.uint8)) if "cudnn" in name else out
        else:
            out = func(*args, **kwargs)
            decision = None if self.fake or self.decided else decide(name, func, args, kwargs, out)
        if decision is not None:
            self.trace.decisions[index] = decision
        outs = tuple(self.new_ref(tensor) for tensor in (out if isinstance(out, list | tuple) else [out]))
        self.trace.ops.append(Op(name, func, *refs, outs, tuple(self.stack)))
        if self.expected is not None:
            self.compare(index, self.trace.ops[index])
        return out

    def decision(self, name: str) -> Decision | None:
        """What the expected operation of this name decided, if this one can take the same."""
        assert self.expected is not None
        position = self.position()
        while position < len(self.expected) and self.expected[position].name != name:
            if not self.expected[position].optional:
                return None
            position += 1
        found = self.decided.get(position)
        if found is None or not found.fits(self.expected[position].shapes):
            return None
        return found if found.exact or self.fake else None

    def position(self) -> int:
        """Number of the expected operation that is next."""
        return len(self.trace.matched) + self.skipped

    def compare(self, index: int, op: Op) -> None:
        """Step along the expected operations. Those that only lay out memory may be there or not: torch copies or not
        as the strides, and so the widths, allow it."""
        assert self.expected is not None
        shapes = [None if ref is None else self.trace.shapes[ref.index] for ref in op.outs]
        while True:
            position = self.position()
            here = self.expected[position] if position < len(self.expected) else None
            if here is not None and canonical(here.name) == canonical(op.name) and fits(here.shapes, shapes):
                self.trace.matched[position] = index
                return
            # One more copy than in the original changes nothing, so it has no counterpart and is passed over.
            if op.name in LAYOUT and _keeps_shape(self.trace.shapes, op):
                return
            if here is None or not here.optional:
                break
            self.skipped += 1
        if here is None:
            message = f"an operation more: {op.name}"
        elif here.name != op.name:
            message = f"{op.name} where {here.name} was expected"
        else:
            got, wanted = ([list(s) for s in given if s is not None] for given in (shapes, here.shapes))
            message = f"{op.name} gives {got}, not {wanted}"
        raise self.mismatch(position, message, [*traceback.walk_stack(sys._getframe())])

    def mismatch(self, position: int, message: str, stack: Frames) -> Mismatch:
        return Mismatch(position, running_modules(stack, self.modules, self.stack), message, code_line(stack, record))

    def enter(self, module: nn.Module, args: Any) -> None:
        name = self.modules.get(id(module))
        # A module that is not registered (in a plain list) runs under the name of the module around it.
        self.stack.append(name if name is not None else (self.stack[-1] if self.stack else ""))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()


def _keeps_shape(shapes: Sequence[Shape], op: Op) -> bool:
    source, out = op.args[0], op.outs[0]
    return isinstance(source, Ref) and out is not None and shapes[source.index] == shapes[out.index]


def record(
    model: nn.Module,
    example_inputs: Any,
    *,
    fake: FakeTensorMode | None,
    expected: Sequence[Expected] | None = None,
    decided: Mapping[int, Decision] | None = None,
) -> Trace:
    """One run of the model in the mode that it is in; on fake tensors (shapes only, no memory) if a mode is given.

    Where the expected run decided something from its data (`decided`), this one decides the same. Raises Mismatch at
    the first operation that is not the expected one; an exception of the forward counts as one.
    """
    trace = Trace(fake=fake is not None)
    args, kwargs = arguments(example_inputs) if fake is not None else own_arguments(example_inputs)
    recorder = _Recorder(trace, model, expected, decided or {}, fake=fake is not None)
    with contextlib.ExitStack() as context:
        context.enter_context(plain_kernels())
        context.enter_context(torch.no_grad())
        if fake is not None or any(isinstance(module, nn.RNNBase) for module in model.modules()):
            context.enter_context(plain_recurrence())
        if fake is not None:
            args, kwargs = tree_map_only(Tensor, lambda t: to_fake(fake, t), (args, kwargs))
            context.enter_context(fake)
        trace.inputs = [ref for t in output_tensors((args, kwargs)) if (ref := recorder.new_ref(t)) is not None]
        for register, hook in (
            (register_module_forward_pre_hook, recorder.enter),
            (register_module_forward_hook, recorder.leave),
        ):
            context.callback(register(hook).remove)
        # The mode that is entered last gets every call first: the recorder sees it, then passes it on to fake mode.
        context.enter_context(recorder)
        try:
            output = model(*args, **kwargs)
        except Mismatch:
            raise
        except Exception as error:
            if expected is None:
                raise
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            stack = [*traceback.walk_tb(error.__traceback__)][::-1]
            raise recorder.mismatch(recorder.position(), message, stack) from error
    # A forward that takes a shorter way runs without an error, and is another network.
    if expected is not None and any(not e.optional for e in expected[recorder.position() :]):
        raise Mismatch(recorder.position(), (), "the run ends too early")
    trace.outputs = [recorder.ref(t) for t in output_tensors(output)]
    return trace


def trace(model: nn.Module, example_inputs: Any, *, training: bool = False) -> Trace:
    """Record the operations of one run, on fake tensors, or on real ones where fake ones fail.

    The model, its buffers and torch's generator stay as they are.

    Args:
        model: any network that runs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        training: run in training mode instead of eval mode.

    Returns:
        The recorded run.

    Raises:
        BadInput: with the model's own error, if it rejects the inputs.

    Example:
        >>> import torch
        >>> [op.name for op in trace(torch.nn.ReLU(), torch.zeros(2)).ops]
        ['aten.relu']
    """
    try:
        warm_up(model, example_inputs, training=training)
        with mode(model, training):
            with contextlib.suppress(Exception):
                found = record(model, example_inputs, fake=fake_mode())
                if not any(selects(op.name, len(op.outs)) for op in found.ops):
                    return found
            return record(model, example_inputs, fake=None)
    except Exception as error:
        raise rejected(model, example_inputs, error) from error


def warm_up(model: nn.Module, example_inputs: Any, *, training: bool = False) -> None:
    """Run a network once on real tensors: what its forward keeps outside of its modules (grids by shape, in a global
    dict or `lru_cache`) must not be made of fake tensors first."""
    check_network(model)
    args, kwargs = own_arguments(example_inputs)
    with mode(model, training), torch.no_grad():
        model(*args, **kwargs)


def rejected(model: nn.Module, example_inputs: Any, error: Exception) -> BadInput:
    """The model's own error, with what it was given; of a network without data that it has none."""
    check_network(model)
    if isinstance(error, BadInput):
        return error
    shapes = ", ".join(f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in output_tensors(example_inputs))
    name, kind = type(model).__name__, type(error).__name__
    given = shapes or f"which hold no tensor but {type(example_inputs).__name__}"
    return BadInput(f"{name} cannot run on the example inputs ({given}): {kind}: {first_line(error)}")
