"""Where the library of operators is: in the package, or built at its first use."""

import tempfile
from functools import lru_cache
from pathlib import Path

from gossamer.core.progress import LOG, Logged
from gossamer.errors import MissingExtra
from gossamer.runtime.operators.build import LIBRARY, SOURCE, build_library, source_digest

DOMAIN = "gossamer"  # of the operators in an ONNX file
OPERATORS = frozenset(("SignProduct",))


@lru_cache(maxsize=1)
def find_library() -> Path:
    """The library: of the package, where the wheel was built with a C++ compiler, else built here.

    Only this file is ever loaded, never one that stands beside a network.

    Raises:
        MissingExtra: it is not in the package, and there is no C++ compiler, or it fails.
    """
    path = SOURCE / LIBRARY  # beside no module of Python, which would be taken for one
    if path.is_file() and source_digest().encode() in path.read_bytes():
        return path
    try:
        with Logged().busy("building the operators for ONNX Runtime"):
            return _built(path)
    except OSError as error:
        raise MissingExtra(
            f"the operators for ONNX Runtime are not in this package, and cannot be built: {error}; the runtime "
            "'binary' runs such networks without them"
        ) from error


def _built(path: Path) -> Path:
    try:
        build_library(path)
    except PermissionError:
        LOG.info("%s cannot be written: the operators are built for this process alone", path.parent)
        path = Path(tempfile.mkdtemp(prefix="gossamer-operators-")) / LIBRARY
        build_library(path)
    return path
