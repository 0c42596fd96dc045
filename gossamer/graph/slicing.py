"""Pruning plans, and the smaller networks that they describe."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.copies import copy_network, tensors_of
from gossamer.errors import BadInput
from gossamer.graph.attributes import Attribute, set_attribute
from gossamer.graph.channel_index import Kept
from gossamer.graph.fake_tensors import fake_mode
from gossamer.graph.isolation import mode
from gossamer.graph.tracer import record, rejected, tensor_names


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a network; replaying it needs neither weights nor randomness.

    Args:
        kept: positions by parameter or buffer name and dimension; for the second dimension of a grouped convolution one
            list for each group.
        shapes: of those tensors before.
        attributes: new values by module name and attribute.
        widths: coupled channels before and after, by group.

    Example:
        >>> plan = PruningPlan({"weight": {0: [0, 2]}}, {"weight": (4, 8)})
        >>> PruningPlan.from_json(plan.to_json()) == plan
        True
    """

    kept: Mapping[str, Mapping[int, Kept]]
    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, Attribute]] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(
            {
                "kept": {name: {str(d): kept for d, kept in dims.items()} for name, dims in self.kept.items()},
                "shapes": self.shapes,
                "attributes": self.attributes,
                "widths": self.widths,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """The plan of a JSON text. Raises BadInput if it is none."""
        try:
            raw = json.loads(text)
            return cls(
                {name: {int(d): kept for d, kept in dims.items()} for name, dims in raw["kept"].items()},
                {name: tuple(shape) for name, shape in raw["shapes"].items()},
                raw["attributes"],
                {name: (before, after) for name, (before, after) in raw["widths"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"not the JSON text of a pruning plan: {type(error).__name__}: {error}") from error


def is_channels_last(tensor: Tensor) -> bool:
    """Whether an image-like tensor is laid out channels last, and not both ways."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def take_channels(tensor: Tensor, kept: Mapping[int, Kept]) -> Tensor:
    """The part of a parameter that stays, a new contiguous tensor of the same memory format."""
    out = tensor.detach()
    for d in sorted(kept, reverse=True):  # rows of a group are found by their old positions, so columns are taken first
        indices = kept[d]
        if indices and isinstance(indices[0], list):
            rows = out.chunk(len(indices), 0)
            parts = [r.index_select(d, torch.tensor(i, device=out.device)) for r, i in zip(rows, indices)]
            out = torch.cat(parts)
        else:
            out = out.index_select(d, torch.tensor(indices, device=out.device))
    # Nothing was taken: without a copy, the small network would share memory with the original.
    if out.data_ptr() == tensor.data_ptr():
        out = out.clone()
    return out.contiguous(memory_format=torch.channels_last) if is_channels_last(tensor) else out


def resize(model: nn.Module, example_inputs: Any, plan: PruningPlan) -> nn.Module:
    """Make a smaller copy of a model, of the user's own class. The model stays as it is.

    Args:
        model: the network that the plan was made for, with any weights.
        example_inputs: what the copy is run on, shapes only; None for no such check.
        plan: what stays.

    Returns:
        The smaller copy.

    Raises:
        BadInput: if the plan is of another network, or the copy does not run.

    Example:
        >>> from torch import nn
        >>> smaller = resize(nn.Linear(4, 3), None, PruningPlan({"weight": {1: [0, 3]}}, {"weight": (3, 4)}))
        >>> smaller.weight.shape
        torch.Size([3, 2])
    """
    refuse_constrained(model, "resize")
    named = dict([*model.named_parameters(), *model.named_buffers()])
    # `deepcopy` takes what its memo has for a tensor instead of copying it: ties between modules stay ties.
    memo: dict[int, Any] = {}
    for name, kept in plan.kept.items():
        if name not in named:
            raise BadInput(f"the plan is of another network: it has {name!r}, {type(model).__name__} has not")
        tensor = named[name]
        if tuple(tensor.shape) != tuple(plan.shapes[name]):
            raise BadInput(
                f"the plan is of another network: {name!r} was {list(plan.shapes[name])}, here {list(tensor.shape)}"
            )
        small = take_channels(tensor, kept)
        # requires_grad is kept, so that frozen parts of a network stay frozen.
        memo[id(tensor)] = (
            nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small
        )
    result = copy_network(model, memo)
    set_attributes(result, plan.attributes)
    if example_inputs is not None:
        check_runs(result, example_inputs)
    return result


def check_runs(model: nn.Module, example_inputs: Any) -> None:
    """A run on shapes only; the model's own error if it fails."""
    with mode(model, False):
        try:
            record(model, example_inputs, fake=fake_mode())
        except Exception:
            # What does not run on fake tensors (data-dependent sizes, foreign kernels) may run on real ones.
            try:
                record(model, example_inputs, fake=None)
            except Exception as error:
                raise rejected(model, example_inputs, error) from error


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Attribute]]) -> None:
    """Give modules the new values of their attributes."""
    modules = dict(model.named_modules())
    for name, values in attributes.items():
        for path, value in values.items():
            set_attribute(modules[name], path, value)


def resized_attributes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Attribute]:
    """What a standard module says of its own parameters, for their new shapes (by the parameter's own name)."""
    weight = shapes.get("weight", ())
    match module:
        case nn.modules.conv._ConvNd() | nn.Linear() | nn.Bilinear() | nn.Embedding() | nn.PReLU() if not weight:
            return {}
        case nn.modules.conv._ConvNd():
            return _convolution(module, weight)
        case nn.Linear():
            return {"in_features": weight[1], "out_features": weight[0]}
        case nn.Bilinear():
            return {"out_features": weight[0], "in1_features": weight[1], "in2_features": weight[2]}
        case nn.modules.batchnorm._NormBase():
            shape = weight or shapes.get("running_mean", ())
            return {"num_features": shape[0]} if shape else {}
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": list(weight)} if weight else {}
        case nn.GroupNorm():
            if not weight:
                return {}
            # With one channel for each group (instance norm) groups go with the channels; else their number stays.
            one_each = module.num_groups == module.num_channels
            return {"num_channels": weight[0], **({"num_groups": weight[0]} if one_each else {})}
        case nn.Embedding() | nn.EmbeddingBag() if weight:
            return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
        case nn.RNNBase():
            return _recurrent(module.mode, "_l0", shapes)
        case nn.RNNCellBase():
            return _recurrent(type(module).__name__.removesuffix("Cell"), "", shapes)
        case nn.PReLU():
            return {"num_parameters": weight[0]}
        case nn.MultiheadAttention():
            # Separate projections (kdim or vdim given) have tensors of their own, which say their sizes.
            packed = shapes.get("in_proj_weight")
            if packed is None:
                return {}
            return {"embed_dim": packed[1], "kdim": packed[1], "vdim": packed[1]}
        case _:
            return {}


def _recurrent(kind: str, suffix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Attribute]:
    rows, inputs = shapes[f"weight_ih{suffix}"]
    # `weight_ih` stacks the gates of a cell in its rows.
    projected = shapes.get("weight_hr_l0", (0,))[0]
    gates = {"LSTM": 4, "GRU": 3}.get(kind, 1)
    return {"input_size": inputs, "hidden_size": rows // gates, **({"proj_size": projected} if projected else {})}


def _convolution(module: nn.Module, weight: tuple[int, ...]) -> dict[str, Attribute]:
    conv: Any = module
    i, o, groups = 1, 0, conv.groups
    if conv.transposed:
        i, o = 0, 1
    # `weight` has shape (out, in / groups, ...), or (in, out / groups, ...) for a transposed convolution.
    if groups > 1 and conv.in_channels == groups:  # depthwise: groups are the channels
        per_out = conv.out_channels // groups
        groups = weight[0] if conv.transposed else weight[0] // per_out
        inputs, outputs = groups, groups * per_out
    else:
        inputs = weight[i] * (1 if conv.transposed else groups)
        outputs = weight[o] * (groups if conv.transposed else 1)
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def changed_attributes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Attribute]]:
    """What the standard modules must say of themselves once their tensors have new shapes, only where it differs.

    shapes: of the changed parameters and buffers, by name.
    """
    names = tensor_names(model)
    found: dict[str, dict[str, Attribute]] = {}
    for module_name, module in model.named_modules():
        own = dict(_own(module))
        if not any(names.get(id(t)) in shapes for t in own.values()):
            continue
        # By identity: a shared parameter is listed under its first name only.
        new = {key: shapes.get(names[id(t)], tuple(t.shape)) for key, t in own.items()}
        for key, value in resized_attributes(module, new).items():
            old = getattr(module, key, None)
            if (list(old) if isinstance(old, tuple | list) else old) != value and old is not None:
                found.setdefault(module_name, {})[key] = value
    return found


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's tensors by name; of a weight that is computed (weight norm, spectral norm, a mask), its source."""
    own = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    yield from own.items()
    for name, tensor in sorted(own.items(), key=lambda item: item[1].numel()):  # the largest, which comes last, counts
        key = name.removesuffix("_orig").removesuffix("_v")
        if key not in own and hasattr(module, key):
            yield key, tensor
    if parametrize.is_parametrized(module):
        for key, stack in module.parametrizations.items():  # type: ignore[operator, union-attr]
            yield key, max(stack.parameters(recurse=False), key=Tensor.numel)


def convolution_weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Weights of convolutions with their groups, also what a weight is computed from in its own shape."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            weight = dict(_own(module)).get("weight")
            for tensor in tensors_of(module):
                if weight is not None and tensor.shape == weight.shape:
                    yield tensor, module.groups
