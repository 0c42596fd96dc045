"""The proof of a cut: the small network gives what the original gives when everything that was cut is silenced.

The original is replayed from its recorded operations with the removed rows and columns of all parameters set to zero.
Operations that reduce over channels (layer norm, softmax over channels, L2 norm) see the kept channels only, and
numbers that follow a width (the scale of attention) are those of the small network; both are named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.graph.channel_index import Value
from gossamer.graph.coupling import Mask
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import compact, scatter
from gossamer.graph.slicing import Kept
from gossamer.graph.tracer import (
    Op,
    Ref,
    Trace,
    arguments,
    mode,
    output_tensors,
    own_arguments,
    plain_kernels,
)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The names in words, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True, kw_only=True)
class Proof:
    """max_relative: largest difference of an output over the largest absolute value of that output. statistics:
    operations whose statistics are now over fewer channels; scalars: numbers in the forward that follow a width. Where
    both are empty, the small network equals the original with silenced channels as it stands."""

    max_relative: float
    statistics: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()


@dataclass
class Substitution:
    """How the replay of the original differs from its run."""

    walk: Propagation
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


def replay(
    trace: Trace,
    parameter: Callable[[str], Tensor],
    inputs: Any,
    substitution: Substitution | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """Run recorded operations again on real tensors; yields each operation's number and results, and at the end -1 and
    the network's outputs. Results are freed after their last use. Callers switch gradients off: a generator that is
    left half-way must not."""
    env: dict[int, Tensor] = {ref.index: t.clone() for ref, t in zip(trace.inputs, output_tensors(arguments(inputs)))}
    last_use = {ref.index: i for i, op in enumerate(trace.ops) for ref in (*op.refs(), *(o for o in op.outs if o))}
    last_use |= {ref.index: len(trace.ops) for ref in trace.outputs}
    dead: dict[int, list[int]] = {}
    for index, i in last_use.items():
        dead.setdefault(i, []).append(index)

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
        if op.name.endswith("_") and isinstance(op.args[0], Ref) and op.args[0].index not in env:
            args = (args[0].clone(), *args[1:])
        out = _apply(i, op, args, kwargs, substitution)
        results = list(out) if isinstance(out, list | tuple) else [out]
        for ref, result in zip(op.outs, results):
            if ref is not None:
                env[ref.index] = result
        yield i, results
        for index in dead.get(i, ()):
            env.pop(index, None)
    yield -1, [fetch(ref) for ref in trace.outputs]


def _apply(i: int, op: Op, args: Any, kwargs: Any, substitution: Substitution | None) -> Any:
    if op.name == "aten.view":  # what was put back to its places may lie differently in memory
        return args[0].reshape(args[1])
    if substitution is None:
        return op.func(*args, **kwargs)
    s = substitution
    if i not in s.small.matched:
        return op.func(*args, **kwargs)
    other = s.small.ops[s.small.matched[i]]
    if i in s.walk.statistics and _shrinks(s, op):
        s.statistics.setdefault(op.where)
        small_args = _merge(op.args, other.args, args, s)
        small_kwargs = {key: _merge(op.kwargs[key], other.kwargs.get(key), kwargs[key], s) for key in kwargs}
        out = op.func(*small_args, **small_kwargs)
        if "attention" in op.name and op.kwargs.get("scale") is None:
            s.scalars.setdefault(f"scale of {op.where}")
        results = list(out) if isinstance(out, list | tuple) else [out]
        wide = [
            scatter(r, s.walk.trace.shapes[ref.index], s.walk.values[ref.index], s.mask)
            if isinstance(r, Tensor) and ref is not None and _changes(s.walk.values[ref.index], s.mask)
            else r
            for r, ref in zip(results, op.outs)
        ]
        return wide if isinstance(out, list | tuple) else wide[0]
    return op.func(*_floats(op, op.args, other.args, args, s), **kwargs)


def _changes(value: Value, mask: Mask) -> bool:
    return any(not mask[t].all() for t in value.layers.values())


def _shrinks(s: Substitution, op: Op) -> bool:
    return any(_changes(s.walk.values[ref.index], s.mask) for ref in op.refs())


def _merge(recorded: Any, small: Any, real: Any, s: Substitution) -> Any:
    """Tensors of the original restricted to what stays, everything else from the small network."""
    if isinstance(recorded, Ref):
        return compact(real, s.walk.values[recorded.index], s.mask)
    if isinstance(recorded, list | tuple):
        return type(recorded)([_merge(r, m, x, s) for r, m, x in zip(recorded, small, real)])
    return small


def _floats(op: Op, recorded: Any, small: Any, real: Any, s: Substitution) -> Any:
    """Numbers with a fraction from the small network."""
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
    walk: Propagation,
    mask: Mask,
    small_trace: Trace,
    kept: Mapping[str, Any],
) -> Proof:
    """Run the small network for real and replay the silenced original; how far their outputs are apart."""
    substitution = Substitution(walk, mask, small_trace)
    with plain_kernels():
        reference = _last(replay(walk.trace, _silencer(model, kept), inputs, substitution))
    args, kwargs = own_arguments(inputs)
    with mode(small, False), plain_kernels():
        outputs = output_tensors(small(*args, **kwargs))
    if len(outputs) != len(reference):
        worst = float("inf")
    else:
        worst = max((relative_difference(a, b) for a, b in zip(outputs, reference)), default=0.0)
    return Proof(max_relative=worst, statistics=tuple(substitution.statistics), scalars=tuple(substitution.scalars))


def _silencer(model: nn.Module, kept: Mapping[str, Any]) -> Callable[[str], Tensor]:
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
    walk: Propagation,
    mask: Mask,
    small_trace: Trace,
    kept: Mapping[str, Any],
    tolerance: float,
) -> int:
    """The first operation whose kept channels differ between the replays of the two networks, or -1."""
    named: dict[str, Tensor] = dict([*small.named_parameters(), *small.named_buffers()])
    narrow = replay(small_trace, lambda name: named[name].detach(), inputs)
    results: list[Any] = []
    reached = -1
    for i, wide in replay(walk.trace, _silencer(model, kept), inputs, Substitution(walk, mask, small_trace)):
        if i < 0 or i not in small_trace.matched:
            continue
        while reached < small_trace.matched[i]:
            reached, results = next(narrow)
        for ref, a, b in zip(walk.trace.ops[i].outs, wide, results):
            if isinstance(a, Tensor) and ref is not None and not walk.values[ref.index].free:
                kept_part = compact(a, walk.values[ref.index], mask)
                if a.is_floating_point() and relative_difference(b, kept_part) > tolerance:
                    return i
    return -1
