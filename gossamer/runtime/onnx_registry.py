"""torch's table of what each of its operations is in ONNX, built once instead of in every export."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import torch

PRIVATE = "torch.onnx._internal.exporter._registration"
_LOCK = Lock()


@contextlib.contextmanager
def one_registry() -> Iterator[None]:
    """Within, `torch.onnx.export` takes the table of an earlier export.

    To build it takes torch almost half of the time of a small network's export: it reads the source of some thousand
    functions. Where another version of torch does without this private class, nothing changes.
    """
    kind = getattr(_module(), "ONNXRegistry", None)
    build = getattr(kind, "from_torchlib", None)
    names = getattr(torch._C, "_dispatch_get_all_op_names", None)
    if kind is None or build is None or names is None or isinstance(build, functools.partial):
        yield
        return
    own = vars(kind)["from_torchlib"]
    kind.from_torchlib = functools.partial(_kept, build, names)
    try:
        yield
    finally:
        kind.from_torchlib = own


def _module() -> Any:
    try:
        return importlib.import_module(PRIVATE)
    except ImportError:
        return None


_TABLES: dict[Any, Any] = {}


def _kept(build: Callable[..., Any], names: Callable[[], list[str]], *given: Any, **options: Any) -> Any:
    """A copy of the table for these options, which an export may add to."""
    # Operations that are registered later, such as torchvision's when it is imported, are not in an earlier table.
    key = (given, tuple(sorted(options.items())), len(names()))
    with _LOCK:
        if key not in _TABLES:
            _TABLES.clear()
            _TABLES[key] = build(*given, **options)
        table = _TABLES[key]
    copied = object.__new__(type(table))
    copied.__dict__.update(table.__dict__, functions={name: list(found) for name, found in table.functions.items()})
    return copied
