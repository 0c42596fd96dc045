"""The `constrain` edit: put constraints on weights, list them, and remove them.

`materialize` puts the effective values into plain weights and leaves nothing of gossamer behind.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import share_codebooks
from gossamer.constraints.mask import Mask
from gossamer.core.copies import copy_network
from gossamer.errors import BadInput, NoEffect, unknown

Stack = parametrize.ParametrizationList


def constrain(model: nn.Module, added: Mapping[str, Constraint]) -> nn.Module:
    """Return a copy with constraints registered on the named weights, after any existing ones.

    A weight that several layers share is constrained in all of them.

    Args:
        model: the network, which is left as it is.
        added: constraints by the name of the weight ("conv1.weight").

    Returns:
        The constrained copy. It trains like any module; `materialize` gives plain weights again.

    Raises:
        BadInput: for a name or shape that does not fit, an order that falls, or a constraint that brings back weights
            that a Mask sets to zero.
        NoEffect: for no names.

    Example:
        >>> import torch
        >>> model = constrain(nn.Linear(2, 1), {"weight": Mask(torch.tensor([[True, False]]))})
        >>> model.weight[0, 1].item()
        0.0
    """
    if not added:
        raise NoEffect("constrain: no weights were named")
    changed = copy_network(model)
    stacks = _remove(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, constraint in added.items():
        if name not in owners:
            raise unknown("weight", name, owners)
        below = stacks.get(name, ())
        if below and below[-1].order > constraint.order:
            raise BadInput(
                f"{name}: {type(constraint).__name__} cannot stand on {type(below[-1]).__name__}, which already fixes "
                "the values; prune first, then share or quantize"
            )
        constraint = copy.deepcopy(constraint).to(owners[name][0][2].device)
        try:
            _check(constraint, below, owners[name][0][2])
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from error
        stacks[name] = (*below, constraint)
    share_codebooks(constraint for stack in stacks.values() for constraint in stack)
    for name, stack in stacks.items():
        _attach(owners[name], stack)
    return changed


@torch.no_grad()
def _check(constraint: Constraint, below: tuple[Constraint, ...], weight: Tensor) -> None:
    value, dropped = weight, torch.zeros_like(weight, dtype=torch.bool)
    for other in below:
        value = other(value)
        dropped = dropped | ~other.mask if isinstance(other, Mask) else dropped
    constraint.check(value)
    back = int(constraint(value)[dropped].count_nonzero())
    if back:
        raise BadInput(
            f"{type(constraint).__name__} brings back {back} weights that a Mask sets to zero; give them the value 0"
        )


def attach(model: nn.Module, stacks: Mapping[str, tuple[Constraint, ...]]) -> None:
    """Constrain weights of a plain network in place, unchecked: `constrain` checks."""
    owners = _owners(model)
    for name, stack in stacks.items():
        _attach(owners[name], stack)


def _attach(places: list[tuple[nn.Module, str, nn.Parameter]], stack: tuple[Constraint, ...]) -> None:
    for module, key, _ in places:
        if parametrize.is_parametrized(module) and not constrained_in(module):
            raise BadInput(
                f"{type(module).__name__}.{key}: its layer has parametrizations of its own; remove them first"
            )
        stack[0].place = list(module._parameters).index(key)
        for constraint in stack:
            parametrize.register_parametrization(module, key, constraint, unsafe=True)
        if isinstance(module, nn.RNNBase):
            # It computes with a list of its weights, which must not outlive them: constrained ones are new
            # in every forward.
            module.__dict__.pop("_flat_weights", None)
            type(module)._flat_weights = property(_flat_weights, lambda module, weights: None)  # type: ignore[assignment]


def _flat_weights(module: nn.RNNBase) -> list[Any]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str, nn.Parameter]]]:
    """Every place where a parameter is, by the name that it has in `named_parameters`."""
    names = {id(p): name for name, p in model.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str, nn.Parameter]]] = {}
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                owners.setdefault(names[id(p)], []).append((module, key, p))
    return owners


def constrained_in(module: nn.Module) -> dict[str, Stack]:
    """The constrained tensors of this very module."""
    if not parametrize.is_parametrized(module):
        return {}
    stacks: Any = module.parametrizations
    return {key: stack for key, stack in stacks.items() if all(isinstance(c, Constraint) for c in stack)}


def _members(stack: Stack) -> tuple[Constraint, ...]:
    modules: Any = stack
    return tuple(modules)


def constrained_stacks(model: nn.Module) -> dict[str, Stack]:
    """All constrained weights by name, a shared one once."""
    seen: set[int] = set()
    found: dict[str, Stack] = {}
    for name, module in model.named_modules():
        for key, stack in constrained_in(module).items():
            if id(stack.original) not in seen:
                seen.add(id(stack.original))
                found[f"{name}.{key}".removeprefix(".")] = stack
    return found


def _remove(model: nn.Module, value: Callable[[Stack], Tensor]) -> dict[str, tuple[Constraint, ...]]:
    """Remove all constraints, in place: plain parameters of these values are left, in their old order."""
    found = {name: _members(stack) for name, stack in constrained_stacks(model).items()}
    plain: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        stacks = constrained_in(module)
        if not stacks:
            continue
        # The class that parametrize makes is shared with every copy of the module, so it is left as it is.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for key, stack in reversed(stacks.items()):  # the last that was taken out comes back first
            raw = stack.original
            if id(raw) not in plain:
                plain[id(raw)] = nn.Parameter(value(stack).detach().clone(), requires_grad=raw.requires_grad)
            order = list(module._parameters)
            module.register_parameter(key, plain[id(raw)])
            for later in order[_members(stack)[0].place :]:
                module._parameters[later] = module._parameters.pop(later)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = _flat_weights(module)
    return found


def constraints(model: nn.Module) -> dict[str, tuple[Constraint, ...]]:
    """Find the constraints of a network.

    Args:
        model: any network.

    Returns:
        The constraints of each constrained weight by its name, the first one first; empty for a plain network.

    Example:
        >>> import torch
        >>> model = constrain(nn.Linear(2, 1), {"weight": Mask(torch.tensor([[True, False]]))})
        >>> {name: len(stack) for name, stack in constraints(model).items()}
        {'weight': 1}
    """
    return {name: _members(stack) for name, stack in constrained_stacks(model).items()}


def materialize(model: nn.Module) -> nn.Module:
    """Return a copy with plain weights that have the effective values (removes parametrizations).

    Args:
        model: a network, constrained or not.

    Returns:
        The copy. Classes and names are those before it was constrained, and outputs are bit-equal.

    Example:
        >>> import torch
        >>> model = constrain(nn.Linear(2, 1), {"weight": Mask(torch.tensor([[True, False]]))})
        >>> list(materialize(model).state_dict())
        ['weight', 'bias']
    """
    plain = copy_network(model)
    _remove(plain, lambda stack: stack())
    return plain


@torch.no_grad()
def unconstrained(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy in which these weights are unconstrained: plain, with their effective values."""
    changed, wanted = copy_network(model), set(names)
    values = {name: stack() for name, stack in constrained_stacks(changed).items() if name in wanted}
    stacks = _remove(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, stack in stacks.items():
        if name in values:
            owners[name][0][2].copy_(values[name])
        else:
            _attach(owners[name], stack)
    return changed


def finalize(model: nn.Module) -> nn.Module:
    """Return a copy in which constraints for one training (with scores, probes) are replaced by those that remain.

    Args:
        model: a network after a training under constraints.

    Returns:
        The copy, still constrained. Its effective weights are the same.

    Example:
        >>> import torch
        >>> model = constrain(nn.Linear(2, 1), {"weight": Mask(torch.tensor([[True, False]]))})
        >>> type(constraints(finalize(model))["weight"][0]).__name__
        'Mask'
    """
    changed = copy_network(model)
    stacks = _remove(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, stack in stacks.items():
        _attach(owners[name], tuple(c.finalized() for c in stack))
    return changed


def refuse_constrained(model: nn.Module, edit: str) -> None:
    """Raise BadInput if weights of the model are constrained, for edits that change their shapes or remove them."""
    found = constraints(model)
    if found:
        name, stack = next(iter(found.items()))
        kinds = " and ".join(type(c).__name__ for c in stack)
        raise BadInput(
            f"{edit}: {name} is constrained by {kinds} ({len(found)} weights in all), which would not fit afterwards; "
            "put this step before those that constrain, or materialize(model) first"
        )
