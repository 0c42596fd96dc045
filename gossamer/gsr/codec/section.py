"""A section: several tensors coded as one payload, with statistics that run on from tensor to tensor."""

from collections.abc import Sequence

from gossamer.errors import unknown
from gossamer.gsr.codec import rans
from gossamer.gsr.codec.integers import Integers, IntegersHeader, IntMatrix, check_headers

# Contexts per decision; 0 for the coder that has none.
MODES = {"cm4": 4, "cm8": 8, "rans": 0}
# What a decoder needs whatever it decodes: counters for each context, tables of frequencies.
MODEL_BYTES, TABLE_BYTES = 4 * 8192 * 192, 1 << 20


def encode_section(tensors: Sequence[Integers], mode: str) -> bytes:
    """Code tensors as one payload. The headers (`Integers.header()`) and the mode are stored by the caller.

    Args:
        tensors: in the order in which they are decoded.
        mode: "cm4": smallest at good speed; "cm8": more contexts, half the speed; "rans": fast, needs no compiled code.

    Returns:
        The payload of the section.

    Raises:
        BadInput: unknown mode; a tensor that is not int32 of two dimensions; |q| above 2^15; trellis levels that break
            the state machine.

    Example:
        >>> import numpy as np
        >>> tensor = Integers(q=np.arange(-6, 6, dtype=np.int32).reshape(3, 4))
        >>> payload = encode_section([tensor], "rans")
        >>> bool((decode_section(payload, [tensor.header()], "rans")[0] == tensor.q).all())
        True
    """
    for tensor in tensors:
        tensor.header()
    if _contexts(mode):
        from gossamer.gsr.codec import (
            context_mixing,  # numba takes a quarter of a second to import, and rans does without
        )

        return context_mixing.encode(tensors, _contexts(mode))
    return rans.encode(tensors)


def decode_section(data: bytes, headers: Sequence[IntegersHeader], mode: str) -> list[IntMatrix]:
    """Decode what `encode_section` gave.

    Work and memory are bounded by the weights that the headers declare, whatever the payload is.

    Args:
        data: the payload of a section.
        headers: of its tensors, in their order.
        mode: that it was coded in.

    Returns:
        The integers of each tensor, int32 of shape (rows, columns).

    Raises:
        CorruptFile: for a payload that `encode_section` cannot have given.

    Example:
        >>> [q.shape for q in decode_section(b"", [IntegersHeader(rows=0, columns=3)], "rans")]
        [(0, 3)]
    """
    check_headers(headers)
    if _contexts(mode):
        from gossamer.gsr.codec import context_mixing

        return context_mixing.decode(data, headers, _contexts(mode))
    return rans.decode(data, headers)


def decoding_bytes(payload: int, headers: Sequence[IntegersHeader], mode: str) -> int:
    """The memory that decoding a payload of so many bytes takes at most, its result included; from what the headers
    declare. Nothing is allocated to find it."""
    weights, columns = sum(header.weights for header in headers), max((h.columns for h in headers), default=0)
    if contexts := _contexts(mode):
        return 2 * payload + contexts * MODEL_BYTES + 4 * weights + 32 * columns
    return 8 * payload + TABLE_BYTES + 24 * weights + 2 * sum(1 + h.rows + h.columns for h in headers)


def _contexts(mode: str) -> int:
    if mode not in MODES:
        raise unknown("coding mode", mode, MODES)
    return MODES[mode]
