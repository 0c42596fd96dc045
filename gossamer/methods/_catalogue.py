"""How methods are found: every public file of a scheme's folder is imported when a name is first asked for."""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from inspect import isabstract
from types import ModuleType
from typing import Any

from gossamer.methods._base import Method


@cache
def catalogue() -> dict[str, type[Method]]:
    """Every method by its name in a recipe, which is its file's path: `prune.channels`.

    Returns:
        The classes, names in order.

    Example:
        >>> catalogue()["prune.magnitude"].__name__
        'Magnitude'
    """
    return dict(sorted((method.name(), method) for scheme in schemes() for method in methods_of(scheme).values()))


@cache
def schemes() -> tuple[str, ...]:
    """The folders below `methods`: `prune`, `share`, ..."""
    package = importlib.import_module("gossamer.methods")
    return tuple(sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg))


@cache
def methods_of(scheme: str) -> dict[str, type[Method]]:
    """The methods of one folder by the names of their classes."""
    package = importlib.import_module(f"gossamer.methods.{scheme}")
    found: dict[str, type[Method]] = {}
    for file in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        if not file.name.rpartition(".")[2].startswith("_"):
            found |= _defined_in(importlib.import_module(file.name))
    return dict(sorted(found.items()))


def _defined_in(module: ModuleType) -> dict[str, type[Method]]:
    return {
        value.__name__: value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and not isabstract(value)
        and value.__module__ == module.__name__
    }


def offered(scheme: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a scheme's package: its methods by name, so that a new file is all that a new
    method needs."""

    def get(name: str) -> Any:
        if name.startswith("_"):  # asked by Python itself while the package is being imported
            raise AttributeError(f"module 'gossamer.methods.{scheme}' has no attribute {name!r}")
        methods = methods_of(scheme)
        if name not in methods:
            raise AttributeError(f"'gossamer.methods.{scheme}' has no method {name!r}; it has {', '.join(methods)}")
        return methods[name]

    return get, lambda: list(methods_of(scheme))
