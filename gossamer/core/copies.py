"""Copies of networks, also of those that hold things which Python does not copy."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gossamer.errors import BadInput

STRUCTURE = ("_modules", "_parameters", "_buffers")


@contextmanager
def _without_warnings_of_torch() -> Iterator[None]:
    """A graph of `torch.export` is copied by torch with a class that torch itself calls deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        yield


@_without_warnings_of_torch()
def copy_network(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy a network deeply.

    What Python cannot copy (locks, open files, generators) is shared with the original. Tensors that a hook computes
    are plain in the copy. A `__deepcopy__` of a module is used as long as it gives a copy: the same modules, each a new
    one, with new tensors or with those of the memo. Where it builds the module anew, or gives the module itself, the
    attributes are copied instead.

    Args:
        model: stays as it is.
        memo: what stands for an object in the copy, by `id`, as in `copy.deepcopy`.

    Returns:
        The copy, of the same class.

    Raises:
        BadInput: the network cannot be copied at all, with the reason; it has parameters without data.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> copy_network(layer).weight is layer.weight
        False
    """
    check_network(model)
    given = dict(memo or {})
    with suppress(Exception):  # what refuses to be copied may raise anything
        found = copy.deepcopy(model, _empty_copies(model) | given)
        if _is_copy(found, model, given):
            return found
    try:
        return _copied_plainly(model, given)
    except Exception:
        own: dict[int, Any] = {id(m): m for m in model.modules()}
        own |= {id(t): t for t in tensors_of(model)}
        for module in model.modules():
            for key, value in vars(module).items():
                if key not in STRUCTURE:
                    given |= dict(_stubborn(value, own | given))
    try:
        return _copied_plainly(model, given)
    except Exception as error:
        raise BadInput(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def _empty_copies(model: nn.Module) -> dict[int, Any]:
    """Copies of the empty dicts and sets of every module, as a memo: most are the hooks that it does not have, and take
    Python half of the time of a copy."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in values if type(value) in (OrderedDict, dict, set) and not value}


def _is_copy(found: Any, model: nn.Module, memo: Mapping[int, Any]) -> bool:
    """Whether all modules and tensors of a network have one of their own in what its `__deepcopy__` gave."""
    if not isinstance(found, nn.Module):
        return False
    if any(isinstance(one, torch.jit.ScriptModule) for one in model.modules()):
        return found is not model  # its tensors are made when they are asked for
    pairs = [(dict(one.named_modules(remove_duplicate=False)) for one in (model, found))]
    pairs += [(dict(one.named_parameters(remove_duplicate=False)) for one in (model, found))]
    pairs += [(dict(one.named_buffers(remove_duplicate=False)) for one in (model, found))]
    return all(_correspond(mine, theirs, memo) for mine, theirs in pairs)


def _correspond(mine: Mapping[str, Any], theirs: Mapping[str, Any], memo: Mapping[int, Any]) -> bool:
    if mine.keys() != theirs.keys():
        return False
    # By name: a GraphModule makes a class of its own for every instance.
    alike = all(type(one).__qualname__ == type(theirs[name]).__qualname__ for name, one in mine.items())
    pairs = {(id(one), id(theirs[name])) for name, one in mine.items()}  # what is tied in one is in the other
    alike &= len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    own = (memo[id(one)] is theirs[name] if id(one) in memo else one is not theirs[name] for name, one in mine.items())
    return alike and all(own)


def _copied_plainly(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A deep copy in which no module of the user's copies itself: an empty one of its class gets its attributes."""
    known = dict(memo)
    own = [m for m in model.modules() if id(m) not in known and _copies_itself(m)]
    known |= {id(m): nn.Module.__new__(type(m)) for m in own}
    for module in own:
        vars(known[id(module)]).update(copy.deepcopy(vars(module), known))
    return copy.deepcopy(model, known)


def _copies_itself(module: nn.Module) -> bool:
    """Whether it has a `__deepcopy__`, perhaps by `__getattr__`, that is not torch's."""
    return getattr(module, "__deepcopy__", None) is not None and not type(module).__module__.startswith("torch.")


def tensors_of(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once, also of a network whose `parameters()` gives only those that it trains."""
    return [tensor for _, tensor in (*nn.Module.named_parameters(model), *nn.Module.named_buffers(model))]


def parameter_count(model: nn.Module) -> int:
    """Elements of all parameters, of those, too, that a `parameters()` of the network's own leaves out."""
    return sum(p.numel() for _, p in nn.Module.named_parameters(model))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict. What else modules put into theirs (`get_extra_state`) belongs to the class."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Put the tensors of a whole state into a network, which keeps what else its state has."""
    other = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    model.load_state_dict({**other, **tensors}, assign=assign)


def check_network(model: nn.Module) -> None:
    """Raise BadInput for what is no network, and for one without data: lazy layers that never ran, the device meta."""
    if not isinstance(model, nn.Module):
        what, hint = f"a {type(model).__name__}", ""
        if isinstance(model, Mapping):
            hint = "; weights alone do not say what the network computes: build it and call load_state_dict"
        elif isinstance(model, type):
            what, hint = f"the class {model.__name__}", f"; make one: {model.__name__}(...)"
        raise BadInput(f"the model must be a torch.nn.Module, not {what}{hint}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise BadInput(
                f"{type(model).__name__}: {name} of a lazy layer has no shape yet; run the network once on a batch, "
                "then train it or load its weights"
            )
        if tensor.is_meta:
            raise BadInput(
                f"{type(model).__name__}: {name} has no data (device meta); give it memory, "
                "model.to_empty(device='cpu'), and load its weights"
            )


def _stubborn(value: Any, known: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """Innermost parts of a value that cannot be copied, and what stands for each."""
    if id(value) in known or _copies(value, known):
        return
    if isinstance(value, Tensor):  # not a leaf of autograd
        yield id(value), value.detach().clone()
        return
    known = known | {id(value): value}  # for what refers to itself
    parts = list(value.values()) if isinstance(value, dict) else []
    parts += list(value) if isinstance(value, list | tuple | set) else []
    parts += list(vars(value).values()) if hasattr(value, "__dict__") and not isinstance(value, type) else []
    found = dict(item for part in parts for item in _stubborn(part, known))
    yield from found.items() if found else ((id(value), value),)


def _copies(value: Any, known: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(known))
    except Exception:
        return False
    return True
