"""Arguments of a wrong kind are refused where they enter, by what the annotations of a function say.

What an annotation says of numbers, texts, paths, truth values and collections is checked. Where it names other classes
(networks, tasks), the function itself says what it wants.
"""

import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from inspect import get_annotations, signature, unwrap
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from gossamer.errors import BadInput

P = ParamSpec("P")
R = TypeVar("R")
COLLECTIONS = (Callable, Collection, Iterable, Iterator, Mapping, Sequence)
WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    Callable: "a function",
    Mapping: "a mapping",
    type(None): "None",
}


# Wrappers of torch and Lightning that run the network inside, by their class; nothing of them is imported here.
WRAPPERS = {
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "AveragedModel"): "module",
    ("torch", "OptimizedModule"): "_orig_mod",
    ("lightning_fabric", "_FabricModule"): "_forward_module",
}


def unwrapped(value: Any) -> Any:
    """The network inside of `torch.compile`, `DataParallel`, `DistributedDataParallel` and the like; all else as it is.

    A wrapper runs the network for another purpose, and can be put around the result again. What it adds (compiled code,
    hooks, processes) cannot be traced, copied or exported.
    """
    while (inner := WRAPPERS.get((type(value).__module__.partition(".")[0], type(value).__name__))) is not None:
        value = getattr(value, inner)
    return value


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments of another kind than it is annotated with, by name, before it does any work.
    Networks are given to it without their wrappers.

    Args:
        function: with annotations.

    Returns:
        The same function, which raises BadInput.

    Example:
        >>> @checked_arguments
        ... def doubled(count: int, *, label: str = "") -> int:
        ...     return 2 * count
        >>> doubled(2)
        4
        >>> doubled("2")
        Traceback (most recent call last):
        gossamer.errors.BadInput: doubled: count = '2' must be a whole number
    """
    parameters = signature(function).parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(zip(parameters, args)) | kwargs
        for name, kinds in _kinds(function).items():
            if name in given and not _fits(given[name], kinds):
                raise _refusal(function.__name__, name, given[name], kinds)
        bare = {name: unwrapped(value) for name, value in kwargs.items()}
        return function(*map(unwrapped, args), **bare)

    return checked


def check_kinds(options: Any, label: str) -> None:
    """Raise `BadInput` for the first field of a dataclass that is of another kind than it is annotated with."""
    known: dict[str, tuple[Any, ...]] = _kinds(type(options))  # type: ignore[arg-type]  # classes are hashable
    for field in fields(options):
        if field.name in known and not _fits(getattr(options, field.name), known[field.name]):
            raise _refusal(label, field.name, getattr(options, field.name), known[field.name])


def _refusal(label: str, name: str, value: Any, kinds: tuple[Any, ...]) -> BadInput:
    words = " or ".join(dict.fromkeys(WORDS.get(kind, "several values") for kind in kinds))
    shown = repr(value) if isinstance(value, str | bool | Real | None) else f"a {type(value).__name__}"
    return BadInput(f"{label}: {name} = {shown} must be {words}")


@cache
def _kinds(of: Any) -> dict[str, tuple[Any, ...]]:
    """What is admitted, by name, where all of it is a kind that can be told."""
    owners = reversed(of.__mro__) if isinstance(of, type) else (unwrap(of),)
    hints = {name: hint for owner in owners for name, hint in get_annotations(owner).items()}
    found = {name: _alternatives(hint) for name, hint in hints.items() if name != "return"}
    return {name: kinds for name, kinds in found.items() if kinds}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The kinds of a hint; none where one of them is another class."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _alternatives(get_args(hint)[0])
    if origin is Literal:
        return ()  # its values are compared by name, with the nearest one
    if origin in (Union, types.UnionType):
        inner = [_alternatives(one) for one in get_args(hint)]
        return tuple(kind for kinds in inner for kind in kinds) if all(inner) else ()
    kind = origin or hint
    return (kind,) if kind in (bool, int, float, str, Path, type(None)) or kind in COLLECTIONS else ()


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    if any(kind in COLLECTIONS for kind in kinds) and not isinstance(value, str | bool | Real | PathLike | None):
        return True  # what else is no collection, the function knows better what was meant by it
    return any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    truth = isinstance(value, bool) or (type(value).__module__, type(value).__name__[:4]) == ("numpy", "bool")
    if kind is bool:
        return truth
    if kind in (int, float):
        return not truth and isinstance(value, Integral if kind is int else Real)
    return isinstance(value, PathLike if kind is Path else kind)
