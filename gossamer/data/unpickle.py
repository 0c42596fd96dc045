"""Reading the pickles of the CIFAR archives without running what is in them.

The unpickler knows three names, and gives stand-ins for them: numpy arrays of plain numbers are rebuilt here from
their bytes. Every other name, objects included, is refused.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from gossamer.errors import CorruptFile, first_line

KINDS = "biuf"
PLAIN = (int, float, str, bytes, type(None))


def load_arrays(raw: bytes, where: str) -> dict[str, Any]:
    """The dictionary of a pickle: its values are numpy arrays, numbers, strings, bytes, and lists of numbers, strings
    and bytes.

    Keys are strings, also where Python 2 wrote bytes. Anything else is a `CorruptFile`.
    """
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        if isinstance(content, dict):
            seen: set[int] = set()
            return {
                key.decode("latin1") if isinstance(key, bytes) else str(key): _plain(value, seen)
                for key, value in content.items()
            }
    # A damaged or hostile pickle makes the machine that reads it raise nearly anything.
    except Exception as error:
        raise CorruptFile(f"{where} is not a pickle of plain arrays, or it is damaged: {first_line(error)}") from error
    raise CorruptFile(f"{where} must hold a dictionary, it holds a {type(content).__name__}")


def _plain(value: Any, seen: set[int]) -> Any:
    """The value, an array for its stand-in; an error where it is anything else. seen: lists that are known to be good,
    since many values may be the same one."""
    if type(value) is _Array:
        return value.array
    inside = [value] if type(value) is not list else value if id(value) not in seen else []
    for one in inside:
        if not isinstance(one, PLAIN):
            raise pickle.UnpicklingError(f"it holds a {type(one).__name__}")
    seen.add(id(value))
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _Reconstruct()
            case "numpy", "ndarray":
                return "ndarray"  # an argument of _reconstruct, never called
            case "numpy", "dtype":
                return _DTypes()
            case "_codecs", "encode":
                return _Encode()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, only numpy arrays are admitted")


class _Callable:
    """Something that a pickle may call, but not change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _Reconstruct(_Callable):
    __slots__ = ()

    def __call__(self, *_: Any) -> "_Array":
        return _Array()


class _DTypes(_Callable):
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> "_DType":
        return _DType(code.decode("latin1") if isinstance(code, bytes) else code)


class _Encode(_Callable):
    """How Python 3 writes bytes where it must stay readable for Python 2."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
            raise pickle.UnpicklingError("it encodes something other than bytes")
        return text.encode("latin1")


class _DType:
    __slots__ = ("dtype",)

    def __init__(self, code: Any) -> None:
        # A short code such as "u1" names a plain number; records, objects and subarrays need more.
        if not isinstance(code, str) or len(code) > 3 or code[:1] not in KINDS:
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, only numbers are admitted")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    __slots__ = ("array",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        dtype = kind.dtype
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} has {len(raw)} bytes")
        self.array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
