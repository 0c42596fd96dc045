"""The sections of a `.gsr` file: written, found again, and checked before anything in them is believed."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from gossamer.errors import CorruptFile
from gossamer.gsr.codec import integers as coder
from gossamer.gsr.codec.section import decode_section, decoding_bytes, encode_section
from gossamer.gsr.format.header import (
    MOST_HEADER,
    SECTION_WEIGHTS,
    FileHeader,
    TensorEntry,
    entry_of,
    read_header,
    write_header,
)
from gossamer.gsr.format.ledger import Ledger
from gossamer.gsr.format.packed import work
from gossamer.gsr.format.stored_values import Codes, Coding, Stored, matrix_shape
from gossamer.gsr.format.stream import Reader, Writer, damaged

MAGIC, VERSION = b"GSR", 2
ALIGNMENT, OWN_SECTION = 64, 1 << 16  # raw tensors from so many bytes on lie alone, at a multiple of so many bytes
MOST_SECTIONS, MOST_BYTES = 1 << 20, 1 << 48
MODES = {"fast": ("rans",), "default": ("cm4",), "max": ("cm8", "rans")}
GENERATED_BYTES = 32  # for work on each element of a row of a tensor that is generated from others
SMALL = 1 << 22  # up to so many integers "default" takes the smaller of the two: less than two seconds


class Kind(IntEnum):
    """What a section holds; the numbers are those of the format."""

    VALUES = 0  # steps, codebooks and small raw tensors
    RAW = 1  # one large raw tensor
    CM4 = 2
    CM8 = 3
    RANS = 4


CODERS = {Kind.CM4: "cm4", Kind.CM8: "cm8", Kind.RANS: "rans"}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Where a section lies. pieces: how many it holds, 0 for all that are left; digest: CRC-32 of their integers."""

    kind: Kind
    length: int
    crc: int
    pieces: int = 0
    digest: int = 0
    start: int = 0

    @property
    def name(self) -> str:
        return "values" if self.kind == Kind.VALUES else f"{self.kind.name.lower()} at byte {self.start}"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor, or some of its rows, in a coded section. largest: of the integers' magnitudes."""

    tensor: int
    first: int
    rows: int
    columns: int
    largest: int


def build_file(header: FileHeader, stored: Sequence[Stored], effort: str) -> bytes:
    """The bytes of a file."""
    packed, length = write_header(header)
    small = b"".join(s.floats for s in stored if not alone(entry_of(s)))
    parts: list[tuple[Section, bytes | memoryview]] = []
    if small:
        parts.append((Section(kind=Kind.VALUES, length=len(small), crc=zlib.crc32(small)), small))
    parts += [
        (Section(kind=Kind.RAW, length=len(s.floats), crc=zlib.crc32(s.floats)), s.floats)
        for s in stored
        if alone(entry_of(s))
    ]
    parts += _coded(stored, effort)
    writer = Writer()
    writer.data += MAGIC + bytes([VERSION if header.structure else 1])  # all that version 2 adds
    writer.varint(len(packed))
    writer.varint(length)
    writer.data += packed
    writer.varint(len(parts))
    for section, _ in parts:
        writer.byte(section.kind)
        writer.varint(section.length)
        if section.kind in CODERS:
            writer.varint(section.pieces)
            writer.data += struct.pack("<I", section.digest)
        writer.data += struct.pack("<I", section.crc)
    writer.data += struct.pack("<I", zlib.crc32(bytes(writer.data)))
    chunks: list[bytes | memoryview] = [bytes(writer.data)]
    at = len(writer.data)
    for section, payload in parts:
        padding = -at % ALIGNMENT if section.kind == Kind.RAW else 0
        chunks += [bytes(padding), payload]
        at += padding + len(payload)
    return b"".join(chunks)


def alone(entry: TensorEntry) -> bool:
    """Whether a tensor's floats have a section of their own, which can be mapped into memory."""
    return entry.coding == Coding.RAW and entry.float_bytes >= OWN_SECTION


def pieces_of(entries: Sequence[TensorEntry]) -> list[Piece]:
    """What is coded, in the order of the sections."""
    found = []
    for number, entry in enumerate(entries):
        rows, columns = matrix_shape(entry.shape)
        for at, largest in enumerate(entry.largest):
            first = at * entry.part
            height = min(entry.part or rows, rows - first)
            found.append(Piece(tensor=number, first=first, rows=height, columns=columns, largest=largest))
    return found


def _coded(stored: Sequence[Stored], effort: str) -> list[tuple[Section, bytes]]:
    """All integers, in sections of about SECTION_WEIGHTS, coded side by side."""
    groups: list[list[Piece]] = []
    filled = SECTION_WEIGHTS
    for piece in pieces_of([entry_of(s) for s in stored]):
        size = piece.rows * piece.columns
        if filled + size > SECTION_WEIGHTS:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += size
    small = sum(p.rows * p.columns for group in groups for p in group) <= SMALL

    def modes(group: list[Piece]) -> Sequence[str]:
        if effort != "default":
            return MODES[effort]
        # Exponents have little that contexts could tell: 0.3 % of a float that is split.
        split = all(stored[piece.tensor].split for piece in group)
        return ("cm8",) if small else MODES["fast" if split else effort]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sections = list(pool.map(lambda group: _encode(stored, group, modes(group)), groups))
    if sections:
        sections[-1] = (replace(sections[-1][0], pieces=0), sections[-1][1])
    return sections


def _encode(stored: Sequence[Stored], group: list[Piece], modes: Sequence[str]) -> tuple[Section, bytes]:
    tensors = [_integers(stored[piece.tensor], piece) for piece in group]
    payload, mode = min(((encode_section(tensors, mode), mode) for mode in modes), key=lambda one: len(one[0]))
    section = Section(
        kind=next(kind for kind, name in CODERS.items() if name == mode),
        length=len(payload),
        crc=zlib.crc32(payload),
        pieces=len(group),
        digest=section_digest([t.q for t in tensors]),
    )
    return section, payload


def _integers(stored: Stored, piece: Piece) -> coder.Integers:
    assert stored.q is not None
    q = stored.q[piece.first : piece.first + piece.rows].astype(np.int32)
    return coder.Integers(q=q, lag=stored.lag, trellis=stored.coding == Coding.TRELLIS)


def section_digest(arrays: Sequence[Codes]) -> int:
    """CRC-32 over the integers as little-endian int32."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").data, value)
    return value


class GsrFile:
    """A file that was opened: its header and directory are checked, its sections are when they are read."""

    def __init__(self, data: Any) -> None:
        """data: the bytes of the whole file, or a `source.OnDisk`."""
        self.data = data
        self.right: dict[int, memoryview] = {}  # by where they begin: sections whose checksum was found to be right
        self.ledger = Ledger(len(data))
        reader = _front(data)
        length, plain = reader.varint(MOST_HEADER), reader.varint(MOST_HEADER)
        packed = reader.take(length)
        self.sections = _directory(reader)
        end = reader.at
        if struct.unpack("<I", reader.take(4))[0] != zlib.crc32(data[:end]):
            reader.fail("its checksum is wrong")
        self.sections = list(_placed(self.sections, end + 4, data))
        self.header = read_header(packed, plain, self.ledger)
        self.header_bytes = end + 4
        self._match()
        needs = [
            decoding_bytes(section.length, self._told(pieces), CODERS[section.kind])
            for section, pieces in zip(self.coded, self.pieces)
        ]
        self.ledger.at_once(work(entry.bytes) for entry in self.header.entries if entry.coding == Coding.PACKED)
        self.ledger.at_once(
            GENERATED_BYTES * max(entry.shape) for entry in self.header.entries if entry.generated and entry.shape
        )
        # How many sections may be decoded side by side.
        self.side_by_side = min(os.cpu_count() or 1, self.ledger.at_once(needs))

    def _match(self) -> None:
        """Whether the directory has what the header needs."""
        entries = self.header.entries
        values = sum(entry.float_bytes for entry in entries if not alone(entry))
        kinds = [section.kind for section in self.sections]
        alone_bytes = [entry.float_bytes for entry in entries if alone(entry)]
        wanted = [Kind.VALUES] * bool(values) + [Kind.RAW] * len(alone_bytes)
        lengths = [values] * bool(values) + alone_bytes
        if kinds[: len(wanted)] != wanted or [s.length for s in self.sections[: len(wanted)]] != lengths:
            raise damaged("header", "its sections do not fit its tensors")
        self.coded = self.sections[len(wanted) :]
        if any(section.kind not in CODERS for section in self.coded):
            raise damaged("header", "its sections are out of order")
        self.pieces: list[list[Piece]] = []
        all_pieces, at = pieces_of(entries), 0
        for section in self.coded:
            left = len(all_pieces) - at
            count = section.pieces or left
            if not 0 < count <= left:
                raise damaged("header", "its sections do not hold the integers of its tensors")
            self.pieces.append(all_pieces[at : at + count])
            at += count
        if at < len(all_pieces):
            raise damaged("header", "its sections do not hold the integers of its tensors")

    def payload(self, section: Section) -> memoryview:
        """The checked bytes of a section. They are read once: the file may change meanwhile."""
        if section.start not in self.right:
            view = memoryview(self.data[section.start : section.start + section.length])
            if zlib.crc32(view) != section.crc:
                raise damaged(section.name, "its checksum is wrong")
            self.right[section.start] = view
        return self.right[section.start]

    def _told(self, pieces: Sequence[Piece]) -> list[coder.IntegersHeader]:
        """What the decoder is told of some pieces."""
        told = []
        for piece in pieces:
            entry = self.header.entries[piece.tensor]
            shape = {"rows": piece.rows, "columns": piece.columns, "lag": entry.lag, "largest": piece.largest}
            told.append(coder.IntegersHeader(**shape, trellis=entry.coding == Coding.TRELLIS))
        return told

    def codes(self, number: int) -> Sequence[Codes]:
        """The decoded integers of coded section `number`, one array for each of its pieces."""
        section = self.coded[number]
        payload = bytes(self.payload(section))
        try:
            found = decode_section(payload, self._told(self.pieces[number]), CODERS[section.kind])
        except CorruptFile as error:
            raise damaged(section.name, str(error)) from error
        if section_digest(found) != section.digest:
            raise damaged(section.name, "the digest of its integers is wrong")
        return found


def _front(data: Any) -> Reader:
    if data[:3] != MAGIC:
        raise CorruptFile("it does not begin like a .gsr file")
    reader = Reader(data, "header")
    reader.at = 3
    version = reader.byte()
    if version > VERSION:
        raise CorruptFile(
            f"it has version {version} of the format, this gossamer reads up to {VERSION}: install a newer one"
        )
    if version == 0:
        reader.fail("version 0 of the format does not exist")
    return reader


def _directory(reader: Reader) -> list[Section]:
    sections = []
    for _ in range(reader.varint(MOST_SECTIONS)):
        kind = reader.byte()
        if kind > Kind.RANS:
            reader.fail(f"a section of kind {kind}, which is unknown")
        length, count, checked = reader.varint(MOST_BYTES), 0, 0
        if kind in CODERS:
            count, checked = reader.varint(MOST_SECTIONS), struct.unpack("<I", reader.take(4))[0]
        crc = struct.unpack("<I", reader.take(4))[0]
        sections.append(Section(kind=Kind(kind), length=length, crc=crc, pieces=count, digest=checked))
    return sections


def _placed(sections: list[Section], at: int, data: Any) -> Iterator[Section]:
    """The sections with their places, one after the other up to the end of the file."""
    for one in sections:
        start = at + (-at % ALIGNMENT if one.kind == Kind.RAW else 0)
        if any(data[at:start]):
            raise damaged("padding", f"byte {at} to {start} are not all zero")
        yield replace(one, start=start)
        at = start + one.length
    if at != len(data):
        raise CorruptFile(f"it has {len(data)} bytes, but its sections end at byte {at}: it was cut off or added to")
