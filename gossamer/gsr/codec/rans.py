"""Range asymmetric numeral systems (Duda 2013), many states side by side in numpy: fast without compiled code.

Weights are sorted into classes by the scales of their row and column, which are sent; each class has a table of 256
frequencies that sum to 4096. Symbol 255 announces a value that the table leaves out, which follows as a plain integer.
The weights of all tensors follow one another; weight i belongs to state i modulo the number of states.

Payload: length of the side information (4 bytes), side information (zlib), number of plain integers (4 bytes), plain
integers (2 bytes each, or 4 if magnitudes reach 2^15), final states (4 bytes each), words (2 bytes each), all
little-endian. Side information: scales of the tensors, low bytes of the tables, high bytes of the tables.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import CorruptFile
from gossamer.gsr.codec.integers import LARGEST, Integers, IntegersHeader, IntMatrix
from gossamer.gsr.codec.rans_classes import CLASSES, Scales, best_scales, read_side, write_side
from gossamer.gsr.codec.rans_tables import (
    BITS,
    ESCAPE,
    OFFSET,
    TOTAL,
    Frequencies,
    check_table,
    decoding_table,
    frequencies,
    symbols_of,
)

LOW = 1 << 16


def lanes(weights: int) -> int:
    """How many states code a section: a power of two, about one for 4096 weights, within 8..1024."""
    return 1 << min(max((weights >> 12).bit_length(), 3), 10)


def encode(tensors: Sequence[Integers]) -> bytes:
    """The payload of a section."""
    coded = [t for t in tensors if t.q.size]
    if not coded:
        return b""
    headers, matrices = [t.header() for t in coded], [_indices(t) for t in coded]
    parts = [symbols_of(q.reshape(-1)) for q in matrices]
    scales = [best_scales(q, s, h) for q, s, h in zip(matrices, parts, headers)]
    classes = np.concatenate([s.classes(h) for s, h in zip(scales, headers)])
    values, symbols = np.concatenate([q.reshape(-1) for q in matrices]), np.concatenate(parts)
    # One number for (class, symbol) indexes all tables at once, flat.
    joint = classes.astype(np.int32) * 256 + symbols
    counts = np.bincount(joint, minlength=CLASSES * 256).reshape(CLASSES, 256)
    tables = np.stack([frequencies(row) for row in counts])
    # What a class has no frequency for is escaped: its symbol is 255, and the value follows as a plain integer.
    escaped = tables.reshape(-1)[joint] == 0
    joint[escaped] |= ESCAPE
    plain = values[joint & 255 == ESCAPE].astype(_plain_type(headers)).tobytes()
    states, words = _encode_states(joint, tables)
    side = zlib.compress(write_side(scales) + _tables_to_bytes(tables), 9)
    sizes = [np.uint32(n).astype("<u4").tobytes() for n in (len(side), np.count_nonzero(joint & 255 == ESCAPE))]
    return b"".join([sizes[0], side, sizes[1], plain, states.astype("<u4").tobytes(), words.astype("<u2").tobytes()])


def decode(data: bytes, headers: Sequence[IntegersHeader]) -> list[IntMatrix]:
    """What `encode` was given. CorruptFile for anything that it cannot have written."""
    coded = [h for h in headers if h.weights]
    total = sum(h.weights for h in coded)
    if not total:
        if data:
            raise CorruptFile(f"a section without weights has {len(data)} bytes")
        return [np.zeros((h.rows, h.columns), np.int32) for h in headers]
    reader = _Reader(data)
    scales, tables = _read_side_information(reader.take(reader.number()), coded)
    plain = reader.array(_plain_type(coded), reader.number())
    states = reader.array(np.dtype("<u4"), lanes(total)).astype(np.uint32)
    words = reader.array(np.dtype("<u2"), reader.left // 2)
    if reader.left:
        raise CorruptFile("a section ends in half a word")
    classes = np.concatenate([s.classes(h) for s, h in zip(scales, coded)])
    check_table(tables, np.bincount(classes, minlength=CLASSES) > 0)
    symbols = _decode_states(classes, tables, states, words)
    values = symbols.astype(np.int32) - OFFSET
    escaped = symbols == ESCAPE
    if np.count_nonzero(escaped) != plain.size:
        raise CorruptFile(f"a section has {plain.size} plain integers where {np.count_nonzero(escaped)} are announced")
    if plain.size and int(np.abs(plain.astype(np.int64)).max()) > LARGEST:
        raise CorruptFile(f"a section has a magnitude above {LARGEST}, the largest that there is")
    values[escaped] = plain
    return _split(values, headers)


def _indices(tensor: Integers) -> IntMatrix:
    """What is coded: the integers themselves, or the indices of a trellis."""
    if not tensor.trellis:
        return tensor.q
    from gossamer.gsr.codec import trellis  # brings numba, which plain tensors do without

    return trellis.indices_of(tensor.q)[0]


def _plain_type(headers: Sequence[IntegersHeader]) -> np.dtype[np.int16] | np.dtype[np.int32]:
    return np.dtype("<i4") if max(h.largest for h in headers) >= LARGEST else np.dtype("<i2")


def _tables_to_bytes(tables: Frequencies) -> bytes:
    return (tables & 255).astype(np.uint8).tobytes() + (tables >> 8).astype(np.uint8).tobytes()


def _read_side_information(data: bytes, headers: Sequence[IntegersHeader]) -> tuple[list[Scales], Frequencies]:
    # What can be true bounds the unpacking: a small zlib stream can announce gigabytes.
    most = sum(1 + h.rows + h.columns for h in headers) + CLASSES * 512
    unpacker = zlib.decompressobj()
    try:
        side = unpacker.decompress(data, most)
    except zlib.error as error:
        raise CorruptFile(f"the side information of a section is damaged ({error})") from error
    scales, used = read_side(side, headers)
    if not unpacker.eof or unpacker.unused_data or len(side) != used + CLASSES * 512:
        raise CorruptFile(f"the side information of a section has {len(side)} bytes, not {used + CLASSES * 512}")
    low, high = np.frombuffer(side, np.uint8, offset=used).reshape(2, CLASSES, 256).astype(np.uint16)
    return scales, (low | high << 8).astype(np.uint16)


def _encode_states(joint: NDArray[np.int32], tables: Frequencies) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Final states and words, in the order in which the decoder reads them. joint: class x 256 + symbol."""
    # rANS: a state x takes in a symbol of frequency f out of 2^BITS as x -> (x // f) 2^BITS + first + x % f, which adds
    # log2(2^BITS / f) bits to it. It works backwards, since decoding gives back the last symbol first.
    frequency = tables.reshape(-1).astype(np.uint64)
    first = np.concatenate([np.zeros((CLASSES, 1), np.uint64), tables.cumsum(1, dtype=np.uint64)[:, :-1]], 1).reshape(
        -1
    )
    width = lanes(joint.size)
    states, words = np.full(width, LOW, np.uint64), []
    # All states take one step together, so numpy does the loop over states. The last step may be incomplete.
    for at in range((joint.size - 1) // width * width, -1, -width):
        step = joint[at : at + width]
        f, x = frequency[step], states[: step.size]
        # A state that would leave 32 bits first puts out its low 16 bits as a word.
        full = x >= f << np.uint64(32 - BITS)
        words.append(x[full] & np.uint64(0xFFFF))
        x = np.where(full, x >> np.uint64(16), x)
        # After the renormalization x < f 2^(32 - BITS), so the new state is below 2^32.
        quotient = x // f
        states[: step.size] = (quotient << np.uint64(BITS)) + (x - quotient * f) + first[step]
    # Words of the last step come first in time; reversed by steps, the decoder meets them in its own order.
    return states, np.concatenate(words[::-1])


def _decode_states(
    classes: NDArray[np.uint8], tables: Frequencies, states: NDArray[np.uint32], words: NDArray[np.uint16]
) -> NDArray[np.uint8]:
    table, width, count, at = decoding_table(tables), states.size, words.size, 0
    # Zeros behind: a damaged stream may ask for one step more than there is, and is refused after it.
    words = np.concatenate([words.astype(np.uint32), np.zeros(width, np.uint32)])
    found = (classes.astype(np.uint32)) << np.uint32(BITS)
    mask, bits, eight, twenty, low = (np.uint32(n) for n in (TOTAL - 1, BITS, 8, 20, LOW))
    for start in range(0, found.size, width):
        entry = found[start : start + width]
        x = states[: entry.size]
        # The low BITS of a state say which symbol it took in last: one table gives symbol, frequency and offset.
        entry += x & mask
        table.take(entry, out=entry, mode="clip")
        x >>= bits
        x *= (entry >> eight & mask) + np.uint32(1)
        x += entry >> twenty
        # Refill states below 2^16, in the order in which the encoder put the words out.
        short = np.flatnonzero(x < low)
        x[short] = x[short] << np.uint32(16) | words[at : at + short.size]
        at += short.size
        if at > count:
            raise CorruptFile("a section ends before its last weight")
    # The encoder started with LOW in every state: arriving there again is a checksum for free.
    if at < count or (states != LOW).any():
        raise CorruptFile("the words of a section do not end where its weights do")
    return (found & np.uint32(255)).astype(np.uint8)


def _split(values: NDArray[np.int32], headers: Sequence[IntegersHeader]) -> list[IntMatrix]:
    found, at = [], 0
    for header in headers:
        part = values[at : at + header.weights].reshape(header.rows, header.columns)
        if header.trellis:
            from gossamer.gsr.codec import trellis

            part = trellis.levels_of(part)
        if part.size and max(-int(part.min()), int(part.max())) > header.largest:
            raise CorruptFile(f"a section has a magnitude above {header.largest}, the largest that its header declares")
        found.append(part)
        at += header.weights
    return found


class _Reader:
    """Takes bytes from the front; CorruptFile past the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CorruptFile(f"a section ends {count - self.left} bytes too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def array(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)
