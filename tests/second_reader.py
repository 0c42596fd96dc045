"""A second reader of `.gsr` files, written from docs/format.md alone: plain and slow, nothing of gossamer in it.

Tensors come as dtype, shape and bytes; the graph is run operation by operation by name, as the page says. The coded
sections are those of docs/coder.md (`second_decoder.py`).
"""

import json
import lzma
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import second_decoder as second
from second_graph import DTYPES, PAGE, Bytes, Graph

DICTIONARY = bytes.fromhex(
    "".join(re.findall(r"^    ([0-9a-f]+)$", PAGE.partition("## The preset dictionary")[2], re.M))
)
VALUES, RAW, CM4, CM8, RANS = range(5)
SIZES = [4, 2, 2, 8, 1, 2, 4, 8, 1, 1, 8, 16, 1, 1]
LEAVES = [
    "", "weight", "weight bias", "weight bias running_mean running_var",
    "weight bias running_mean running_var num_batches_tracked", "running_mean running_var",
    "running_mean running_var num_batches_tracked", "bias",
]  # fmt: skip


@dataclass
class Section:
    kind: int
    length: int
    pieces: int = 0
    digest: int = 0
    crc: int = 0
    payload: bytes = b""


@dataclass
class Entry:
    """One tensor of the table. made: rule, seed, numbers, indices and keep. split: top, minus, shift, cut, count."""

    coding: int
    dtype: int = 0
    width: int = 0
    shape: tuple[int, ...] = ()
    lag: int = 0
    part: int = 0
    largest: list[int] = field(default_factory=list)
    entries: int = 0
    zero: int = 0
    same: int = 0
    made: tuple[int, int, int, int, int] = (0, 0, 0, -1, -1)
    split: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    packed: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) >= 2 else 1

    @property
    def columns(self) -> int:
        return self.elements // self.rows if self.rows else 0

    @property
    def floats(self) -> int:
        whole = 4 <= self.dtype <= 11
        return {2: 1, 3: self.elements, 4: int(not whole), 5: self.rows, 6: self.entries, 7: 1}.get(self.coding, 0)

    @property
    def float_bytes(self) -> int:
        if self.coding >= 9:
            _, _, shift, cut, count = self.split
            return self.packed if self.coding == 10 else math.ceil(count * (shift - cut) / 8)
        return self.floats * [4, 2, 2, SIZES[self.dtype]][self.width]


@dataclass(frozen=True)
class Stored:
    """A decoded tensor: its elements as little-endian bytes, row by row."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def names_of(data: Bytes) -> tuple[list[str], set[str]]:
    names: list[str] = []
    buffers: set[str] = set()
    path: list[str] = []
    for _ in range(data.varint()):
        code = data.u8()
        leaves, shared, new = code & 7, code >> 3 & 7, code >> 6
        shared += data.varint() if shared == 7 else 0
        new += data.varint() if new == 3 else 0
        path = path[:shared] + [data.text() for _ in range(new)]
        if leaves == 0:
            names.append(".".join([*path, data.text()]))
            if data.u8() == 1:
                buffers.add(names[-1])
        for leaf in LEAVES[leaves].split():
            names.append(".".join([*path, leaf]))
            if leaf in ("running_mean", "running_var", "num_batches_tracked"):
                buffers.add(names[-1])
    return names, buffers


def entry_of(data: Bytes, number: int) -> Entry:
    code = data.u8()
    entry = Entry(coding=code & 15, width=code >> 5 & 3)
    if entry.coding == 0:
        entry.same = number - 1 - data.varint()
        return entry
    entry.dtype = data.u8() if code & 16 else 0
    entry.shape = tuple(data.varint() for _ in range(data.varint()))
    if code & 128:
        m = data.varint()
        entry.lag = m >> 1
        entry.part = data.varint() if m % 2 else 0
    if 4 <= entry.coding <= 7 or entry.coding == 9:
        parts = math.ceil(entry.rows / entry.part) if entry.part else 1
        entry.largest = [data.varint() for _ in range(parts)]
    if entry.coding == 6:
        entry.entries, entry.zero = data.varint(), data.varint()
    if entry.coding == 8:
        rule = data.u8()
        seed = data.varint() if rule == 0 else 0
        numbers = data.varint()
        indices = data.varint() if rule > 0 else -1
        entry.made = (rule, seed, numbers, indices, data.varint() - 1)
    if entry.coding == 9:
        top, minus = divmod(data.varint(), 2)
        entry.split = (top, minus, data.u8(), data.u8(), sum(data.varint() for _ in entry.largest))
    if entry.coding == 10:
        entry.packed = data.varint()
    return entry


def is_alone(entry: Entry) -> bool:
    return entry.coding == 3 and entry.float_bytes >= 65536


class File:
    def __init__(self, data: bytes) -> None:
        whole = Bytes(data)
        if whole.take(4) not in (b"GSR\x01", b"GSR\x02"):
            raise ValueError("no file of version 1 or 2")
        packed_length, length = whole.varint(), whole.varint()
        unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
        header = unpacker.decompress(whole.take(packed_length))
        if len(header) != length or not unpacker.eof:
            raise ValueError("the header has another length")
        self.sections = [self.section(whole) for _ in range(whole.varint())]
        if zlib.crc32(data[: whole.at]) != whole.u32():
            raise ValueError("the checksum of the header is wrong")
        for section in self.sections:
            if section.kind == RAW:
                whole.take(-whole.at % 64)
            section.payload = whole.take(section.length)
            if zlib.crc32(section.payload) != section.crc:
                raise ValueError("the checksum of a section is wrong")
        if whole.at != len(data):
            raise ValueError("something follows the sections")
        self.header = Bytes(header)
        self.names, self.buffers = names_of(self.header)
        self.named = len(self.names)
        unnamed = self.header.varint()
        self.names += [f"_constants.{self.named + i}" for i in range(unnamed)]
        self.entries = [entry_of(self.header, number) for number in range(len(self.names))]
        more = self.header.u8()
        self.graph = Graph(self.header) if more & 1 else None
        self.structure = json.loads(self.header.text()) if more & 2 else None
        if self.header.at != len(header):
            raise ValueError("something follows the graph")
        parts = [part for e in self.entries if e.coding == 8 for part in e.made[2:] if part >= 0]
        self.states = min(parts, default=len(self.names))
        self.floats = list(self.place_floats())
        self.integers = self.decode_sections()
        self.tensors = [self.tensor(number) for number in range(len(self.names))]

    @staticmethod
    def section(data: Bytes) -> Section:
        section = Section(kind=data.u8(), length=data.varint())
        if section.kind >= CM4:
            section.pieces, section.digest = data.varint(), data.u32()
        section.crc = data.u32()
        return section

    def place_floats(self) -> Iterator[bytes]:
        alone = iter([s.payload for s in self.sections if s.kind == RAW])
        values = Bytes(b"".join(s.payload for s in self.sections if s.kind == VALUES))
        for entry in self.entries:
            yield next(alone) if is_alone(entry) else values.take(entry.float_bytes)

    def decode_sections(self) -> list[list[int]]:
        """The integers of each tensor, row by row."""
        pieces = []
        for number, entry in enumerate(self.entries):
            for at, largest in enumerate(entry.largest):
                rows = min(entry.part or entry.rows, entry.rows - at * entry.part)
                shape = {"rows": rows, "columns": entry.columns, "lag": entry.lag}
                pieces.append((number, second.Piece(**shape, largest=largest, trellis=entry.coding == 7)))
        found: list[list[int]] = [[] for _ in self.entries]
        for section in (s for s in self.sections if s.kind >= CM4):
            count = section.pieces or len(pieces)
            mine, pieces = pieces[:count], pieces[count:]
            told = [piece for _, piece in mine]
            if section.kind == RANS:
                matrices = second.decode_rans(section.payload, told)
            else:
                matrices = second.decode_cm(section.payload, told, 4 if section.kind == CM4 else 8)
            flat = [[q for row in matrix for q in row] for matrix in matrices]
            if zlib.crc32(b"".join(struct.pack(f"<{len(q)}i", *q) for q in flat)) != section.digest:
                raise ValueError("the digest of a section is wrong")
            for (number, _), q in zip(mine, flat):
                found[number] += q
        if pieces:
            raise ValueError("integers are missing")
        return found

    def tensor(self, number: int) -> Stored:
        entry = self.entries[number]
        if entry.coding == 0:
            return self.tensor(entry.same)
        if entry.coding == 1:
            data = bytes(entry.elements * SIZES[entry.dtype])
        elif entry.width == 3:
            data = self.floats[number]
        elif entry.coding == 9:
            data = as_dtype(split(self.integers[number], self.floats[number], entry.split), entry.dtype)
        elif entry.coding == 10:
            data = unpacked(self.floats[number], entry.elements * SIZES[entry.dtype])
        elif entry.coding == 8:
            data = self.made(entry).astype("<f4").tobytes()
        elif entry.coding == 4 and 4 <= entry.dtype <= 11:
            data = np.array(self.integers[number]).astype(DTYPES[entry.dtype]).tobytes()
        else:
            data = as_dtype(self.values(number, entry), entry.dtype)
        return Stored(DTYPES[entry.dtype], entry.shape, data)

    def values(self, number: int, entry: Entry) -> Any:
        """float32, one for each element."""
        floats, q = float32(self.floats[number], entry.width), self.integers[number]
        with np.errstate(all="ignore"):
            match entry.coding:
                case 2:
                    return np.repeat(floats, entry.elements)
                case 3:
                    return floats
                case 4 | 7:
                    return np.array([np.float32(one) * floats[0] for one in q], np.float32)
                case 5:
                    return np.array([np.float32(x) * floats[i // entry.columns] for i, x in enumerate(q)], np.float32)
                case _:
                    return np.array([floats[one + entry.zero] for one in q], np.float32)

    def made(self, entry: Entry) -> Any:
        rule, seed, numbers, indices, keep = entry.made
        books = np.frombuffer(self.tensor(numbers).data, "<f4").reshape(self.tensor(numbers).shape)
        if rule == 0:
            found = np.array([hashed(books, seed, i) for i in range(entry.elements)], np.float32)
        else:
            stored = self.tensor(indices)
            who = np.frombuffer(stored.data, stored.dtype).reshape(stored.shape)
            lines = [self.line(books, who[:, r], rule, entry.shape[1]) for r in range(who.shape[1])]
            # ordered by o, then by the place within the kernel
            spread = np.array(lines, np.float32).reshape(entry.shape[0], *entry.shape[2:], entry.shape[1])
            found = np.moveaxis(spread, -1, 1).reshape(-1)
        if keep >= 0:
            found = np.where(np.frombuffer(self.tensor(keep).data, bool), found, np.float32(0))
        return found

    @staticmethod
    def line(books: Any, who: Any, rule: int, inputs: int) -> list[Any]:
        if rule == 1:
            return [x for m, k in enumerate(who) for x in books[m][k]][:inputs]
        total = list(books[0][who[0]])
        for t in range(1, len(books)):
            total = [np.float32(a + b) for a, b in zip(total, books[t][who[t]])]
        return total


def hashed(numbers: Any, seed: int, i: int) -> Any:
    most = (1 << 64) - 1
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & most
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & most
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & most
    z ^= z >> 31
    number = numbers[((z >> 32) * len(numbers)) >> 32]
    return -number if z % 2 else number


def split(integers: list[int], lower: bytes, told: tuple[int, int, int, int, int]) -> Any:
    top, minus, shift, cut, count = told
    at, width, bits = 0, shift - cut, []
    for q in integers:
        if q == 0 or (q == -1 and minus):
            bits.append(0x80000000 if q else 0)
            continue
        upper = top + 1 + minus - abs(q)
        if not 0 <= upper <= top:
            raise ValueError("no upper part")
        some = int.from_bytes(lower[at // 8 : (at + width) // 8 + 1], "little") >> at % 8 & (1 << width) - 1
        bits.append((q < 0) << 31 | upper << shift | some << cut)
        at += width
    if at != count * width or (at % 8 and lower[-1] >> at % 8):
        raise ValueError("the lower bits do not fit")
    return np.array(bits, "<u4").view("<f4")


def unpacked(stream: bytes, size: int) -> bytes:
    dictionary = 1 << 12
    while dictionary < min(size, 1 << 26):
        dictionary *= 2
    data = lzma.decompress(stream, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}])
    if len(data) != size:
        raise ValueError("a packed tensor has another length")
    return data


def float32(data: bytes, width: int) -> Any:
    if width == 2:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, ["<f4", "<f2"][width]).astype(np.float32)


def as_dtype(values: Any, dtype: int) -> bytes:
    """float32 values in a dtype, ties to even; not in those of 8 bits, which this reader only knows as their bytes."""
    with np.errstate(all="ignore"):
        if DTYPES[dtype] == "bfloat16":
            bits = values.view("<u4")
            rounded = bits + 0x7FFF + (bits >> 16 & 1)
            return bytes((np.where(np.isnan(values), bits, rounded) >> 16).astype("<u2").tobytes())
        return bytes(values.astype(DTYPES[dtype]).tobytes())
