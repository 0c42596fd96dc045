"""Canonical Huffman codes with real bit streams: what Deep Compression's third stage uses (Huffman 1952).

For comparison rows; the file format itself codes fractional bits. Stream: smallest symbol (4 bytes), number of table
entries (4 bytes), a length for every symbol from the smallest on (1 byte, 255 for one that does not occur), the bits.
"""

import heapq
from itertools import count

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import BadInput, CorruptFile

Symbols = NDArray[np.int32]
ABSENT = 255
LARGEST_SPAN = 1 << 16


def huffman_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The length in bits of the code of each symbol, by how often it occurs; ABSENT for those that do not.

    A symbol that is alone gets 0 bits, so that the Kraft sum is 1 whenever there is a symbol.
    """
    lengths = np.full(counts.size, ABSENT, np.uint8)
    order = count()
    heap = [(int(n), next(order), [s]) for s, n in enumerate(counts) if n > 0]
    lengths[[s for _, _, (s,) in heap]] = 0
    heapq.heapify(heap)
    # Joining two subtrees puts all of their symbols one level deeper. The running number breaks ties in the heap, so
    # that lists are never compared and every machine finds the same code.
    while len(heap) > 1:
        (n, _, left), (m, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (n + m, next(order), left + right))
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> list[int]:
    """The code of each symbol: shorter codes first, equal lengths by symbol. 0 for absent ones."""
    codes, code, before = [0] * lengths.size, 0, 0
    present = [s for s in range(lengths.size) if lengths[s] != ABSENT]
    # Canonical: the lengths alone determine the codes, so only lengths are stored. Each code is the next number, with
    # zeros appended where codes get longer.
    for symbol in sorted(present, key=lambda s: (lengths[s], s)):
        code <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def coded_bits(values: Symbols) -> int:
    """Bits of the values in their Huffman code, without the table."""
    _, counts = np.unique(values, return_counts=True)
    return int((counts * huffman_lengths(counts.astype(np.int64))).sum())


def encode(values: Symbols) -> bytes:
    """Table and bits of integers. BadInput if they span more than 2^16 symbols."""
    if not values.size:
        return b""
    flat = values.reshape(-1).astype(np.int64)
    low, span = int(flat.min()), int(flat.max()) - int(flat.min()) + 1
    if span > LARGEST_SPAN:
        raise BadInput(f"symbols from {low} to {low + span - 1}; a Huffman table has at most {LARGEST_SPAN} entries")
    lengths = huffman_lengths(np.bincount(flat - low, minlength=span))
    codes = canonical_codes(lengths)
    texts = [format(code, f"0{n}b") if 0 < n < ABSENT else "" for code, n in zip(codes, lengths)]
    bits = np.frombuffer("".join([texts[s] for s in flat - low]).encode(), np.uint8) - ord("0")
    head = low.to_bytes(4, "little", signed=True) + span.to_bytes(4, "little")
    return head + lengths.tobytes() + np.packbits(bits).tobytes()


def decode(data: bytes, count: int) -> Symbols:
    """The `count` values that `encode` was given, flat. CorruptFile if they cannot be there."""
    if not count:
        return np.zeros(0, np.int32)
    low, span = int.from_bytes(data[:4], "little", signed=True), int.from_bytes(data[4:8], "little")
    lengths = np.frombuffer(data[8 : 8 + span], np.uint8)
    present = lengths[lengths != ABSENT].astype(np.float64)
    # A Kraft sum of 1: every sequence of bits is a sequence of codes, so decoding never gets stuck.
    if not 0 < span <= LARGEST_SPAN or lengths.size != span or (2.0**-present).sum() != 1:
        raise CorruptFile("a Huffman table is damaged")
    symbols = {(int(n), code): s for s, (n, code) in enumerate(zip(lengths, canonical_codes(lengths))) if n != ABSENT}
    # The only symbol has a code of no bits, so the stream is empty.
    if len(symbols) == 1:
        return np.full(count, low + next(iter(symbols.values())), np.int32)
    found, code, length = [], 0, 0
    for bit in np.unpackbits(np.frombuffer(data[8 + span :], np.uint8)).tolist():
        code, length = code << 1 | bit, length + 1
        if (length, code) in symbols:
            found.append(low + symbols[length, code])
            if len(found) == count:
                return np.array(found, np.int32)
            code, length = 0, 0
    raise CorruptFile(f"a Huffman stream ends after {len(found)} of {count} symbols")
