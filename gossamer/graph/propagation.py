"""Sending slots through the operations of a trace. An operation without a rule pins what enters it, by name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from gossamer.graph.channel_index import (
    Choose,
    CouplingGraph,
    Shape,
    Value,
    broadcast,
    last,
)
from gossamer.graph.tracer import Op, Ref, Trace

Rule = Callable[["Propagation", Op], "Value | Sequence[Value]"]
RULES: dict[str, Rule] = {}
F = TypeVar("F", bound=Rule)


@dataclass
class Propagation:
    """Going through one trace. values: of every tensor, by number; statistics: operations that reduce over channels;
    choose: which part of a split channel dimension shrinks."""

    graph: CouplingGraph
    trace: Trace
    choose: Callable[[Op], Choose] = lambda op: last
    values: list[Value] = field(default_factory=list)
    statistics: dict[int, str] = field(default_factory=dict)
    index: int = 0

    def value(self, ref: Ref) -> Value:
        return self.values[ref.index]

    def shape(self, ref: Ref) -> Shape:
        return self.trace.shapes[ref.index]

    def operand(self, ref: Ref) -> tuple[Value, Shape]:
        return self.value(ref), self.shape(ref)

    def out_shape(self, op: Op, i: int = 0) -> Shape:
        ref = op.outs[i]
        return () if ref is None else self.shape(ref)

    def pin(self, value: Value, reason: str, dims: Iterable[int] | None = None) -> None:
        for f, t in value.layers.items():
            if dims is None or f in dims:
                self.graph.pin(t, reason)

    def statistic(self, op: Op) -> None:
        self.statistics[self.index] = op.where


def rule(*names: str) -> Callable[[F], F]:
    """Register a function for operations of these names (without `aten.`)."""

    def register(function: F) -> F:
        for name in names:
            RULES[f"aten.{name}"] = function
        return function

    return register


def propagate(graph: CouplingGraph, trace: Trace, choose: Callable[[Op], Choose] = lambda op: last) -> Propagation:
    """Send the slots of the parameters through a trace."""
    w = Propagation(graph, trace, choose, [Value() for _ in trace.shapes])
    for index, name in trace.names.items():
        w.values[index] = graph.parameters.get(name, Value())
    for w.index, op in enumerate(trace.ops):
        _step(w, op)
    for out in trace.outputs:
        w.pin(w.value(out), "output of the network")
    return w


def _step(w: Propagation, op: Op) -> None:
    function = RULES.get(op.name) or (RULES.get(op.name[:-1]) if op.name.endswith("_") else None)
    if function is None and torch.Tag.pointwise in op.func.tags:
        function = pointwise
    if function is None:
        for ref in op.refs():
            w.pin(w.value(ref), f"no rule for {op.where}")
        return
    result = function(w, op)
    results = [result] if isinstance(result, Value) else list(result)
    if len(results) == 1:
        results *= len(op.outs)
    if op.name.endswith("_") and isinstance(op.args[0], Ref):
        _written(w, op, w.value(op.args[0]), results)
    for out, value in zip(op.outs, results):
        if out is not None:
            w.values[out.index] = value


def _written(w: Propagation, op: Op, target: Value, results: list[Value]) -> None:
    """Channels written through a view into memory that has none stay where they are."""
    if target.view:
        for value in results:
            value.view = True
            for f in [f for f in value.layers if f not in target.layers]:
                w.graph.pin(value.layers.pop(f), f"written into a tensor of fixed size at {op.where}")


@rule("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "copy", "contiguous", "bernoulli",
      "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "dropout", "native_dropout",
      "as_strided", "masked_fill", "uniform", "normal", "zero", "fill", "where", "bitwise_not", "hardswish", "hardtanh",
      "hardsigmoid")  # fmt: skip
def pointwise(w: Propagation, op: Op) -> Value:
    refs = op.refs()
    if op.name in ("aten.as_strided", "aten.as_strided_"):
        refs = refs[:1]
        if w.shape(refs[0]) != w.out_shape(op):
            w.pin(w.value(refs[0]), f"no rule for {op.where}")
            return Value()
    value = broadcast(w.graph, [w.operand(ref) for ref in refs], op.where)
    source = w.value(refs[0])
    aliases = op.name in ("aten.detach", "aten.alias", "aten.lift_fresh") or (op.name.endswith("_") and source.view)
    return Value(value.layers, value.free, aliases)


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
def constant(w: Propagation, op: Op) -> Value:
    return Value({}, frozenset(range(len(w.out_shape(op)))))


def through(w: Propagation, op: Op, ref: Ref, touched: Iterable[int]) -> Value:
    """Channels go through an operation that mixes other dimensions."""
    touched = set(touched)
    value = w.value(ref)
    w.pin(value, f"{op.where} works along this dimension", touched)
    layers = {}
    for f, t in value.layers.items():
        if f not in touched:
            for d in touched:
                t = w.graph.tie_along(t, d)
            layers[f] = t
    return Value(layers, value.free - touched)
