"""The proof of a pruning: the small network gives what the original gives with the removed channels masked.

The original is replayed from its recorded operations with the removed rows and columns of all parameters set to zero.
Operations that reduce over channels (layer norm, softmax over channels, L2 norm) see the kept channels only, and
numbers that follow a width (the scale of attention) are those of the small network; both are named. Where the run
depends on data (rows above a score), both networks take the decisions of the original's run, and the values that are
decided from are compared as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.arguments import arguments
from gossamer.errors import BadInput
from gossamer.graph.channel_index import IndexedValue, Kept
from gossamer.graph.coupling import Mask
from gossamer.graph.decisions import take
from gossamer.graph.isolation import mode, plain_kernels
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import compact, expected, scatter
from gossamer.graph.tracer import (
    Op,
    Ref,
    Trace,
    output_tensors,
    own_arguments,
    record,
)


def names_in_words(names: Sequence[str], most: int = 4) -> str:
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

    Example:
        >>> Proof(max_relative=2e-7).statistics
        ()
    """

    max_relative: float
    statistics: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()


class Unproven(Exception):
    """A proof that cannot be made. index: of the operation at which it ends, -1 outside of any."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.index = index


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
    # Activations of all operations together may not fit into memory; each is kept until its last reader has run.
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
        try:
            args, kwargs = fetch(op.args), {key: fetch(value) for key, value in op.kwargs.items()}
            # An operation in place must not change the caller's parameters and constants.
            if op.name.endswith("_") and isinstance(op.args[0], Ref) and op.args[0].index not in env:
                args = (args[0].clone(), *args[1:])
            out = _apply(i, op, args, kwargs, trace, substitution)
        except Exception as error:
            raise Unproven(i, error) from error
        results = list(out) if isinstance(out, list | tuple) else [out]
        for ref, result in zip(op.outs, results):
            if ref is not None:
                env[ref.index] = result
        yield i, results
        for index in freed_after.get(i, ()):
            env.pop(index, None)
    yield -1, [fetch(ref) for ref in trace.outputs]


def _apply(i: int, op: Op, args: Any, kwargs: Any, trace: Trace, s: Substitution | None) -> Any:
    if op.name == "aten.view":  # `scatter` may have laid it out differently in memory
        return args[0].reshape(args[1])
    decision = trace.decisions.get(i) if s is None or i in s.small.matched else None
    if decision is not None and (s is None or s.small.matched[i] in s.small.decisions):
        return take(decision, op.func, args, kwargs)
    if s is None or i not in s.small.matched:
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
    # All other operations run on the masked original, at its own sizes; only floats that follow a width change.
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
    if result.is_complex() and reference.is_complex():
        result, reference = torch.view_as_real(result.resolve_conj()), torch.view_as_real(reference.resolve_conj())
    if not result.is_floating_point():
        return 0.0 if torch.equal(result, reference) else float("inf")
    a, b = result.double(), reference.double()
    # Masks of attention are -inf on purpose; infinite values must be in the same places and are left out then.
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
    """Run the small network for real and replay the masked original; how far their outputs are apart.

    Raises BadInput where the outputs show nothing, Unproven where one of the two does not run.
    """
    decisions = propagation.trace.decisions
    outputs: list[Tensor] = []
    try:
        with mode(small, False), plain_kernels():
            if decisions:
                path = expected(propagation, mask)
                small_trace = record(small, inputs, fake=None, expected=path, decided=decisions)
            else:
                torch.manual_seed(0)  # for forwards that draw numbers
                args, kwargs = own_arguments(inputs)
                outputs = output_tensors(small(*args, **kwargs))
    except Exception as error:
        raise Unproven(getattr(error, "index", -1), error) from error
    s = Substitution(propagation, mask, small_trace)
    with mode(model, False), plain_kernels():
        if decisions:
            pairs = _compared(model, small, inputs, s, kept)
        else:
            torch.manual_seed(0)
            reference = _last(replay_operations(propagation.trace, _masked_parameters(model, kept), inputs, s))
            pairs = list(zip(outputs, reference)) if len(outputs) == len(reference) else []
    if pairs:
        _refuse_blind([b for _, b in pairs], inputs)
    worst = max((relative_difference(a, b) for a, b in pairs), default=float("inf"))
    return Proof(max_relative=worst, statistics=tuple(s.statistics), scalars=tuple(s.scalars))


def _compared(
    model: nn.Module, small: nn.Module, inputs: Any, s: Substitution, kept: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """Outputs of both networks, and the values that their decisions are made from."""
    trace = s.propagation.trace
    made = {ref.index: i for i, op in enumerate(trace.ops) for ref in op.outs if ref is not None}
    before = {made[ref.index] for i in trace.decisions for ref in trace.ops[i].refs() if ref.index in made}
    before |= {made[ref.index] for i in before for ref in trace.ops[i].refs() if ref.index in made}
    pairs = []
    for i, wide, narrow in lockstep(model, small, inputs, s, kept):
        if i < 0:
            pairs += list(zip(narrow, wide, strict=True))
        elif i in before:
            pairs += [(b, a) for a, b in _kept_parts(trace.ops[i], wide, narrow, s)]
    return pairs


def _refuse_blind(reference: list[Tensor], inputs: Any) -> None:
    """Refuse outputs in which no cut could be seen: they prove nothing."""
    numbers = [t for t in reference if t.numel() > 0]
    finite = [t[t.isfinite()] for t in numbers]
    if not numbers:
        why = "all outputs are empty"
    elif not any(t.numel() for t in finite):
        given = output_tensors(arguments(inputs))
        bad = not all(bool(t.isfinite().all()) for t in given)
        why = f"no output has a finite number{', and neither have the example inputs everywhere' * bad}"
    elif all(t.numel() == 0 or (t.numel() > 1 and bool((t == t[0]).all())) for t in finite):
        value = next(t for t in finite if t.numel())[0].item()
        why = f"the outputs are {value:g} everywhere"
    else:
        return
    raise BadInput(
        f"the proof of the pruning has nothing to look at: {why}; give example inputs (and weights) with which the "
        "network gives different finite numbers, or prove=False"
    )


def _masked_parameters(model: nn.Module, kept: Mapping[str, Any]) -> Callable[[str], Tensor]:
    named: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
    return lambda name: masked_original(named[name], kept[name]) if name in kept else named[name].detach()


def _last(steps: Iterator[tuple[int, list[Any]]]) -> list[Any]:
    results: list[Any] = []
    for _, results in steps:  # noqa: B007
        pass
    return results


def lockstep(
    model: nn.Module, small: nn.Module, inputs: Any, s: Substitution, kept: Mapping[str, Any]
) -> Iterator[tuple[int, list[Any], list[Any]]]:
    """Replay both networks together.

    Yields:
        For every operation that both have, its number in the original and the results of the original and of the small
        one; at the end -1 and the outputs.
    """
    named: dict[str, Tensor] = dict([*small.named_parameters(), *small.named_buffers()])
    torch.manual_seed(0)
    state = torch.get_rng_state()  # of the small one: both draw the same numbers, but not at the same time
    narrow = replay_operations(s.small, lambda name: named[name].detach(), inputs)
    results: list[Any] = []
    reached = -1
    for i, wide in replay_operations(s.propagation.trace, _masked_parameters(model, kept), inputs, s):
        if i >= 0 and i not in s.small.matched:
            continue
        other = torch.get_rng_state()
        torch.set_rng_state(state)
        if i < 0:
            results = _last(narrow)
        while i >= 0 and reached < s.small.matched[i]:
            reached, results = next(narrow)
        state = torch.get_rng_state()
        torch.set_rng_state(other)
        yield i, wide, results


def _kept_parts(op: Op, wide: list[Any], narrow: list[Any], s: Substitution) -> Iterator[tuple[Tensor, Tensor]]:
    """What stays of an operation's results, and what the small network has there; integers left out."""
    for ref, a, b in zip(op.outs, wide, narrow):
        if isinstance(a, Tensor) and ref is not None and (a.is_floating_point() or a.is_complex()):
            value = s.propagation.values[ref.index]
            if not value.free:
                yield compact(a, value, s.mask), b


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
    s = Substitution(propagation, mask, small_trace)
    with torch.random.fork_rng(devices=[]):
        for i, wide, narrow in lockstep(model, small, inputs, s, kept):
            if i < 0:
                continue
            parts = _kept_parts(propagation.trace.ops[i], wide, narrow, s)
            if any(relative_difference(b, a) > tolerance for a, b in parts):
                return i
    return -1
