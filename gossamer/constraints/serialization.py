"""A constrained network on disk: which weights have which constraints, as plain values next to the tensors."""

import importlib
from typing import Any

from torch import Tensor, nn

from gossamer.constraints.apply import attach, constraints, materialize
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import share_codebooks
from gossamer.core.copies import load_state
from gossamer.errors import CorruptFile

PLAIN = (bool, int, float, str, tuple, type(None))


def constraint_spec(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The constraints of every constrained weight as JSON values; their tensors are in the state_dict."""
    return {name: [_spec(constraint) for constraint in stack] for name, stack in constraints(model).items()}


def _spec(constraint: Constraint) -> dict[str, Any]:
    own = {k: v for k, v in vars(constraint).items() if not k.startswith("_") and isinstance(v, PLAIN)}
    passing = constraint._non_persistent_buffers_set  # `rebuild` recomputes them
    return {
        "class": f"{type(constraint).__module__}:{type(constraint).__qualname__}",
        "options": {key: value for key, value in own.items() if key != "training"},
        "parameters": [name for name, _ in constraint.named_parameters(recurse=False)],
        "buffers": [name for name, _ in constraint.named_buffers(recurse=False) if name not in passing],
        "none": [name for name, tensor in constraint._buffers.items() if tensor is None],
    }


def restore_constraints(
    model: nn.Module, spec: dict[str, list[dict[str, Any]]], tensors: dict[str, Tensor]
) -> nn.Module:
    """A network like `model`, constrained as `spec` says, with these tensors; its own constraints are removed."""
    plain = materialize(model)
    stacks = {}
    for name, stack in spec.items():
        owner, _, key = name.rpartition(".")
        prefix = f"{owner}.parametrizations.{key}".removeprefix(".")
        stacks[name] = tuple(_build(one, tensors, f"{prefix}.{number}") for number, one in enumerate(stack))
    share_codebooks(constraint for stack in stacks.values() for constraint in stack)
    attach(plain, stacks)
    load_state(plain, tensors)
    return plain


def _build(spec: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> Constraint:
    module, _, name = spec["class"].partition(":")
    cls = getattr(importlib.import_module(module), name, None) if module.startswith("gossamer.") else None
    if not isinstance(cls, type) or not issubclass(cls, Constraint):
        raise CorruptFile(f"{spec['class']} is not a constraint of gossamer")
    constraint = cls.__new__(cls)
    nn.Module.__init__(constraint)
    for key, value in spec["options"].items():
        setattr(constraint, key, tuple(value) if isinstance(value, list) else value)  # JSON has no tuples
    for key in spec["parameters"]:
        setattr(constraint, key, nn.Parameter(tensors[f"{prefix}.{key}"].clone()))
    for key in spec["buffers"]:
        constraint.register_buffer(key, tensors[f"{prefix}.{key}"].clone())
    for key in spec["none"]:
        constraint.register_buffer(key, None)
    constraint.rebuild()
    return constraint
