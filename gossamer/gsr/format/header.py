"""The header of a `.gsr`: names, shapes and codings of the tensors, and the graph; its limits."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.float_grid import LARGEST
from gossamer.gsr.format.generated import Rule, misfit
from gossamer.gsr.format.graph import DTYPES, Graph, read_graph, write_graph
from gossamer.gsr.format.ledger import Ledger, Limit
from gossamer.gsr.format.names import MOST_NAMES, read_names, write_names
from gossamer.gsr.format.safety import unsafe
from gossamer.gsr.format.split import FloatSplit
from gossamer.gsr.format.stored_values import (
    MOST_CODES,
    WIDTH_BYTES,
    Coding,
    GeneratedEntry,
    Stored,
    Width,
    matrix_shape,
)
from gossamer.gsr.format.stream import Reader, Writer, damaged

MOST_DIMENSIONS, MOST_SIZE, MOST_HEADER, MOST_LAG = 32, 1 << 40, 1 << 24, 1 << 15
MOST_SEED = (1 << 63) - 1
MOST_STRUCTURE = 1 << 22  # bytes of its text
MOST_ELEMENTS = 1 << 50  # of all dimensions that are not 0: their strides have to be numbers of 64 bits
SECTION_WEIGHTS = 1 << 19  # about so many integers are coded together; a writer may choose others
LEAST_SUMS = 1 << 14
CODED = (Coding.GRID, Coding.ROWS, Coding.CODEBOOK, Coding.TRELLIS, Coding.SPLIT)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as the header tells of it. count: of its floats, or of the bytes of PACKED. part: its integers are
    coded so many rows at a time, 0 for all at once. largest: magnitude of the integers of each part."""

    coding: Coding
    dtype: torch.dtype
    shape: tuple[int, ...]
    width: Width = Width.FLOAT32
    count: int = 0
    largest: tuple[int, ...] = ()
    part: int = 0
    lag: int = 0
    zero: int = 0
    same: int = 0
    generated: GeneratedEntry | None = None
    split: FloatSplit | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of the tensor in memory."""
        return self.elements * self.dtype.itemsize

    @property
    def float_bytes(self) -> int:
        """Of what is stored for it besides its integers."""
        if self.split:
            return self.split.bytes
        if self.coding == Coding.PACKED:
            return self.count
        return self.count * (self.dtype.itemsize if self.width == Width.OWN else WIDTH_BYTES[self.width])


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """Everything of a file but the values of its tensors.

    Args:
        names: of all tensors; after the first `named`, constants of the graph, then the parts of generated tensors.
        named: number of tensors of the state_dict.
        buffers: names of those that are buffers.
        entries: one for each tensor.
        graph: None for weights alone.
        structure: what a network was changed by, for its class; may be empty.
    """

    names: list[str]
    named: int
    buffers: set[str]
    entries: list[TensorEntry]
    graph: Graph | None
    structure: str = ""

    @property
    def shown(self) -> int:
        """How many tensors there are without the parts of others."""
        return shown(self.entries)


def shown(entries: Sequence[TensorEntry]) -> int:
    """How many tensors come before the first part."""
    return min((part for entry in entries if entry.generated for part in entry.generated.parts), default=len(entries))


def constant_names(named: int, count: int) -> list[str]:
    """Names for the constants of a graph; a loaded network that is saved again has such names already, with lower
    numbers."""
    return [f"_constants.{number}" for number in range(named, named + count)]


def entry_of(stored: Stored) -> TensorEntry:
    """The header's part of a tensor that is about to be written."""
    q, part = stored.q, 0
    largest: tuple[int, ...] = ()
    if q is not None:
        rows, columns = q.shape
        # The states of a trellis run through the whole tensor.
        if rows > 1 and q.size > 2 * SECTION_WEIGHTS and stored.coding != Coding.TRELLIS:
            part = max(1, SECTION_WEIGHTS // columns)
        largest = tuple(int(abs(q[at : at + (part or rows)]).max()) for at in range(0, rows, part or rows))
    count = len(stored.floats) if stored.coding == Coding.PACKED else stored.count
    split = None if stored.split is None or q is None else stored.split.in_parts(q, part or len(q))
    return TensorEntry(
        coding=stored.coding, dtype=stored.dtype, shape=stored.shape, width=stored.width, count=count,
        largest=largest, part=part, lag=stored.lag, zero=stored.zero, same=stored.same, generated=stored.generated,
        split=split,
    )  # fmt: skip


def write_header(header: FileHeader) -> tuple[bytes, int]:
    """The packed header and its length before packing."""
    writer = Writer()
    write_names(header.names[: header.named], header.buffers, writer)
    writer.varint(len(header.entries) - header.named)
    for number, entry in enumerate(header.entries):
        _write_entry(entry, number, writer)
    writer.byte((header.graph is not None) + 2 * bool(header.structure))
    if header.graph is not None:
        write_graph(header.graph, writer)
    if header.structure:
        writer.text(header.structure)
    plain = bytes(writer.data)
    tried = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy, zdict=DICTIONARY)
        tried.append(packer.compress(plain) + packer.flush())
    return min(tried, key=len), len(plain)


def read_header(packed: bytes, length: int, ledger: Ledger) -> FileHeader:
    """The header of a file. Nothing is allocated that the limits do not allow."""
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        plain = unpacker.decompress(packed, length + 1)
    except zlib.error as error:
        raise damaged("header", str(error)) from error
    if len(plain) != length or not unpacker.eof or unpacker.unused_data:
        raise damaged("header", "its packed and unpacked lengths disagree")
    reader = Reader(plain, "header", ledger)
    names, buffers = read_names(reader)
    named, unnamed = len(names), reader.varint(MOST_NAMES)
    ledger.charge(Limit.COUNT, unnamed)
    names += constant_names(named, unnamed)
    if len(set(names)) != len(names):
        reader.fail("two tensors have one name")
    entries: list[TensorEntry] = []
    for number in range(len(names)):
        entry = _read_entry(reader, number, entries)
        ledger.charge(Limit.TENSORS, 0 if entry.coding == Coding.SAME else entry.bytes)
        ledger.charge(Limit.INTEGERS, entry.elements if entry.coding in CODED else 0)
        entries.append(entry)
    for number, entry in enumerate(entries):
        if entry.generated and (why := _generated_misfit(entry, entry.generated, named, entries)):
            reader.fail(f"tensor {number}: {why}")
        if entry.generated and entry.generated.rule == Rule.RESIDUAL:
            # The tensor is gone through once for each codebook, and even a small one takes a moment.
            ledger.charge(Limit.SUMS, entries[entry.generated.numbers].shape[0] * max(entry.elements, LEAST_SUMS))
    more = reader.byte()
    if more > 3:
        reader.fail(f"what follows the tensors is {more}, which is unknown")
    graph = read_graph(reader, shown(entries)) if more & 1 else None
    structure = reader.text(MOST_STRUCTURE) if more & 2 else ""
    reader.end()
    if graph is not None and (reason := unsafe(graph)):
        reader.fail(reason)
    return FileHeader(names=names, named=named, buffers=buffers, entries=entries, graph=graph, structure=structure)


def _write_entry(entry: TensorEntry, number: int, writer: Writer) -> None:
    """One byte: 4 bits coding, 1 bit other dtype than float32, 2 bits width, 1 bit lag or parts; then the rest."""
    other = entry.dtype != torch.float32 and entry.coding != Coding.SAME
    writer.byte(entry.coding | other << 4 | entry.width << 5 | bool(entry.lag or entry.part) << 7)
    if entry.coding == Coding.SAME:
        writer.varint(number - 1 - entry.same)
        return
    if other:
        writer.byte(DTYPES.index(entry.dtype))
    writer.varint(len(entry.shape))
    for size in entry.shape:
        writer.varint(size)
    if entry.lag or entry.part:
        writer.varint(2 * entry.lag + bool(entry.part))
    if entry.part:
        writer.varint(entry.part)
    for largest in entry.largest:
        writer.varint(largest)
    if entry.coding == Coding.CODEBOOK:
        writer.varint(entry.count)
        writer.varint(entry.zero)
    if entry.generated:
        _write_generated(entry.generated, writer)
    if entry.split:
        writer.varint(2 * entry.split.top + entry.split.minus)
        writer.byte(entry.split.shift)
        writer.byte(entry.split.cut)
        for count in entry.split.counts:
            writer.varint(count)
    if entry.coding == Coding.PACKED:
        writer.varint(entry.count)


def _write_generated(generated: GeneratedEntry, writer: Writer) -> None:
    writer.byte(generated.rule)
    if generated.rule == Rule.HASHED:
        writer.varint(generated.seed)
    writer.varint(generated.numbers)
    if generated.indices is not None:
        writer.varint(generated.indices)
    writer.varint(0 if generated.keep is None else generated.keep + 1)


def _read_generated(reader: Reader) -> GeneratedEntry:
    rule = reader.byte()
    if rule > Rule.RESIDUAL:
        reader.fail(f"a tensor is generated by rule {rule}, which is unknown")
    hashed = rule == Rule.HASHED
    seed = reader.varint(MOST_SEED) if hashed else 0
    numbers = reader.varint(MOST_NAMES)
    indices = None if hashed else reader.varint(MOST_NAMES)
    keep = reader.varint(MOST_NAMES) - 1
    return GeneratedEntry(rule=Rule(rule), seed=seed, numbers=numbers, indices=indices, keep=None if keep < 0 else keep)


def _read_split(reader: Reader, parts: int) -> FloatSplit:
    top, minus = divmod(reader.varint(2 * LARGEST - 1), 2)
    shift, cut = reader.byte(), reader.byte()
    counts = tuple(reader.varint(MOST_SIZE) for _ in range(parts))
    return FloatSplit(top=top, minus=bool(minus), shift=shift, cut=cut, counts=counts)


def _generated_misfit(entry: TensorEntry, generated: GeneratedEntry, named: int, entries: Sequence[TensorEntry]) -> str:
    """What is wrong with the tensors that another one is generated from, or an empty text."""
    if any(not named <= part < len(entries) or entries[part].generated for part in generated.parts):
        return "it is generated from tensors that are none of its parts"
    numbers = entries[generated.numbers]
    indices = None if generated.indices is None else entries[generated.indices]
    kept = None if generated.keep is None else entries[generated.keep]
    if numbers.dtype != torch.float32 or not numbers.elements:
        return "it is generated from no float32 numbers"
    if indices is not None and indices.dtype not in (torch.uint8, torch.int16, torch.int32):
        return f"its indices are {indices.dtype}"
    if kept is not None and (kept.dtype != torch.bool or kept.shape != entry.shape):
        return "its mask does not fit"
    return misfit(generated.rule, entry.shape, numbers.shape, None if indices is None else indices.shape)


def _read_entry(reader: Reader, number: int, before: list[TensorEntry]) -> TensorEntry:
    code = reader.byte()
    if code & 15 > max(Coding):
        reader.fail(f"tensor {number} has coding {code & 15}, which is unknown")
    coding, width = Coding(code & 15), Width(code >> 5 & 3)
    if coding == Coding.SAME:
        same = number - 1 - reader.varint(MOST_NAMES)
        if same < 0 or before[same].coding == Coding.SAME or code != 0:
            reader.fail(f"tensor {number} is said to be the same as one that does not exist")
        return TensorEntry(coding=coding, dtype=before[same].dtype, shape=before[same].shape, same=same)
    dtype = torch.float32
    if code & 16:
        index = reader.byte()
        if not 0 < index < len(DTYPES):
            reader.fail(f"tensor {number} has dtype {index}, which is unknown")
        dtype = DTYPES[index]
    shape = tuple(reader.varint(MOST_SIZE) for _ in range(reader.varint(MOST_DIMENSIONS)))
    if math.prod(size for size in shape if size) > MOST_ELEMENTS:
        reader.fail(f"tensor {number} has shape {shape}: larger than a file of any size may hold")
    lag, part = divmod(reader.varint(2 * MOST_LAG + 1), 2) if code & 128 else (0, 0)
    rows = matrix_shape(shape)[0]
    if part:
        part = reader.varint(MOST_SIZE)
        if part >= rows or coding == Coding.TRELLIS or part == 0:
            reader.fail(f"tensor {number} is coded in parts of {part} rows of {rows}")
    parts = (-(-rows // part) if part else 1) if coding in CODED else 0
    reader.ledger.charge(Limit.PIECES, parts)
    largest = tuple(reader.varint(LARGEST) for _ in range(parts))
    count, zero = _counts(reader, coding, dtype, shape)
    entry = TensorEntry(
        coding=coding, dtype=dtype, shape=shape, width=width, count=count, largest=largest, part=part, lag=lag,
        zero=zero, generated=_read_generated(reader) if coding == Coding.GENERATED else None,
        split=_read_split(reader, parts) if coding == Coding.SPLIT else None,
    )  # fmt: skip
    if why := _fault(entry):
        reader.fail(f"tensor {number}: {why}")
    return entry


def _counts(reader: Reader, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
    match coding:
        case Coding.RAW:
            return math.prod(shape), 0
        case Coding.CONSTANT | Coding.TRELLIS:
            return 1, 0
        case Coding.GRID:
            return int(dtype.is_floating_point), 0
        case Coding.ROWS:
            return matrix_shape(shape)[0], 0
        case Coding.CODEBOOK:
            count = reader.varint(MOST_CODES)
            return count, reader.varint(MOST_CODES)
        case Coding.PACKED:
            return reader.varint(MOST_SIZE), 0
        case _:
            return 0, 0


def _fault(entry: TensorEntry) -> str:
    """What contradicts itself in an entry, or an empty text."""
    if entry.coding != Coding.ZEROS and entry.elements == 0:
        return "an empty tensor holds values"
    whole = not entry.dtype.is_floating_point
    if whole and entry.coding not in (Coding.ZEROS, Coding.GRID, Coding.RAW, Coding.PACKED):
        return "whole numbers are stored as floats"
    if entry.coding == Coding.RAW and whole and entry.width != Width.OWN:
        return "whole numbers are stored as floats"
    if entry.coding != Coding.RAW and entry.width == Width.OWN:
        return "its floats cannot have that width"
    if entry.lag > (matrix_shape(entry.shape)[1] if entry.coding in CODED else 0):
        return f"a lag of {entry.lag} columns"
    if entry.generated and (entry.dtype != torch.float32 or entry.width):
        return "it is generated from float32 numbers, but is none itself"
    if entry.part and entry.coding not in CODED:
        return "it has parts, but no integers"
    if entry.split and (why := entry.split.reason(entry.elements)):
        return why
    if entry.coding in (Coding.SPLIT, Coding.PACKED) and entry.width:
        return "its floats have no width"
    if entry.coding == Coding.CODEBOOK and not 0 <= entry.zero < entry.count:
        return f"entry {entry.zero} of a codebook of {entry.count}"
    return ""
