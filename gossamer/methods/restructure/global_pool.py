"""Global average pooling (GAP): replace fully connected heads by a mean over positions and a small linear layer.

What it does: where a feature map is flattened into a linear layer, takes the mean over positions instead and reads it
with a small linear layer. By default that is fitted to the outputs of the whole head, and the head's other layers are
removed; with `whole: false` only the first linear layer is replaced. Least squares on calibration data, without labels;
exact where the old weights are the same at every position and the head is one layer.
Cost: about two runs of the calibration data, then `steps` runs of single batches.
When it fails: heads that depend on where things are (digits, aligned faces) lose most of their accuracy; recover with
distillation. Heads with functional activations in their `forward` can only be replaced with `whole: false`.
Equation: sum_{c, p} W[f, c, p] x[c, p] becomes sum_c U[f, c] mean_p x[c, p]; at first U[f, c] = sum_p W[f, c, p].
Source: Lin et al. 2013, arXiv:1312.4400, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.calibration.inputs import layer_inputs
from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.graph.tracer import Op, Ref, Trace, trace
from gossamer.methods._base import NetworkCandidate, Settings
from gossamer.methods.restructure._rewrite import BlockReplacement, Unfit

HEAD = (nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Flatten, _BatchNorm)
RESHAPES = ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.flatten", "aten.clone", "aten.native_dropout")
WEIGHT_VIEWS = ("aten.t", "aten.detach", "aten.transpose")


def channels_of(t: Trace, layer: str) -> int:
    """Return the number of channels of the map that is flattened into a linear layer.

    Raises:
        Unfit: there is no such map.
    """
    makers = {out.index: op for op in t.ops for out in op.outs if out is not None}
    ops = [op for op in _ops_of(t, layer) if op.name not in WEIGHT_VIEWS]
    if len(ops) != 1:
        raise Unfit(f"a run calls it {len(ops)} times")
    seen: Any = next(ref for ref in ops[0].refs() if ref.index not in t.names and _is_activation(makers, ref))
    while (maker := makers.get(seen.index)) is not None and maker.name in RESHAPES:
        seen = maker.args[0]
        shape = t.shapes[seen.index]
        if len(shape) > 2:
            while (maker := makers.get(seen.index)) is not None and maker.name == "aten.clone":
                seen = maker.args[0]
            if maker is None:
                raise Unfit("what it reads is the network's input, not a map of features")
            if maker.name in ("aten.permute", "aten.transpose"):
                raise Unfit("the map that it reads was permuted")
            positions = torch.Size(shape[2:]).numel()
            if positions == 1:
                raise Unfit("the map that it reads has one position only")
            return int(shape[1])
    raise Unfit("what it reads is not a flattened map")


def _is_activation(makers: dict[int, Op], ref: Ref) -> bool:
    maker = makers.get(ref.index)
    return maker is None or maker.name not in WEIGHT_VIEWS


def _ops_of(t: Trace, layer: str) -> list[Op]:
    return [op for op in t.ops if op.modules and op.modules[-1] == layer]


def head_behind(model: nn.Module, t: Trace, layer: str) -> list[str]:
    """Return the modules between a layer and the network's output, in order.

    Raises:
        Unfit: there is another operation than element-wise and linear modules, or a result is used twice.
    """
    last = max(i for i, op in enumerate(t.ops) if op.modules and op.modules[-1] == layer)
    names: dict[str, None] = {}
    before = {name for op in t.ops[:last] for name in op.modules[-1:]}
    for op in t.ops[last + 1 :]:
        name = op.modules[-1] if op.modules else ""
        if not name or not isinstance(model.get_submodule(name), HEAD) or name in before:
            raise Unfit(f"{op.where} stands between it and the output; give `whole: false` to rewrite it alone")
        names.setdefault(name)
    if len(t.outputs) != 1:
        raise Unfit("the network has several outputs; give `whole: false` to rewrite it alone")
    return list(names)


@torch.no_grad()
def dropouts_behind(model: nn.Module, example_inputs: tuple[Any, ...], layer: str) -> list[str]:
    """Return the dropout modules that are called after a layer: in eval mode they leave no operation."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    with evaluating(model), layer_inputs(model, [layer, *names]) as seen:
        model(*place(model, (example_inputs, None)))
    order = list(seen)
    return [name for name in order[order.index(layer) :] if name in names]


def pooled_head(layer: Any, channels: int, last: Any) -> nn.Module:
    """Return a pooled head for the place of `layer` with the outputs of the linear layer `last`.

    If both are the same layer, it gets weights made of the old ones.
    """
    linear: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear,
        channels,
        last.out_features,
        bias=last.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    with torch.no_grad():
        for p in linear.parameters():
            p.zero_()
        if last is layer:
            linear.weight.copy_(layer.weight.unflatten(1, (channels, -1)).sum(2))
            if layer.bias is not None:
                linear.bias.copy_(layer.bias)
    return nn.Sequential(nn.Unflatten(1, (channels, -1)), nn.AdaptiveAvgPool1d(1), nn.Flatten(), linear)


@dataclass(frozen=True, kw_only=True)
class GlobalAveragePooling(BlockReplacement):
    """Replace fully connected heads by global average pooling.

    The other options are those of `BlockReplacement`.

    Args:
        whole: whether the whole head is replaced; False: its first linear layer alone.

    Example:
        >>> import gossamer
        >>> from torch import nn
        >>> features = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> model = nn.Sequential(*features, nn.Flatten(), nn.Linear(64, 3))
        >>> method = gossamer.methods.restructure.GlobalAveragePooling(steps=2)
        >>> smaller, edits = method(model, gossamer.data.tiny_task())
        >>> print(edits[0].before, "->", edits[0].after)
        linear 64-3 -> linear 4-3
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    whole: bool = True

    @classmethod
    def network_candidates(cls) -> Sequence[NetworkCandidate]:
        return (
            NetworkCandidate("pooled head", "the head's first layer reads the mean of the map", cls(whole=False)),
            NetworkCandidate("pooled head", "the head reads the mean of the map", cls()),
        )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        t = trace(model, task.example_inputs)
        names = {id(module): name for name, module in model.named_modules()}

        def build(layer: nn.Module) -> FittedBlock:
            if not isinstance(layer, nn.Linear):
                raise Unfit(f"{type(layer).__name__} is not a linear layer")
            name = names[id(layer)]
            channels = channels_of(t, name)
            behind = head_behind(model, t, name) if self.whole else []
            linear = [name for name in behind if isinstance(model.get_submodule(name), nn.Linear)]
            last = model.get_submodule(linear[-1]) if linear else layer
            idle = (*behind, *dropouts_behind(model, task.example_inputs, name)) if behind else ()
            until = behind[-1] if behind else None
            return FittedBlock(
                pooled_head(layer, channels, last), {"3": None}, until=until, idle=tuple(dict.fromkeys(idle))
            )

        return self.rewrite(model, task, context, build)
