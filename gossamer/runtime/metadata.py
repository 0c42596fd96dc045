"""Metadata of `.onnx` and `.pt2` files: its keys, and where a file says that its outputs stand.

The keys are a part of the format: they are never to be changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossamer.core.outputs import is_mark
from gossamer.errors import CorruptFile

STRUCTURE = "gossamer.outputs"  # where the outputs stand in what the network gives
PREPROCESSING = "gossamer.preprocessing"  # how images become inputs, and the names of the classes
MOST_STRUCTURE = 1 << 20  # characters of what says where the outputs stand
MOST_NESTED = 16
EXPORTERS = ("pkg.", "onnx.")  # keys that begin so are notes of torch and of ONNX Runtime's quantizer


@dataclass(frozen=True)
class Interface:
    """What programs that use an ONNX file rely on. A network that was read from a file is exported with it.

    Attributes:
        inputs, outputs: names.
        free: dimensions of inputs that are free, with their names, by the number of the input.
        metadata: of the file, such as the characters of a text recognizer.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    free: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_structure(text: str, outputs: int, path: Path) -> Any:
    """Where the outputs stand in what the network gave, from the metadata of a file."""
    try:
        found = json.loads(text) if len(text) <= MOST_STRUCTURE else None
        if found is not None and says_places(found, outputs, 0):
            return found
        if found is None and text.strip() == "null":
            return None
    except (ValueError, RecursionError):
        pass
    raise CorruptFile(f"{path}: its metadata about outputs is not what gossamer writes: {text[:60]!r}")


def says_places(found: Any, outputs: int, depth: int = 0) -> bool:
    """Whether this says where so many outputs stand, as `gossamer.core.outputs.places` does."""
    if depth > MOST_NESTED:
        return False
    if is_mark(found):
        return says_places(found[1], outputs, depth + 1)
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return all(item is None or says_places(item, outputs, depth + 1) for item in inner)
    return type(found) is int and 0 <= found < outputs
