"""A section: several tensors coded as one payload, with statistics that run on from tensor to tensor."""

from collections.abc import Sequence
from types import ModuleType

from gossamer.deploy.coder import rans
from gossamer.deploy.coder.integers import Header, Integers, IntMatrix, check_headers
from gossamer.errors import unknown

MODES = ("cm4", "cm8", "rans")


def encode_section(tensors: Sequence[Integers], mode: str) -> bytes:
    """The payload of a section. The headers (`Integers.header()`) and the mode are stored by the caller.

    cm4: smallest at good speed. cm8: more contexts, half the speed. rans: fast, needs no compiled code.
    BadInput: unknown mode; a tensor that is not int32 of two dimensions; |q| above 2^15; trellis levels that break
    the state machine.
    """
    for tensor in tensors:
        tensor.header()
    if mode == "rans":
        return rans.encode(tensors)
    return _context_mixing(mode).encode(tensors, int(mode[2:]))


def decode_section(data: bytes, headers: Sequence[Header], mode: str) -> list[IntMatrix]:
    """What `encode_section` was given, int32 of shape (rows, columns) each. CorruptFile if that cannot be.

    Work and memory are bounded by the weights that the headers declare, whatever the payload is.
    """
    check_headers(headers)
    if mode == "rans":
        return rans.decode(data, headers)
    return _context_mixing(mode).decode(data, headers, int(mode[2:]))


def _context_mixing(mode: str) -> ModuleType:
    if mode not in MODES:
        raise unknown("coding mode", mode, MODES)
    from gossamer.deploy.coder import cm  # numba takes a quarter of a second to import, and rans does without

    return cm
