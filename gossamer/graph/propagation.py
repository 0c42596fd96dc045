"""Send channel indices through the operations of a trace.

Each rule says what one ATen operation does to the channel indices of its inputs, and states facts on the way
(`CouplingGraph`). An operation without a rule fixes what enters it and names itself: never a wrong cut.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from gossamer.graph.channel_index import (
    Choose,
    CouplingGraph,
    IndexedValue,
    Shape,
    broadcast,
    last,
)
from gossamer.graph.tracer import Op, Ref, Trace

Rule = Callable[["Propagation", Op], "IndexedValue | Sequence[IndexedValue]"]
RULES: dict[str, Rule] = {}
F = TypeVar("F", bound=Rule)


@dataclass
class Propagation:
    """The channel indices of all tensors of one trace.

    Args:
        graph: receives the facts.
        trace: the recorded run.
        choose: which part of a split channel dimension shrinks.
        values: what is known of every tensor, by its number in the trace.
        statistics: operations that reduce over channels, by number: they see fewer channels after pruning.
        index: number of the operation that is looked at.
        failures: rules that failed, with the reason.
        picked: dimensions of tensors along which positions are picked by number later, by the tensor's number.
    """

    graph: CouplingGraph
    trace: Trace
    choose: Callable[[Op], Choose] = lambda op: last
    values: list[IndexedValue] = field(default_factory=list)
    statistics: dict[int, str] = field(default_factory=dict)
    index: int = 0
    failures: dict[str, None] = field(default_factory=dict)
    picked: dict[int, frozenset[int]] = field(default_factory=dict)

    def value(self, ref: Ref) -> IndexedValue:
        return self.values[ref.index]

    def shape(self, ref: Ref) -> Shape:
        return self.trace.shapes[ref.index]

    def operand(self, ref: Ref) -> tuple[IndexedValue, Shape]:
        return self.value(ref), self.shape(ref)

    def out_shape(self, op: Op, i: int = 0) -> Shape:
        ref = op.outs[i]
        return () if ref is None else self.shape(ref)

    def fix(self, value: IndexedValue, reason: str, dims: Iterable[int] | None = None) -> None:
        for axis, indices in value.axes.items():
            if dims is None or axis in dims:
                self.graph.fix(indices, reason)

    def statistic(self, op: Op) -> None:
        self.statistics[self.index] = op.where


@dataclass(frozen=True)
class Propagations:
    """The runs of one network: in eval mode, and in training mode where that uses more parameters."""

    eval: Propagation
    train: Propagation | None = None

    def runs(self) -> list[tuple[bool, Propagation]]:
        """(training, propagation) of every run."""
        return [(False, self.eval)] if self.train is None else [(False, self.eval), (True, self.train)]

    def of(self, training: bool) -> Propagation:
        """The run in this mode."""
        return dict(self.runs())[training]


def rule(*names: str) -> Callable[[F], F]:
    """Register a function for operations of these names (without `aten.`)."""

    def register(function: F) -> F:
        for name in names:
            RULES[f"aten.{name}"] = function
        return function

    return register


def propagate(graph: CouplingGraph, trace: Trace, choose: Callable[[Op], Choose] = lambda op: last) -> Propagation:
    """Send the channel indices of the parameters through a trace, operation by operation.

    Args:
        graph: the indices of all parameters; it receives the facts that the operations state.
        trace: the recorded run.
        choose: for an operation, which part of a split channel dimension shrinks.

    Returns:
        What is known of every tensor of the trace.

    Example:
        >>> from torch import nn
        >>> from gossamer.graph.tracer import trace
        >>> graph = CouplingGraph(parameters={"weight": IndexedValue()})
        >>> len(propagate(graph, trace(nn.Linear(2, 3), torch.zeros(1, 2))).values) >= 3
        True
    """
    values = [IndexedValue() for _ in trace.shapes]
    prop = Propagation(graph, trace, choose, values, picked=_picked_later(trace))
    # Only parameters and buffers start with indices. Inputs and constants have none, which means: of fixed size.
    for index, name in trace.names.items():
        prop.values[index] = graph.parameters.get(name, IndexedValue())
    for prop.index, op in enumerate(trace.ops):
        _step(prop, op)
    # Whoever called the network expects outputs of the size that they have.
    for out in trace.outputs:
        prop.fix(prop.value(out), "output of the network")
    return prop


def _picked_later(trace: Trace) -> dict[int, frozenset[int]]:
    """Dimensions along which an operation picks positions by number, itself or after dimensions were reordered."""
    found: dict[int, frozenset[int]] = {}
    for op in reversed(trace.ops):
        source, out = op.args[0] if op.args else None, op.outs[0] if op.outs else None
        if not isinstance(source, Ref):
            continue
        n = len(trace.shapes[source.index])
        dims: list[int] = []
        if op.name in ("aten.select", "aten.unbind") and n:
            dims = [op.arg("dim") % n]
        elif op.name == "aten.view_as_complex":
            dims = [n - 1]
        elif out is not None and op.name in ("aten.permute", "aten.transpose"):
            order = order_of_dimensions(op, n)
            dims = [order[d] for d in found.get(out.index, ())]
        elif out is not None and op.name in ("aten.clone", "aten._to_copy"):
            dims = list(found.get(out.index, ()))
        found[source.index] = found.get(source.index, frozenset()).union(dims)
    return found


def _step(prop: Propagation, op: Op) -> None:
    """One operation. Whatever its rule raises, or gives that cannot be, fixes what enters, by name."""
    known = len(prop.graph.fixed)
    try:
        results = _ruled(prop, op)
        why = f"no rule for {op.where}"
    except Exception as error:  # a fault of a rule must not end the job of a network that works
        results, why = None, f"the rule for {op.where} fails ({type(error).__name__}: {error})"
        prop.failures.setdefault(why)
    if results is None:
        for ref in op.refs():
            prop.fix(prop.value(ref), why)
        results = [IndexedValue() for _ in op.outs]
    lost = _lost(prop, op, known)
    for out, value in zip(op.outs, results):
        if out is not None:
            prop.values[out.index] = value if value.axes or value.lost else replace(value, lost=lost)


def _lost(prop: Propagation, op: Op, known: int) -> str:
    """What took the channel indices from the results of an operation: what took them from its inputs, or the operation
    itself, by a fact that it stated after the first `known` ones."""
    if inherited := next((why for ref in op.refs() if (why := prop.value(ref).lost)), ""):
        return inherited
    return prop.graph.fixed[known][1] if len(prop.graph.fixed) > known else ""


def _ruled(prop: Propagation, op: Op) -> list[IndexedValue] | None:
    """What the operation's rule gives, None without one."""
    # An operation in place (`add_`) does to indices what the one without underscore does.
    function = RULES.get(op.name) or (RULES.get(op.name[:-1]) if op.name.endswith("_") else None)
    # PyTorch tags its elementwise operations; only those that combine dimensions need a rule of their own.
    if function is None and torch.Tag.pointwise in op.func.tags:
        function = pointwise
    if function is None:
        return None
    result = function(prop, op)
    results = [result] if isinstance(result, IndexedValue) else list(result)
    # One value for several outputs: they have the same channels (value and position of a max pool).
    if len(results) == 1:
        results *= len(op.outs)
    if op.name.endswith("_") and isinstance(op.args[0], Ref):
        _written(prop, op, prop.value(op.args[0]), results)
    for out, value in zip(op.outs, results):
        if out is not None:
            _check(value, prop.shape(out))
    return results


def _check(value: IndexedValue, shape: Shape) -> None:
    for axis, indices in value.axes.items():
        fits = indices.ndim == len(shape) and indices.shape[axis] == shape[axis]
        if not fits or any(n not in (1, m) for n, m in zip(indices.shape, shape)):
            raise ValueError(f"channel indices of {list(indices.shape)} along {axis} for a tensor of {list(shape)}")


def _written(prop: Propagation, op: Op, target: IndexedValue, results: list[IndexedValue]) -> None:
    """Fix channels that are written through a view into memory that has none: the memory keeps its size."""
    # A view is a window into memory of a size that no rule can change any more. Without a view, the tensor that is
    # written to simply takes on the indices of the result.
    if target.view:
        for value in results:
            value.view = True
            for axis in [axis for axis in value.axes if axis not in target.axes]:
                prop.graph.fix(value.axes.pop(axis), f"written into a tensor of fixed size at {op.where}")


def order_of_dimensions(op: Op, n: int) -> list[int]:
    """The old dimension at every new place, of an operation that reorders `n` dimensions."""
    dims = list(range(n))
    if op.name.startswith("aten.permute"):
        dims = [d % n for d in op.args[1]]
    elif op.name.startswith("aten.transpose"):
        a, b = op.args[1] % n, op.args[2] % n
        dims[a], dims[b] = b, a
    else:
        dims.reverse()
    return dims


@rule("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "copy", "contiguous", "bernoulli",
      "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "dropout", "native_dropout",
      "as_strided", "masked_fill", "uniform", "normal", "zero", "fill", "where", "bitwise_not", "hardswish", "hardtanh",
      "hardsigmoid", "polar", "complex")  # fmt: skip
def pointwise(prop: Propagation, op: Op) -> IndexedValue:
    refs = op.refs()
    if op.name in ("aten.as_strided", "aten.as_strided_"):
        refs = refs[:1]
        if prop.shape(refs[0]) != prop.out_shape(op):
            prop.fix(prop.value(refs[0]), f"no rule for {op.where}")
            return IndexedValue()
    value = broadcast(prop.graph, [prop.operand(ref) for ref in refs], op.where)
    source = prop.value(refs[0])
    # Whether the result shares memory decides what a later write in place means (`_written`).
    aliases = op.name in ("aten.detach", "aten.alias", "aten.lift_fresh") or (op.name.endswith("_") and source.view)
    return IndexedValue(value.axes, value.free, aliases)


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "scalar_tensor",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_permuted",
)
def constant(prop: Propagation, op: Op) -> IndexedValue:
    """Of any size: it has channel indices of its own, which go with what it meets and with what is written there."""
    shape = prop.out_shape(op)
    sizes = [[n if i == d else 1 for i in range(len(shape))] for d, n in enumerate(shape)]
    return IndexedValue({d: prop.graph.new_indices(n).reshape(sizes[d]) for d, n in enumerate(shape) if n > 1})


def through(prop: Propagation, op: Op, ref: Ref, touched: Iterable[int]) -> IndexedValue:
    """Channels pass an operation that mixes the `touched` dimensions, and must not vary along them afterwards."""
    touched = set(touched)
    value = prop.value(ref)
    prop.fix(value, f"{op.where} works along this dimension", touched)
    axes = {}
    for axis, indices in value.axes.items():
        if axis not in touched:
            # Elements along a mixed dimension end up in one result, so they must go or stay together.
            for d in touched:
                indices = prop.graph.couple_along(indices, d)
            axes[axis] = indices
    return IndexedValue(axes, value.free - touched)
