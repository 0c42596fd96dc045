"""Parameters, multiply-adds, bytes and time, layer by layer."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.core.arguments import arguments
from gossamer.core.conditions import own_conditions
from gossamer.core.copies import parameter_count, state_of
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import LayerCost
from gossamer.graph.expectation import Shape
from gossamer.graph.groups import Group, find_groups, layer_of
from gossamer.graph.isolation import mode, plain_kernels
from gossamer.graph.tracer import (
    Op,
    Ref,
    Trace,
    tensor_names,
    trace,
)
from gossamer.modules.activation_memory import activation_bytes


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis:
    """What a network costs, layer by layer with measured times, and which of its channels are coupled.

    Attributes:
        layers: what each weighted operation costs.
        groups: of coupled channels, those that can be cut first.
        params: of the whole network.
        macs: multiply-adds of one sample.
        activation_bytes: of the activations that live at once, of one sample in int8.
        notes: what a user should know.

    Example:
        >>> import torch, gossamer
        >>> gossamer.analyze(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)), torch.ones(1, 8))
        Analysis(2 layers, 46 parameters, 40 multiply-adds, 1 of 2 groups can be cut)
    """

    layers: list[LayerCost]
    groups: list[Group]
    params: int
    macs: int
    activation_bytes: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        cuttable = sum(group.reason is None for group in self.groups)
        costs = f"{len(self.layers)} layers, {self.params:,} parameters, {self.macs:,} multiply-adds"
        return f"Analysis({costs}, {cuttable} of {len(self.groups)} groups can be cut)"

    def summary(self) -> str:
        """A line for each layer with its costs, a line for each group of channels that cannot be cut, and the notes."""
        rows = [
            f"{row.name}: {row.kind} {row.in_channels} to {row.out_channels}, {row.params:,} parameters, "
            f"{row.macs:,} multiply-adds" + ("" if row.time_ms is None else f", {row.time_ms:.3f} ms")
            for row in self.layers
        ]
        whole = [f"{one.name}: cannot be cut, {one.reason}" for one in self.groups if one.reason is not None]
        return "\n".join([repr(self), *rows, *whole, *self.notes])


def layer_costs(model: nn.Module, example_inputs: Any) -> list[LayerCost]:
    """One row for every module that has parameters of its own or multiplies activations.

    Args:
        model: any network that runs on the example inputs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments. The first
            dimension of the first input is the batch.

    Returns:
        Rows in the order of the run. macs: multiply-adds of convolutions and matrix products, of one sample. bytes:
        of the parameters. A parameter that several layers share is counted at the first.

    Example:
        >>> import torch
        >>> [(row.name, row.macs) for row in layer_costs(nn.Sequential(nn.Linear(8, 4)), torch.ones(1, 8))]
        [('0', 32)]
    """
    model = materialize(model) if constraints(model) else model
    t = trace(model, example_inputs)
    batch = t.shapes[t.inputs[0].index][0] if t.inputs and t.shapes[t.inputs[0].index] else 1
    macs: dict[str, int] = {}
    order: dict[str, None] = {}
    home = _first_place(t)
    for op in t.ops:
        for ref in op.refs():
            if ref.index in t.names and home.get(ref.index, ref.index) in t.names:
                order.setdefault(layer_of(t.names[ref.index]))
        count = op_macs(t, op)
        if count:
            weight = next((home[r.index] for r in op.refs() if home.get(r.index) is not None), None)
            inner = op.modules[-1] if op.modules else ""
            name = layer_of(t.names[weight]) if weight is not None else inner
            order.setdefault(name)
            macs[name] = macs.get(name, 0) + count
    return _rows(model, order, {name: count // batch for name, count in macs.items()})


def _first_place(t: Trace) -> dict[int, int]:
    """For tensors that are matrix-shaped parameters seen through views: the parameter."""
    home = {index: index for index in t.names if len(t.shapes[index]) > 1}
    for op in t.ops:
        if op.name in ("aten.t", "aten.transpose", "aten.view", "aten.detach", "aten.permute", "aten.unsqueeze"):
            source = op.args[0]
            if isinstance(source, Ref) and source.index in home and op.outs[0] is not None:
                home[op.outs[0].index] = home[source.index]
    return home


def op_macs(t: Trace, op: Op) -> int:
    """Multiply-adds of one operation of a trace, for its whole batch."""

    def shape(ref: Ref | None) -> Shape:
        return () if ref is None else t.shapes[ref.index]

    match op.name.removeprefix("aten."):
        case "convolution" | "_convolution":
            weight, out = shape(op.args[1]), shape(op.outs[0])
            if op.arg("transposed", False):
                return math.prod(shape(op.args[0])) * math.prod(weight[1:])
            return math.prod(out) * math.prod(weight[1:])
        case "mm" | "bmm" | "mv" | "dot":
            a, b = shape(op.args[0]), shape(op.args[1])
            return math.prod(a) * (b[-1] if len(b) > 1 else 1)
        case "addmm" | "baddbmm":
            return math.prod(shape(op.args[1])) * shape(op.args[2])[-1]
        case "linear":
            return math.prod(shape(op.args[0])) * shape(op.args[1])[0]
        case name if "scaled_dot_product" in name:
            q, k, v = (shape(ref) for ref in op.refs()[:3])
            return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
        case _:
            return 0


def _rows(model: nn.Module, order: Mapping[str, None], macs: Mapping[str, int]) -> list[LayerCost]:
    modules = dict(model.named_modules())
    owned: dict[str, list[nn.Parameter]] = {}
    loose: dict[str, None] = {}
    names = tensor_names(model)
    for _, p in nn.Module.named_parameters(model):
        name = layer_of(names[id(p)])
        owned.setdefault(name, []).append(p)
        loose.setdefault(name)
    rows = []
    for name in [*order, *(n for n in loose if n not in order)]:
        parameters = owned.get(name, [])
        if not parameters and name not in macs:
            continue
        module = modules.get(name)
        inputs, outputs = _channels(module, parameters)
        rows.append(
            LayerCost(
                name=name or type(model).__name__,
                kind=type(module).__name__ if module is not None else "Parameter",
                in_channels=inputs,
                out_channels=outputs,
                params=sum(p.numel() for p in parameters),
                macs=macs.get(name, 0),
                bytes=sum(p.numel() * p.element_size() for p in parameters),
            )
        )
    return rows


def _channels(module: nn.Module | None, parameters: list[nn.Parameter]) -> tuple[int, int]:
    """Channels in and out, as the module says, or as its first parameter's shape says."""
    for names in (("in_channels", "out_channels"), ("in_features", "out_features"), ("num_features", "num_features")):
        if module is not None and all(isinstance(getattr(module, n, None), int) for n in names):
            return getattr(module, names[0]), getattr(module, names[1])
    shape = tuple(parameters[0].shape) if parameters else ()
    return (shape[1] if len(shape) > 1 else shape[0] if shape else 0, shape[0] if shape else 0)


def total_macs(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-adds of one sample.

    Args:
        model: any network that runs on the example inputs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Returns:
        The number of multiply-adds of convolutions and matrix products.

    Example:
        >>> import torch
        >>> total_macs(nn.Linear(8, 4), torch.ones(1, 8))
        32
    """
    return sum(row.macs for row in layer_costs(model, example_inputs))


def total_params(model: nn.Module) -> int:
    """Number of parameters; a shared one counts once.

    Args:
        model: any network.

    Returns:
        The number of elements of all parameters.

    Example:
        >>> total_params(nn.Linear(8, 4))
        36
    """
    return parameter_count(model)


def shared_times(model: nn.Module, example_inputs: Any, *, runs: int = 5) -> dict[str, float]:
    """Median milliseconds of every module in plain torch, on the example inputs, by name. Inner modules included."""
    found: dict[str, list[float]] = {}
    starts: list[float] = []
    on_gpu = any(p.is_cuda for p in model.parameters())

    def synchronize() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def enter(*_: Any) -> None:
        synchronize()
        starts.append(time.perf_counter())

    def leave(name: str) -> Any:
        def hook(*_: Any) -> None:
            synchronize()
            found.setdefault(name, []).append(1000 * (time.perf_counter() - starts.pop()))

        return hook

    args, kwargs = arguments(example_inputs)
    handles = []
    try:
        with mode(model, False), torch.no_grad(), plain_kernels():
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(name))]
            for _ in range(runs + 1):
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: len(values) // (runs + 1) for name, values in found.items()}
    return {
        name: sum(median(values[call :: calls[name]][1:]) for call in range(calls[name]))
        for name, values in found.items()
        if calls[name]
    }


@checked_arguments
@own_conditions()
def analyze(model: nn.Module, example_inputs: Any) -> Analysis:
    """Measure what a network costs, and find which of its channels are coupled.

    Args:
        model: any network that runs on the example inputs.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Returns:
        Layers with parameters, MACs, bytes and time, and the groups of coupled channels, with the reason where one
        cannot be cut.

    Raises:
        BadInput: if the network rejects the example inputs.

    Example:
        >>> import torch
        >>> analyze(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.ones(1, 8)).macs
        40
    """
    channels = find_groups(model, example_inputs)
    times = shared_times(model, example_inputs)
    layers = [replace(row, time_ms=times.get(row.name)) for row in layer_costs(model, example_inputs)]
    return Analysis(
        layers=layers,
        groups=channels.groups,
        params=total_params(model),
        macs=sum(row.macs for row in layers),
        activation_bytes=activation_bytes(model, example_inputs),
        notes=tuple(channels.notes),
    )


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and statistics in float32: what the size of a compact file is compared with.

    Args:
        model: any network.

    Returns:
        Bytes.

    Example:
        >>> dense_bytes(nn.Linear(2, 3))
        36
    """
    return sum(4 * t.numel() for t in state_of(model).values() if t.is_floating_point())
