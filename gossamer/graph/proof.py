"""The proof of a pruning: the small network gives what the original gives with the removed channels masked.

The original is replayed from its recorded operations with the removed rows and columns of all parameters set to zero.
Operations that reduce over channels (layer norm, softmax over channels, L2 norm) see the kept channels only, and
numbers that follow a width (the scale of attention) are those of the small network; both are named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.graph.channel_index import IndexedValue, Kept
from gossamer.graph.coupling import Mask
from gossamer.graph.isolation import plain_kernels
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import compact, scatter
from gossamer.graph.tracer import (
    Op,
    Ref,
    Trace,
    arguments,
    mode,
    output_tensors,
    own_arguments,
)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The names in words, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far a pruned network is from the masked original.

    Where `statistics` and `scalars` are empty, it equals the original with the removed channels set to zero.

    Args:
        max_relative: largest difference of an output over the largest absolute value of that output.
        statistics: operations whose statistics are now over fewer channels (layer norm, softmax over channels).
        scalars: numbers in the forward that follow a width (the scale of attention).
    """

    max_relative: float
    statistics: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()


@dataclass
class Substitution:
    """How the replay of the original differs from its run."""

    propagation: Propagation
    mask: Mask
    small: Trace
    statistics: dict[str, None] = field(default_factory=dict)
    scalars: dict[str, None] = field(default_factory=dict)


def masked_original(tensor: Tensor, kept: Mapping[int, Kept]) -> Tensor:
    """A copy with the removed rows and columns zero."""
    out = tensor.detach().clone()
    for d, indices in kept.items():
        if indices and isinstance(indices[0], list):
            for rows, inner in zip(out.chunk(len(indices), 0), indices):
                gone = torch.ones(out.shape[d], dtype=torch.bool)
                gone[inner] = False
                rows.index_fill_(d, gone.nonzero().ravel().to(out.device), 0)
        else:
            gone = torch.ones(out.shape[d], dtype=torch.bool)
            gone[torch.tensor(indices, dtype=torch.long)] = False
            out.index_fill_(d, gone.nonzero().ravel().to(out.device), 0)
    return out


def replay_operations(
    trace: Trace,
    parameter: Callable[[str], Tensor],
    inputs: Any,
    substitution: Substitution | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """Run recorded operations again on real tensors, freeing each result after its last use.

    Callers switch gradients off: `no_grad` inside a generator that is left half-way would stay on.

    Args:
        trace: the recorded run.
        parameter: the tensor to use for a parameter or buffer, by name.
        inputs: the example inputs.
        substitution: how the replay differs from the run; None for a faithful one.

    Yields:
        Each operation's number and results; at the end -1 and the outputs of the network.
    """
    env: dict[int, Tensor] = {ref.index: t.clone() for ref, t in zip(trace.inputs, output_tensors(arguments(inputs)))}
    last_use = {ref.index: i for i, op in enumerate(trace.ops) for ref in (*op.refs(), *(o for o in op.outs if o))}
    last_use |= {ref.index: len(trace.ops) for ref in trace.outputs}
    freed_after: dict[int, list[int]] = {}
    for index, i in last_use.items():
        freed_after.setdefault(i, []).append(index)

    def fetch(value: Any) -> Any:
        if isinstance(value, Ref):
            if value.index in env:
                return env[value.index]
            if value.index in trace.names:
                return parameter(trace.names[value.index])
            return trace.constants[value.index]
        if isinstance(value, list | tuple):
            return type(value)([fetch(v) for v in value])
        return value

    for i, op in enumerate(trace.ops):
        args, kwargs = fetch(op.args), {key: fetch(value) for key, value in op.kwargs.items()}
        # An operation in place must not change the caller's parameters and constants.
        if op.name.endswith("_") and isinstance(op.args[0], Ref) and op.args[0].index not in env:
            args = (args[0].clone(), *args[1:])
        out = _apply(i, op, args, kwargs, substitution)
        results = list(out) if isinstance(out, list | tuple) else [out]
        for ref, result in zip(op.outs, results):
            if ref is not None:
                env[ref.index] = result
        yield i, results
        for index in freed_after.get(i, ()):
            env.pop(index, None)
    yield -1, [fetch(ref) for ref in trace.outputs]


def _apply(i: int, op: Op, args: Any, kwargs: Any, substitution: Substitution | None) -> Any:
    if op.name == "aten.view":  # `scatter` may have laid it out differently in memory
        return args[0].reshape(args[1])
    if substitution is None:
        return op.func(*args, **kwargs)
    s = substitution
    if i not in s.small.matched:
        return op.func(*args, **kwargs)
    other = s.small.ops[s.small.matched[i]]
    # Means, variances and softmax over channels would see the zeros of the masked ones. They are computed on the kept
    # channels with the small network's arguments, and the result is scattered back to its places.
    if i in s.propagation.statistics and _shrinks(s, op):
        s.statistics.setdefault(op.where)
        small_args = _merge(op.args, other.args, args, s)
        small_kwargs = {key: _merge(op.kwargs[key], other.kwargs.get(key), kwargs[key], s) for key in kwargs}
        out = op.func(*small_args, **small_kwargs)
        if "attention" in op.name and op.kwargs.get("scale") is None:
            s.scalars.setdefault(f"scale of {op.where}")
        results = list(out) if isinstance(out, list | tuple) else [out]
        wide = [
            scatter(r, s.propagation.trace.shapes[ref.index], s.propagation.values[ref.index], s.mask)
            if isinstance(r, Tensor) and ref is not None and _changes(s.propagation.values[ref.index], s.mask)
            else r
            for r, ref in zip(results, op.outs)
        ]
        return wide if isinstance(out, list | tuple) else wide[0]
    return op.func(*_floats(op, op.args, other.args, args, s), **kwargs)


def _changes(value: IndexedValue, mask: Mask) -> bool:
    return any(not mask[t].all() for t in value.axes.values())


def _shrinks(s: Substitution, op: Op) -> bool:
    return any(_changes(s.propagation.values[ref.index], s.mask) for ref in op.refs())


def _merge(recorded: Any, small: Any, real: Any, s: Substitution) -> Any:
    """Tensors of the original restricted to what stays, everything else from the small network."""
    if isinstance(recorded, Ref):
        return compact(real, s.propagation.values[recorded.index], s.mask)
    if isinstance(recorded, list | tuple):
        return type(recorded)([_merge(r, m, x, s) for r, m, x in zip(recorded, small, real)])
    return small


def _floats(op: Op, recorded: Any, small: Any, real: Any, s: Substitution) -> Any:
    """Floats from the small network: scales such as 1 / sqrt(width). Integers are sizes, and stay as they are."""
    result = list(real)
    for k, (a, b) in enumerate(zip(recorded, small)):
        if isinstance(a, float) and isinstance(b, float | int) and a != b:
            s.scalars.setdefault(f"{a:.6g} is {b:.6g} at {op.where}")
            result[k] = b
    return result


def relative_difference(result: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest absolute value of the reference; infinite where only one is finite."""
    if result.shape != reference.shape:
        return float("inf")
    if result.numel() == 0:
        return 0.0
    if not result.is_floating_point():
        return 0.0 if torch.equal(result, reference) else float("inf")
    a, b = result.double(), reference.double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


@torch.no_grad()
def compare(
    model: nn.Module,
    small: nn.Module,
    inputs: Any,
    propagation: Propagation,
    mask: Mask,
    small_trace: Trace,
    kept: Mapping[str, Any],
) -> Proof:
    """Run the small network for real and replay the masked original; how far their outputs are apart."""
    substitution = Substitution(propagation, mask, small_trace)
    with plain_kernels():
        reference = _last(replay_operations(propagation.trace, _masked_parameters(model, kept), inputs, substitution))
    args, kwargs = own_arguments(inputs)
    with mode(small, False), plain_kernels():
        outputs = output_tensors(small(*args, **kwargs))
    if len(outputs) != len(reference):
        worst = float("inf")
    else:
        worst = max((relative_difference(a, b) for a, b in zip(outputs, reference)), default=0.0)
    return Proof(max_relative=worst, statistics=tuple(substitution.statistics), scalars=tuple(substitution.scalars))


def _masked_parameters(model: nn.Module, kept: Mapping[str, Any]) -> Callable[[str], Tensor]:
    named: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
    return lambda name: masked_original(named[name], kept[name]) if name in kept else named[name].detach()


def _last(steps: Iterator[tuple[int, list[Any]]]) -> list[Any]:
    results: list[Any] = []
    for _, results in steps:  # noqa: B007
        pass
    return results


@torch.no_grad()
def first_difference(
    model: nn.Module,
    small: nn.Module,
    inputs: Any,
    propagation: Propagation,
    mask: Mask,
    small_trace: Trace,
    kept: Mapping[str, Any],
    tolerance: float,
) -> int:
    """The first operation whose kept channels differ between the replays of the two networks, or -1."""
    named: dict[str, Tensor] = dict([*small.named_parameters(), *small.named_buffers()])
    narrow = replay_operations(small_trace, lambda name: named[name].detach(), inputs)
    results: list[Any] = []
    reached = -1
    for i, wide in replay_operations(
        propagation.trace, _masked_parameters(model, kept), inputs, Substitution(propagation, mask, small_trace)
    ):
        if i < 0 or i not in small_trace.matched:
            continue
        while reached < small_trace.matched[i]:
            reached, results = next(narrow)
        for ref, a, b in zip(propagation.trace.ops[i].outs, wide, results):
            if isinstance(a, Tensor) and ref is not None and not propagation.values[ref.index].free:
                kept_part = compact(a, propagation.values[ref.index], mask)
                if a.is_floating_point() and relative_difference(b, kept_part) > tolerance:
                    return i
    return -1
