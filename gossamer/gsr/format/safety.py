"""Which graphs must not run, told without running them: those that change inputs, stored tensors or anything else."""

from functools import cache
from typing import Any

import torch

from gossamer.gsr.format.graph import Graph, Step, Value
from gossamer.gsr.format.operations import VIEWS, WRITES, function_of

# What keeps statistics (its arguments 3 and 4), and which argument must be false (its argument 5) for it not to do so.
LEARNS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
# What draws random numbers, and which argument must be 0 or false: its place and its name.
RANDOM = {
    "scaled_dot_product_attention": (4, "dropout_p"),
    "_scaled_dot_product_flash_attention_for_cpu": (3, "dropout_p"),
    "lstm.input": (6, "train"),
    "gru.input": (6, "train"),
    "rnn_tanh.input": (6, "train"),
    "rnn_relu.input": (6, "train"),
}
# What torch takes as a number, too, and then looks up in a table without looking whether it is in there.
LOOKED_UP = {"ScalarType": torch.dtype, "Layout": torch.layout, "MemoryFormat": torch.memory_format}
SIZES = ("sym_size.int", "sym_numel", "sym_storage_offset", "sym_stride.int")


def unsafe(graph: Graph) -> str | None:
    """Why the graph must not run, or None."""
    # Whether a value's memory is that of the network's own results, and whether it is a number.
    owned, numbers = [False] * graph.inputs, [False] * graph.inputs
    for step in graph.steps:
        first = step.args[0] if step.args else None
        ours = isinstance(first, Value) and owned[first.index]
        if step.op in WRITES and not ours:
            return f"{step.op} writes into an input or a stored tensor"
        if why := _changes(step) or _misuses(step, numbers) or mistyped(step):
            return f"{step.op} {why}"
        owned.append(ours if step.op in WRITES or step.op in VIEWS else True)
        numbers.append(step.op in SIZES or (step.op.startswith("py.") and step.op != "py.getitem"))
    return None


def writes_outside(graph: Graph) -> str | None:
    """Why the graph must not run, for graphs whose other operations were checked already."""
    owned = [False] * graph.inputs
    for step in graph.steps:
        first = step.args[0] if step.args else None
        ours = isinstance(first, Value) and owned[first.index]
        if step.op in WRITES and not ours:
            return f"{step.op} writes into an input or a stored tensor"
        owned.append(ours if step.op in WRITES or step.op in VIEWS else True)
    return None


def _changes(step: Step) -> str | None:
    """Running statistics and random numbers."""
    kept = argument(step, 3, "running_mean"), argument(step, 4, "running_var")
    if step.op in LEARNS and kept != (None, None) and argument(step, 5, LEARNS[step.op]) is not False:
        return "changes its running mean and variance"
    if step.op in RANDOM and argument(step, *RANDOM[step.op]) not in (None, 0, False):
        return "draws random numbers"
    return None


def _misuses(step: Step, numbers: list[bool]) -> str | None:
    """Python's operators are for sizes, and its brackets for what an operation gives several of."""
    if not step.op.startswith("py."):
        return None
    if step.op == "py.getitem":
        whole = len(step.args) == 2 and not step.kwargs and type(step.args[1]) is int
        several = whole and isinstance(step.args[0], Value) and not numbers[step.args[0].index]
        return None if several else "takes something else than a result's place"
    plain = all(numbers[x.index] if isinstance(x, Value) else isinstance(x, int | float) for x in step.args)
    return None if plain and not step.kwargs else "takes something else than numbers"


def mistyped(step: Step) -> str | None:
    """A number, which may be any, in the place of a type, a layout or a memory format: torch can crash on it."""
    for place, name, kind in _looked_up(step.op):
        value = argument(step, place, name)
        if value is not None and not isinstance(value, LOOKED_UP[kind]):
            return f"takes something else than a {kind} as {name}"
    return None


@cache
def _looked_up(op: str) -> list[tuple[int, str, str]]:
    """Place, name and kind of the arguments of an operation that torch looks up."""
    schema = getattr(function_of(op), "_schema", None)
    kinds = [(n, one.name, str(one.real_type)) for n, one in enumerate(schema.arguments)] if schema else []
    bare = [(n, name, kind.removeprefix("Optional[").removesuffix("]")) for n, name, kind in kinds]
    return [one for one in bare if one[2] in LOOKED_UP]


def argument(step: Step, place: int, name: str) -> Any:
    """An argument of a step by its place or name; None where it is not given."""
    return step.args[place] if place < len(step.args) else step.kwargs.get(name)
