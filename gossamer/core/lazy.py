"""Packages whose names are imported when they are first used, so that optional libraries are asked for only then."""

from collections.abc import Callable, Mapping
from typing import Any

from gossamer.errors import require


def lazily(package: str, homes: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        homes: by module below the package, the names that the package offers of it.

    Raises:
        AttributeError: from `__getattr__`, for a name that is not offered.
        MissingExtra: from `__getattr__`, where an optional library is not installed; the message says which extra.
    """
    module_of = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(require(module_of[name]), name)

    return get, lambda: sorted(module_of)
