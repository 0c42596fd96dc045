"""Copies of networks, also of those that hold things which Python does not copy."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gossamer.errors import BadInput

STRUCTURE = ("_modules", "_parameters", "_buffers")


def copy_network(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy a network deeply.

    What Python cannot copy (locks, open files, generators) is shared with the original. Tensors that a hook computes
    are plain in the copy.

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
    try:
        return copy.deepcopy(model, dict(given))
    except Exception:  # what refuses to be copied may raise anything
        own: dict[int, Any] = {id(m): m for m in model.modules()}
        own |= {id(t): t for t in (*model.parameters(), *model.buffers())}
        for module in model.modules():
            for key, value in vars(module).items():
                if key not in STRUCTURE:
                    given |= dict(_stubborn(value, own | given))
    try:
        return copy.deepcopy(model, given)
    except Exception as error:
        raise BadInput(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


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
