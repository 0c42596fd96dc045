"""The `constrain` edit: hold a weight to a set (a mask, a codebook, a grid) through all training that follows.

A constraint is a parametrization (`torch.nn.utils.parametrize`): the optimizer moves the raw weight and the parameters
of the constraint, and the layer computes with the held value. Whatever momentum or weight decay do to the raw weight,
the held value stays in its set. `materialize` puts the held values into plain weights and leaves
nothing of gossamer behind.
"""

import copy
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.errors import BadInput, NoEffect, unknown
from gossamer.gsr.format.generated import GeneratedWeight

Held = parametrize.ParametrizationList


class Constraint(nn.Module):
    """Raw weight in, held value of the same shape out. One constraint can stand on another: what the first one gives is
    the input of the next. `order` must not fall on the way: what fixes zeros comes before what fixes values."""

    order: ClassVar[int] = 1
    place: int = 0  # of the weight among its layer's own parameters, where `materialize` puts it back

    def check(self, weight: Tensor) -> None:
        """Raise BadInput if this is not for such a weight."""
        try:
            shape = self(weight).shape
        except (RuntimeError, IndexError) as error:
            raise BadInput(f"{type(self).__name__} does not fit a weight of {list(weight.shape)}: {error}") from error
        if shape != weight.shape:
            raise BadInput(f"{type(self).__name__} gives {list(shape)} for a weight of {list(weight.shape)}")

    def settled(self) -> "Constraint":
        """What is left of this for good when the training ends for which it was made; itself, where that is nothing."""
        return self

    def rebuild(self) -> None:
        """Make again what follows from the rest and is in no state dict."""

    def made(self) -> GeneratedWeight | None:
        """The held value as a rule and fewer numbers, for the compact file; None where the values tell it all."""
        return None


class Mask(Constraint):
    """mask: bool, True keeps. Dropped weights are zero, and so are their gradients."""

    order: ClassVar[int] = 0
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise BadInput(f"Mask: the mask is {mask.dtype}, it must be torch.bool (True keeps)")
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight.where(self.mask, 0.0)

    def check(self, weight: Tensor) -> None:
        if self.mask.shape != weight.shape:
            raise BadInput(f"Mask has {list(self.mask.shape)}, the weight {list(weight.shape)}: they must be equal")


class Codebook(Constraint):
    """Every weight, or every d consecutive weights, is the entry of a trained codebook that `indices` names.

    codebook: (K,), or (K, d) for vectors. indices: integers in [0, K), one for each weight or vector in the order of
    the flattened weight, any shape. The gradient of an entry is the sum over its users; entries that are 0 stay 0, so
    that pruned weights do. The raw weight is not used, and gets no gradient. mean: the gradient is the mean over
    the users instead, for learning rates that fit single weights: sums diverge at them, since an entry may have 100,000
    users; with means a step moves an entry to the mean of where its users would go. joint: weights whose codebooks have
    the same name here share one, which is trained as one.
    """

    indices: Tensor
    alive: Tensor
    users: Tensor | None

    def __init__(self, codebook: Tensor, indices: Tensor, *, mean: bool = False, joint: str = "") -> None:
        super().__init__()
        self.joint = joint
        if codebook.ndim not in (1, 2) or not len(codebook):
            raise BadInput(f"Codebook: the codebook has shape {list(codebook.shape)}, it must be (K,) or (K, d)")
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise BadInput(f"Codebook: indices are {indices.dtype}, they must be integers")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(codebook):
            raise BadInput(
                f"Codebook: indices are in [{int(indices.min())}, {int(indices.max())}], "
                f"they must be in [0, {len(codebook)}), the size of the codebook"
            )
        self.codebook = nn.Parameter(codebook.detach().clone())
        self.register_buffer("indices", indices.detach().int())
        self.register_buffer("alive", codebook.detach() != 0)
        self.register_buffer("users", users_of(self.indices, len(codebook)) if mean else None)

    def forward(self, weight: Tensor) -> Tensor:
        return take(self.codebook.where(self.alive, 0.0), self.indices.flatten(), self.users).view(weight.shape)


def joint_codebook(codebook: Tensor, indices: Mapping[str, Tensor], *, mean: bool) -> dict[str, Codebook]:
    """One codebook for all weights of these names. Arguments as of `Codebook`."""
    held = {name: Codebook(codebook, one, mean=mean, joint=next(iter(indices))) for name, one in indices.items()}
    if mean:
        users = users_of(torch.cat([one.flatten() for one in indices.values()]), len(codebook))
        for constraint in held.values():
            constraint.users = users
    return held


def tie(constraints: Iterable[Constraint]) -> None:
    """Make one parameter of codebooks that are one; copies of single constraints lose that."""
    first: dict[str, nn.Parameter] = {}
    for constraint in constraints:
        if isinstance(constraint, Codebook) and constraint.joint:
            constraint.codebook = first.setdefault(constraint.joint, constraint.codebook)


def users_of(indices: Tensor, entries: int) -> Tensor:
    """How often each entry is named, at least 1, shape (entries,), float32."""
    return torch.bincount(indices.flatten(), minlength=entries).clamp(min=1).float()


def take(entries: Tensor, indices: Tensor, users: Tensor | None) -> Tensor:
    """entries[indices]. The gradient of an entry is the sum over its users, or, where `users` counts them, the mean."""
    if users is not None:
        fixed = entries.detach()
        entries = fixed + (entries - fixed) / users.view(-1, *[1] * (entries.ndim - 1))
    # Not entries[indices], whose gradient is three times as slow.
    return entries.index_select(0, indices)


class Grid(Constraint):
    """value = scale * clamp(round(weight / scale), low, high), low and high integers with low <= 0 <= high.

    scale: a scalar, or (size of `dim`,) for one per channel. The gradient passes straight through the rounding, and is
    zero where the weight is clamped. learned: the scale is trained, with the gradient of Esser et al. 2020
    (arXiv:1902.08153, equations 3 and 4: round(v) - v inside, low or high outside, times 1 / sqrt(N high)).
    """

    scale: Tensor

    def __init__(self, scale: Tensor | float, low: int, high: int, *, dim: int = 0, learned: bool = False) -> None:
        super().__init__()
        scale = torch.as_tensor(scale, dtype=torch.float32).detach().clone()
        if not low <= 0 <= high or low == high:
            raise BadInput(f"Grid: the integers [{low}, {high}] must be a range that holds 0")
        if scale.ndim > 1 or not bool((scale > 0).all()):
            raise BadInput("Grid: scale must be positive, a scalar or one number for each channel")
        self.low, self.high, self.dim = low, high, dim
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny)  # training may lead it through zero
        if scale.requires_grad:
            share = (scale.numel() / weight.numel() / max(self.high, 1)) ** 0.5
            scale = scale.detach() + share * (scale - scale.detach())
        if scale.ndim:
            scale = scale.view([-1 if d == self.dim else 1 for d in range(weight.ndim)])
        codes = (weight / scale).clamp(self.low, self.high)
        return scale * (codes.round().detach() + (codes - codes.detach()))


def constrain(model: nn.Module, held: Mapping[str, Constraint]) -> nn.Module:
    """A copy of `model` in which the weights of these names ("conv1.weight") are held, on top of what holds them now.

    A weight that several layers share is held in all of them. Raises BadInput for a name or shape that does not fit, an
    order that falls, and a constraint that brings back weights which a Mask holds at zero; NoEffect for no names.
    """
    if not held:
        raise NoEffect("constrain: no weights were named")
    changed = copy.deepcopy(model)
    stacks = _peel(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, constraint in held.items():
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
    tie(constraint for stack in stacks.values() for constraint in stack)
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
            f"{type(constraint).__name__} brings back {back} weights that a Mask holds at zero; give them the value 0"
        )


def attach(model: nn.Module, stacks: Mapping[str, tuple[Constraint, ...]]) -> None:
    """Hold weights of a plain network, in place, without a look at whether it makes sense: `constrain` looks."""
    owners = _owners(model)
    for name, stack in stacks.items():
        _attach(owners[name], stack)


def _attach(places: list[tuple[nn.Module, str, nn.Parameter]], stack: tuple[Constraint, ...]) -> None:
    for module, key, _ in places:
        if parametrize.is_parametrized(module) and not _ours(module):
            raise BadInput(
                f"{type(module).__name__}.{key}: its layer has parametrizations of its own; remove them first"
            )
        stack[0].place = list(module._parameters).index(key)
        for constraint in stack:
            parametrize.register_parametrization(module, key, constraint, unsafe=True)
        if isinstance(module, nn.RNNBase):
            # It computes with a list of its weights, which must not outlive them: held ones are new in every forward.
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


def _ours(module: nn.Module) -> dict[str, Held]:
    """The tensors of this very module that gossamer holds."""
    if not parametrize.is_parametrized(module):
        return {}
    stacks: Any = module.parametrizations
    return {key: stack for key, stack in stacks.items() if all(isinstance(c, Constraint) for c in stack)}


def _members(stack: Held) -> tuple[Constraint, ...]:
    modules: Any = stack
    return tuple(modules)


def _stacks(model: nn.Module) -> Iterator[tuple[str, Held]]:
    """Everything that is held, by name, a shared weight once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for key, stack in _ours(module).items():
            if id(stack.original) not in seen:
                seen.add(id(stack.original))
                yield f"{name}.{key}".removeprefix("."), stack


def _peel(model: nn.Module, value: Callable[[Held], Tensor]) -> dict[str, tuple[Constraint, ...]]:
    """Take all constraints off, in place: plain parameters of these values are left, in their old order."""
    found = {name: _members(stack) for name, stack in _stacks(model)}
    plain: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        ours = _ours(module)
        if not ours:
            continue
        # The class that parametrize makes is shared with every copy of the module, so it is left as it is.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for key, stack in reversed(ours.items()):  # the last that was taken out comes back first
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
    """What holds which weight, the first constraint first; empty for a plain network."""
    return {name: _members(stack) for name, stack in _stacks(model)}


def materialize(model: nn.Module) -> nn.Module:
    """A copy with plain weights that have the held values: the classes and names it had before it was constrained, and
    bit-equal outputs."""
    plain = copy.deepcopy(model)
    _peel(plain, lambda stack: stack())
    return plain


@torch.no_grad()
def unconstrained(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy in which nothing holds these weights any more: they are plain, with the values at which they were held."""
    changed, values = copy.deepcopy(model), {name: effective_weight(model, name) for name in names}
    stacks = _peel(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, stack in stacks.items():
        if name in values:
            owners[name][0][2].copy_(values[name])
        else:
            _attach(owners[name], stack)
    return changed


def finalize(model: nn.Module) -> nn.Module:
    """A copy in which constraints that are made for one training (with scores, probes) are what is left of them."""
    changed = copy.deepcopy(model)
    stacks = _peel(changed, lambda stack: stack.original)
    owners = _owners(changed)
    for name, stack in stacks.items():
        _attach(owners[name], tuple(c.settled() for c in stack))
    return changed


def refuse_constrained(model: nn.Module, edit: str) -> None:
    """Raise BadInput if something holds weights of the model, for edits that change their shapes or take them away."""
    held = constraints(model)
    if held:
        name, stack = next(iter(held.items()))
        raise BadInput(
            f"{edit}: {name} is held by {' and '.join(type(c).__name__ for c in stack)} ({len(held)} weights in all), "
            "which would not fit afterwards; put this step before those that constrain, or bake(model) first"
        )


def weights_of(
    model: nn.Module, layers: Iterable[str] = ("*",), ignore: Iterable[str] = (), *, every: bool = False
) -> dict[str, nn.Parameter]:
    """The raw weights of linear layers and convolutions, by name ("conv1.weight"), a shared weight once.

    layers, ignore: names or patterns (`body.*`) of layers. every: all other parameters of two or more dimensions too
    (of embeddings, recurrent layers, attention). The held value is what `held_value(model, name)` gives.
    Raises NoEffect for a pattern that matches nothing, or if nothing is left.
    """
    stacks = dict(_stacks(model))
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        for key in (*module._parameters, *_ours(module)) if every else ("weight",) if plain else ():
            full = f"{name}.{key}".removeprefix(".")
            raw: Any = stacks[full].original if full in stacks else module._parameters.get(key)
            if raw is not None and raw.ndim > 1 and all(raw is not other for other in found.values()):
                found[full] = raw
    names = {key: key.rpartition(".")[0] for key in found}
    wanted, unwanted = _matching(names, layers, "layers"), _matching(names, ignore, "ignore")
    left = {key: raw for key, raw in found.items() if key in wanted and key not in unwanted}
    if not left:
        raise NoEffect(f"layers={list(layers)} without ignore={list(ignore)} leaves none of {sorted(names.values())}")
    return left


def _matching(names: Mapping[str, str], patterns: Iterable[str], field: str) -> set[str]:
    hits: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        hit = {key for key, name in names.items() if fnmatch.fnmatchcase(name, pattern)}
        if not hit:
            raise NoEffect(f"{field}={pattern!r} matches none of the layers with weights: {sorted(names.values())}")
        hits |= hit
    return hits


@torch.no_grad()
def effective_weight(model: nn.Module, name: str) -> Tensor:
    """The value that a weight is held at ("conv1.weight"); the weight itself where nothing holds it. Detached."""
    owner, _, key = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(owner), key)
    return value.detach()
