"""Context-mixing coder of a section: every weight as a few binary decisions, each predicted by several contexts."""

from collections.abc import Sequence

import numpy as np

from gossamer.errors import CorruptFile
from gossamer.gsr.codec import trellis
from gossamer.gsr.codec.integers import Integers, IntegersHeader, IntMatrix
from gossamer.gsr.codec.kernel import (
    AT,
    LOW,
    RANGE,
    VALUE,
    code_tensor,
    fresh_model,
)


def encode(tensors: Sequence[Integers], contexts: int) -> bytes:
    """The payload of a section."""
    for tensor in tensors:
        if tensor.trellis:
            # Levels that break the state machine would be coded as others: refused before anything is written.
            trellis.indices_of(tensor.q)
    # Two bytes a weight are enough for nearly all; else again with more room.
    room = 4096 + sum(2 * t.q.size for t in tensors)
    while (payload := _encode(tensors, contexts, room)) is None:
        room *= 8
    return payload


def _encode(tensors: Sequence[Integers], contexts: int, room: int) -> bytes | None:
    """The payload, or None if it is larger than `room` bytes."""
    stream, model = np.zeros(room, np.uint8), fresh_model(contexts)
    for tensor in tensors:
        h = tensor.header()
        if h.weights and h.largest:
            q = tensor.q.reshape(-1).copy()
            code_tensor(True, stream, q, h.columns, h.lag, h.largest, h.trellis, model)
    # The number may end anywhere in the last interval: as few bytes as identify it.
    low, span, at = int(model.coder[LOW]), int(model.coder[RANGE]), int(model.coder[AT])
    # The kernel counts the bytes that it had no room for, so that the caller knows to try again with more.
    if at > room:
        return None
    # The shortest number within [low, low + span), as if zeros followed.
    keep = next(n for n in range(5) if -(-low >> 32 - 8 * n) << 32 - 8 * n < low + span)
    tail = -(-low >> 32 - 8 * keep) << 32 - 8 * keep
    whole = (int.from_bytes(stream[:at].tobytes(), "big") << 32) + tail
    return whole.to_bytes(at + 4, "big")[: at + keep]


def decode(data: bytes, headers: Sequence[IntegersHeader], contexts: int) -> list[IntMatrix]:
    """What `encode` was given. CorruptFile for anything that it cannot have written, as far as can be told."""
    if data[:4] == b"\xff" * 4:
        raise CorruptFile("a section starts outside the range of its coder")
    stream, model = np.frombuffer(bytearray(data), np.uint8), fresh_model(contexts)
    model.coder[VALUE], model.coder[AT] = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4
    found = []
    for h in headers:
        # A tensor whose header says "largest: 0" is zeros and takes no bytes.
        q = np.zeros(h.weights, np.int32)
        if h.weights and h.largest:
            code_tensor(False, stream, q, h.columns, h.lag, h.largest, h.trellis, model)
            if np.abs(q).max() > h.largest:
                raise CorruptFile(f"a section has a magnitude above {h.largest}, the largest that its header declares")
        found.append(q.reshape(h.rows, h.columns))
    used = int(model.coder[AT])
    # The decoder reads four bytes ahead, and the encoder leaves out trailing zeros.
    if not used - 4 <= len(data) <= used:
        raise CorruptFile(f"a section has {len(data)} bytes where its weights take {used - 4} to {used}")
    return found
