# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""The compiled part of the runtime `binary`; one file, because numba's cache looks at the file's date only.

Vectors of bytes are a type of numba here, and their operations are written as LLVM's own, which mean the same on every
processor: the population count of bytes becomes VPOPCNTB (AVX-512), CNT (NEON), or a table look-up (AVX2).

A vector of weights holds `LANES` outputs with four bytes each, which are 32 of their weights. It meets the same four
bytes of an input in every lane. So the counts of an output stand in its own lane, and nothing is added across lanes.
"""

from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

from gossamer.gsr.codec.jit import compiled, inlined

# Registers of 64 bytes are used where they count bits themselves.
FEATURES = llvm.get_host_cpu_features()
VECTOR = 64 if FEATURES.get("avx512bitalg") else 32
WORD = 4  # bytes of an input that are spread over the lanes
LANES = VECTOR // WORD
MOST_ADDED = 31  # counts of 8 bits that fit a byte together
BITS = 8 * WORD
I8, I32, FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
BYTES_IR, INTS_IR = ir.VectorType(I8, VECTOR), ir.VectorType(I32, LANES)


def counts_bits() -> bool:
    """Whether this processor has instructions for it; x86-64 since 2008, ARM since the 64-bit ones."""
    return bool(FEATURES.get("popcnt", True))


class Layer(NamedTuple):
    """A binary layer as the kernels take it. Outputs are padded to whole vectors of lanes in every group.

    weights: (vectors of outputs, words, VECTOR), bytes. reads: (words,), where the words of an input lie behind its
    first byte. group_bytes: from the input of a group to that of the next. vectors: of outputs, in a group. full:
    (kinds of places, outputs), what a product is at each kind of place where no bit differs. least: (outputs,), the
    smallest product that gives a 1. flips: bits that turn, of all outputs. scales: (outputs,).
    """

    weights: NDArray[np.uint8]
    reads: NDArray[np.int64]
    group_bytes: int
    vectors: int
    full: NDArray[np.int32]
    least: NDArray[np.int32]
    flips: NDArray[np.uint8]
    scales: NDArray[np.float32]


class Places(NamedTuple):
    """Of every output place: the first byte that it reads, its kind, and the first byte or number that it writes."""

    reads: NDArray[np.int64]
    kinds: NDArray[np.int64]
    writes: NDArray[np.int64]


class Vector(types.Type):
    """A vector in a register."""


BYTES, INTS = Vector("Bytes"), Vector("Ints")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is itself."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, BYTES_IR if kind is BYTES else INTS_IR)


def _pointer(context, builder, array, value, index, kind):
    """Where a vector of this kind lies in an array, from an element on."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _all(kind, number):
    return ir.Constant(kind, [number] * kind.count)


def _spread(builder, number, kind):
    """One number in all lanes."""
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, empty, _all(ir.VectorType(I32, kind.count), 0))


@intrinsic
def no_bytes(typing):
    """A vector of bytes that are zero."""
    return BYTES(), lambda context, builder, signature, args: _all(BYTES_IR, 0)


@intrinsic
def no_counts(typing):
    """A vector of integers that are zero."""
    return INTS(), lambda context, builder, signature, args: _all(INTS_IR, 0)


@intrinsic
def weights_at(typing, array, index):
    """A vector of bytes."""

    def code(context, builder, signature, args):
        return builder.load(_pointer(context, builder, array, args[0], args[1], BYTES_IR), align=1)

    return BYTES(array, types.intp), code


@intrinsic
def read_at(typing, array, index):
    """A number of an array; unlike array[index] it asks not whether the index is below zero."""

    def code(context, builder, signature, args):
        return builder.load(_pointer(context, builder, array, args[0], args[1], ir.IntType(64)), align=8)

    return types.int64(array, types.intp), code


@intrinsic
def different(typing, weights, array, index):
    """How many bits of each byte differ between weights and the word at an index of an array."""

    def code(context, builder, signature, args):
        word = builder.load(_pointer(context, builder, array, args[1], args[2], I32), align=1)
        bits = builder.xor(args[0], builder.bitcast(_spread(builder, word, INTS_IR), BYTES_IR))
        kind = ir.FunctionType(BYTES_IR, [BYTES_IR])
        count = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctpop.v{VECTOR}i8")
        return builder.call(count, [bits])

    return BYTES(BYTES, array, types.intp), code


@intrinsic
def plus_bytes(typing, one, other):
    """The sum of two vectors of bytes."""
    return BYTES(BYTES, BYTES), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def widened_counts(typing, total, counts):
    """The total, with the four counts of each lane added."""

    def code(context, builder, signature, args):
        def shifted(x, bits):
            return builder.lshr(x, _all(INTS_IR, bits))

        def masked(x, mask):
            return builder.and_(x, _all(INTS_IR, mask))

        x = builder.bitcast(args[1], INTS_IR)
        x = builder.add(masked(x, 0x00FF00FF), masked(shifted(x, 8), 0x00FF00FF))
        x = builder.add(masked(x, 0xFFFF), shifted(x, 16))
        return builder.add(args[0], x)

    return INTS(INTS, BYTES), code


def _product(context, builder, layer, value, row, index, counts):
    """Of each lane: what it is where no bit differs, less two for each bit that does."""
    full = value(builder, "full")
    kind = layer["full"]
    columns = builder.extract_value(context.make_array(kind)(context, builder, full).shape, 1)
    at = builder.add(builder.mul(row, columns), index)
    start = builder.load(_pointer(context, builder, kind, full, at, INTS_IR), align=4)
    return builder.sub(start, builder.add(counts, counts))


def _fields(context, layer, value):
    """The types of a layer's fields, and what extracts one by its name."""
    names = dict(zip(layer.fields, layer.types))
    return names, lambda builder, name: builder.extract_value(value, layer.fields.index(name))


@intrinsic
def write(typing, out, place, layer, kind, index, counts):
    """Write a vector of outputs: bits into an array of bytes, scaled products into one of floats.

    place: byte or number of the first output. kind: of the place. index: of the vector's first output.
    """

    def code(context, builder, signature, args):
        target, start, fields, row, at, differing = args
        names = dict(zip(layer.fields, layer.types))

        def read(name, vector, where):
            found = builder.extract_value(fields, layer.fields.index(name))
            return builder.load(_pointer(context, builder, names[name], found, where, vector), align=1)

        array = context.make_array(names["full"])
        full = array(context, builder, builder.extract_value(fields, layer.fields.index("full")))
        columns = builder.extract_value(full.shape, 1)
        product = read("full", INTS_IR, builder.add(builder.mul(row, columns), at))
        product = builder.sub(product, builder.add(differing, differing))  # a bit that differs turns 1 into -1
        if out.dtype == types.uint8:
            some = ir.IntType(LANES)
            byte = builder.lshr(at, ir.Constant(at.type, 3))
            bits = builder.bitcast(builder.icmp_signed(">=", product, read("least", INTS_IR, at)), some)
            result, to = builder.xor(bits, read("flips", some, byte)), builder.add(start, byte)
        else:
            floats = ir.VectorType(FLOAT, LANES)
            result = builder.fmul(builder.sitofp(product, floats), read("scales", floats, at))
            to = builder.add(start, at)
        builder.store(result, _pointer(context, builder, out, target, to, result.type), align=1)
        return context.get_dummy_value()

    return types.void(out, types.intp, layer, types.intp, types.intp, INTS), code


@intrinsic
def write_signs(typing, out, place, x, index, signs, limits, channel):
    """Write a word of bits: whether sign x number >= limit, of 32 numbers in a row."""

    def code(context, builder, signature, args):
        floats = ir.VectorType(FLOAT, BITS)

        def read(kind, value, at):
            return builder.load(_pointer(context, builder, kind, value, at, floats), align=4)

        numbers = builder.fmul(read(x, args[2], args[3]), read(signs, args[4], args[6]))
        bits = builder.bitcast(builder.fcmp_ordered(">=", numbers, read(limits, args[5], args[6])), I32)
        builder.store(bits, _pointer(context, builder, out, args[0], args[1], I32), align=1)
        return context.get_dummy_value()

    return types.void(out, types.intp, x, types.intp, signs, limits, types.intp), code


@intrinsic
def with_bit(typing, bits, x, index, sign, limit, bit):
    """Bytes with one bit set where sign x number >= limit, of as many numbers in a row as there are bytes."""

    def code(context, builder, signature, args):
        floats = ir.VectorType(FLOAT, VECTOR)
        numbers = builder.load(_pointer(context, builder, x, args[1], args[2], floats), align=4)
        numbers = builder.fmul(numbers, _spread(builder, args[3], floats))
        found = builder.fcmp_ordered(">=", numbers, _spread(builder, args[4], floats))
        set_bit = builder.shl(builder.zext(found, BYTES_IR), _spread(builder, builder.trunc(args[5], I8), BYTES_IR))
        return builder.or_(args[0], set_bit)

    return BYTES(BYTES, x, types.intp, types.float32, types.float32, types.intp), code


@intrinsic
def write_vector(typing, out, index, values):
    """Write a vector of bytes."""

    def code(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, out, args[0], args[1], BYTES_IR), align=1)
        return context.get_dummy_value()

    return types.void(out, types.intp, BYTES), code


@inlined
def counts_of_four(x, starts, reads, weights, at):
    """How many bits differ, of four places and one vector of outputs."""
    b0, b1, b2, b3 = starts
    n0, n1, n2, n3 = no_counts(), no_counts(), no_counts(), no_counts()
    for begin in range(0, reads.size, MOST_ADDED):
        c0, c1, c2, c3 = no_bytes(), no_bytes(), no_bytes(), no_bytes()
        for k in range(begin, min(reads.size, begin + MOST_ADDED)):
            w, read = weights_at(weights, at + k * VECTOR), read_at(reads, k)
            c0 = plus_bytes(c0, different(w, x, b0 + read))
            c1 = plus_bytes(c1, different(w, x, b1 + read))
            c2 = plus_bytes(c2, different(w, x, b2 + read))
            c3 = plus_bytes(c3, different(w, x, b3 + read))
        n0, n1, n2, n3 = widened_counts(n0, c0), widened_counts(n1, c1), widened_counts(n2, c2), widened_counts(n3, c3)
    return n0, n1, n2, n3


@inlined
def counts_of_one(x, start, reads, weights, at):
    """How many bits differ, of one place and one vector of outputs."""
    n = no_counts()
    for begin in range(0, reads.size, MOST_ADDED):
        c = no_bytes()
        for k in range(begin, min(reads.size, begin + MOST_ADDED)):
            c = plus_bytes(c, different(weights_at(weights, at + k * VECTOR), x, start + read_at(reads, k)))
        n = widened_counts(n, c)
    return n


@compiled
def sign_products(x, layer, places, span, out):
    """Write the products of a span: places from, to, and vectors of outputs from, to. Places go by fours, so that a
    vector of weights is read once for four."""
    first, last, begin, end = span
    reads, kinds, writes = places
    size = layer.reads.size * VECTOR
    p = first
    while p + 4 <= last:
        for v in range(begin, end):
            group = v // layer.vectors * layer.group_bytes
            starts = (reads[p] + group, reads[p + 1] + group, reads[p + 2] + group, reads[p + 3] + group)
            n0, n1, n2, n3 = counts_of_four(x, starts, layer.reads, layer.weights, v * size)
            write(out, writes[p], layer, kinds[p], v * LANES, n0)
            write(out, writes[p + 1], layer, kinds[p + 1], v * LANES, n1)
            write(out, writes[p + 2], layer, kinds[p + 2], v * LANES, n2)
            write(out, writes[p + 3], layer, kinds[p + 3], v * LANES, n3)
        p += 4
    while p < last:
        for v in range(begin, end):
            group = v // layer.vectors * layer.group_bytes
            n = counts_of_one(x, reads[p] + group, layer.reads, layer.weights, v * size)
            write(out, writes[p], layer, kinds[p], v * LANES, n)
        p += 1


class Limits(NamedTuple):
    """When a number of a channel becomes a 1: where signs x number >= limits. NaN never does."""

    signs: NDArray[np.float32]
    limits: NDArray[np.float32]


@compiled
def pack_rows(x, limits, group, places, span, out):
    """Pack numbers whose channels lie side by side, x (places, channels), in groups of so many channels."""
    words = (group + BITS - 1) // BITS
    channels = x.shape[1]
    for p in range(span[0], span[1]):
        for first in range(0, channels, group):
            to = places[p] + first // group * words * WORD
            whole = group // BITS
            for k in range(whole):
                c = first + k * BITS
                write_signs(out, to + k * WORD, x, p * channels + c, limits.signs, limits.limits, c)
            if whole < words:
                word = 0
                for j in range(group - whole * BITS):
                    c = first + whole * BITS + j
                    word |= (x[p, c] * limits.signs[c] >= limits.limits[c]) << j
                for b in range(WORD):
                    out[to + whole * WORD + b] = word >> (8 * b) & 255


@compiled
def pack_planes(x, limits, group, places, span, out):
    """Pack numbers whose places lie side by side, x (samples, channels, places of a sample); span: of samples."""
    _, channels, size = x.shape
    words = (group + BITS - 1) // BITS
    found = np.empty(VECTOR, np.uint8)
    for n in range(span[0], span[1]):
        for first in range(0, channels, 8):  # groups are multiples of 8 channels, or there is one
            inside = first % group
            offset = first // group * words * WORD + inside // 8
            many = min(8, channels - first)
            p = 0
            while p < size:
                if p + VECTOR <= size:
                    bits = no_bytes()
                    for j in range(many):
                        c = first + j
                        at = (n * channels + c) * size + p
                        bits = with_bit(bits, x, at, limits.signs[c], limits.limits[c], j)
                    write_vector(found, 0, bits)
                    some = VECTOR
                else:
                    some = size - p
                    for k in range(some):
                        byte = 0
                        for j in range(many):
                            c = first + j
                            byte |= (x[n, c, p + k] * limits.signs[c] >= limits.limits[c]) << j
                        found[k] = byte
                for k in range(some):
                    out[places[n * size + p + k] + offset] = found[k]
                p += some


@compiled
def pool_bits(x, reads, windows, flips, span, out, writes):
    """Write bits that are 1 where a bit of a window is 1, then flipped. windows: (places, most): which of `reads`, the
    first bytes of the places of x; -1: none."""
    size = flips.size
    for p in range(span[0], span[1]):
        to = writes[p]
        for b in range(size):
            out[to + b] = 0
        for k in range(windows.shape[1]):
            if windows[p, k] >= 0:
                at = reads[windows[p, k]]
                for b in range(size):
                    out[to + b] |= x[at + b]
        for b in range(size):
            out[to + b] ^= flips[b]
