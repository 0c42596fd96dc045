"""The user's own code by name: `package.module:name`."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from gossamer.errors import BadInput, own_error, unknown


def is_reference(text: str) -> bool:
    """Whether the text is `package.module:name`; a path with a colon in it is one only if it does not exist."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def refuse_code_file(text: str) -> None:
    """Raise BadInput for a file of Python code (`net.py`, `net.py:make`), with the way to name what it makes."""
    path, _, name = text.partition(":")
    if path.endswith(".py"):
        file = Path(path)
        where = "" if file.parent == Path() else f", run in {file.parent} or with it in PYTHONPATH"
        raise BadInput(f"{text}: a file of Python code is named as a module: {file.stem}:{name or 'NAME'}{where}")


def resolve(text: str) -> Any:
    """What `package.module:name` stands for; modules of the current folder come first."""
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name):
            raise BadInput(f"{text}: no module {error.name!r} in {here} or in the environment") from error
        raise BadInput(f"{text}: importing {module_name} failed with its own error: {own_error(error)}") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise unknown(f"name in module {module_name}", name, public)
    return getattr(module, name)


def call(factory: Any, text: str) -> Any:
    """Call the user's factory without arguments; its error with our context."""
    if not callable(factory):
        return factory
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise BadInput(f"{text} must be callable without arguments: {error}") from error
    try:
        return factory()
    except Exception as error:
        raise BadInput(f"calling {text} failed with its own error: {own_error(error)}") from error
