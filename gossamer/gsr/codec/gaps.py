"""Sparse weights as Deep Compression stores them: gaps with filler zeros, then Huffman (Han 2016, sections 2 to 4)."""

from dataclasses import dataclass

import numpy as np

from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.codec import huffman
from gossamer.gsr.codec.huffman import Symbols


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """A row of the paper's tables. density: share of weights that are not zero; the others in bits per stored weight.

    code, index: at fixed length. coded_code, coded_index: after Huffman coding, tables not counted. A filler is a
    stored weight, as in the paper. stored: how many there are. rate: bits after Huffman coding / (32 x all weights).
    """

    density: float
    code: int
    index: int
    coded_code: float
    coded_index: float
    stored: int
    rate: float


def split_gaps(q: Symbols, bits: int) -> tuple[Symbols, Symbols]:
    """Gaps - 1 (0..2^bits - 1) and values of the stored weights of a flat array, row by row.

    A gap is the distance to the stored weight before (to position -1 for the first). Where it is above 2^bits, a
    filler with the value 0 is stored 2^bits further on.
    """
    if not 1 <= bits <= 16:
        raise BadInput(f"gaps of {bits} bits; 1 to 16 are possible")
    flat = q.reshape(-1)
    at = np.flatnonzero(flat)
    distances = np.diff(at, prepend=-1) - 1
    # A distance of k 2^bits + r takes k fillers, then the weight with the gap r.
    fillers = distances >> bits
    # Place of every weight in the list with the fillers; all places between are fillers with the largest gap.
    ends = np.cumsum(fillers + 1) - 1
    gaps = np.full(ends[-1] + 1 if at.size else 0, (1 << bits) - 1, np.int32)
    values = np.zeros_like(gaps)
    gaps[ends], values[ends] = distances & (1 << bits) - 1, flat[at]
    return gaps, values


def join_gaps(gaps: Symbols, values: Symbols, size: int) -> Symbols:
    """The flat array of `size` weights that `split_gaps` was given. CorruptFile if a weight lies outside of it."""
    # int64: damaged gaps may add up to more than 2^31.
    at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if gaps.size != values.size or (gaps < 0).any() or (at.size and at[-1] >= size):
        raise CorruptFile(f"gaps lead outside of the {size} weights")
    found = np.zeros(size, np.int32)
    found[at] = values
    return found


def encode(q: Symbols, bits: int) -> bytes:
    """Huffman streams of gaps and values: number of stored weights, length of the first stream (4 bytes each), both."""
    gaps, values = split_gaps(q, bits)
    first, second = huffman.encode(gaps), huffman.encode(values)
    return gaps.size.to_bytes(4, "little") + len(first).to_bytes(4, "little") + first + second


def decode(data: bytes, size: int) -> Symbols:
    """The flat array of `size` weights that `encode` was given."""
    stored, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if stored > size or len(data) < 8 + length:
        raise CorruptFile(f"{stored} stored weights in {len(data)} bytes for a layer of {size} weights")
    gaps, values = huffman.decode(data[8 : 8 + length], stored), huffman.decode(data[8 + length :], stored)
    return join_gaps(gaps, values, size)


def layer_bits(q: Symbols, bits: int) -> LayerBits:
    """The row of a layer in the paper's tables; the paper has 5 bits for fully connected layers, 8 for convolutions."""
    if not q.size:
        raise BadInput("a layer without weights has no density")
    gaps, values = split_gaps(q, bits)
    stored = gaps.size
    coded_code, coded_index = huffman.coded_bits(values), huffman.coded_bits(gaps)
    return LayerBits(
        density=float(np.count_nonzero(q) / q.size),
        code=max(int(np.unique(values).size) - 1, 0).bit_length(),
        index=bits,
        coded_code=coded_code / max(stored, 1),
        coded_index=coded_index / max(stored, 1),
        stored=stored,
        rate=(coded_code + coded_index) / (32 * q.size),
    )
