"""How much memory the activations of a network take at once, for processors that have little of it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.core.kinds import checked_arguments
from gossamer.graph.tracer import Op, Ref, Trace, trace

# Not tagged as pointwise by PyTorch; runtimes fold them into the layer before.
FOLDED = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "dropout", "native_dropout")


@checked_arguments
def activation_bytes(model: nn.Module, example_inputs: Any) -> int:
    """Bytes of the activations that live at once at most, one byte each (int8), for one sample.

    This is what an arena of a microcontroller must hold: the operations run one after another, in the order of the
    network's own run, and a tensor is kept from the operation that makes it to the last one that reads it. Views take
    no memory of their own. An operation that is done value by value writes over an input that nothing reads later.
    Parameters and the room that a kernel needs for itself do not count. In float32 it is four times as much.

    Args:
        model: any network that runs on the example inputs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments. The first
            dimension of the first input is the batch.

    Returns:
        Bytes of the inputs, the outputs and what lies between, where they are most.

    Raises:
        BadInput: if the network rejects the example inputs.

    Example:
        >>> network = nn.Sequential(nn.Linear(100, 30), nn.ReLU(), nn.Linear(30, 10))
        >>> activation_bytes(network, torch.ones(1, 100))  # the first layer reads 100 values and writes 30
        130
    """
    t = trace(materialize(model) if constraints(model) else model, example_inputs)
    batch = t.shapes[t.inputs[0].index][0] if t.inputs and t.shapes[t.inputs[0].index] else 1
    return -(-max(_living(t), default=0) // max(1, batch))


def _living(t: Trace) -> Iterator[int]:
    """How many values live during each operation."""
    home = _buffers(t)
    last: dict[int, int] = {}
    for place, op in enumerate(t.ops):
        last.update({home[ref.index]: place for ref in (*op.refs(), *_outs(op)) if ref.index in home})
    last.update({home[ref.index]: len(t.ops) for ref in t.outputs if ref.index in home})
    sizes: dict[int, int] = {}
    for index, buffer in home.items():
        sizes[buffer] = max(sizes.get(buffer, 0), math.prod(t.shapes[index]))
    living = {home[ref.index] for ref in t.inputs if home[ref.index] in last}
    for place, op in enumerate(t.ops):
        living.update(home[ref.index] for ref in _outs(op) if ref.index in home)
        yield sum(sizes[buffer] for buffer in living)
        living = {buffer for buffer in living if last[buffer] > place}


def _buffers(t: Trace) -> dict[int, int]:
    """The memory that each activation lies in, by the number of the tensor that it was made for."""
    home = {ref.index: ref.index for ref in t.inputs}
    reads: dict[int, int] = {}  # by tensor, the last operation that reads it or a view of it
    source: dict[int, int] = {}
    for place, op in enumerate(t.ops):
        for ref in op.refs():
            index = ref.index
            while True:
                reads[index] = place
                if index not in source:
                    break
                index = source[index]
        if (base := _base(op)) is not None:
            source.update({out.index: base.index for out in _outs(op)})
    reads.update({ref.index: len(t.ops) for ref in t.outputs})
    for place, op in enumerate(t.ops):
        given = [ref.index for ref in op.refs() if ref.index in home]
        if not given:
            continue  # made of parameters alone
        base = _base(op)
        for out in _outs(op):
            if base is not None and base.index in home:
                home[out.index] = home[base.index]
                continue
            free = (i for i in given if _by_value(op) and t.shapes[i] == t.shapes[out.index])
            written = next((i for i in free if _last_read(i, reads, source, home) == place), None)
            home[out.index] = out.index if written is None else home[written]
    return home


def _last_read(index: int, reads: dict[int, int], source: dict[int, int], home: dict[int, int]) -> int:
    """When anything that lies in the memory of a tensor is read for the last time, its views included."""
    while index in source:
        index = source[index]
    return max((reads.get(other, -1) for other, buffer in home.items() if buffer == home[index]), default=-1)


def _outs(op: Op) -> list[Ref]:
    return [out for out in op.outs if out is not None]


def _base(op: Op) -> Ref | None:
    """The input that the results of an operation are views of, or that it changes in place."""
    returns = op.func._schema.returns
    if not returns or returns[0].alias_info is None:
        return None
    return next(iter(op.refs()), None)


def _by_value(op: Op) -> bool:
    return torch.Tag.pointwise in op.func.tags or op.name.removeprefix("aten.") in FOLDED
