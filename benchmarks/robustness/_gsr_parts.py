"""A `.gsr` file taken apart into what it says, and written again with right checksums, whatever it then says."""

import struct
import zlib
from dataclasses import dataclass, replace

from gossamer.errors import GossamerError
from gossamer.gsr.codec.integers import IntegersHeader
from gossamer.gsr.codec.section import decode_section
from gossamer.gsr.format import header as parts
from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.file import CODERS, GsrFile, Kind, alone, section_digest
from gossamer.gsr.format.graph import (
    Graph,
    write_graph,
)
from gossamer.gsr.format.header import CODED, TensorEntry
from gossamer.gsr.format.stored_values import Coding, matrix_shape
from gossamer.gsr.format.stream import Writer


@dataclass
class Parts:
    """A file taken apart. names: (shared, new parts, number in LEAVES, own name, buffer); sections: kind, payload,
    pieces, digest."""

    names: list[tuple[int, list[str], int, str, bool]]
    unnamed: int
    entries: list[TensorEntry]
    graph: Graph | None
    sections: list[tuple[int, bytes, int, int]]
    structure: str = ""


def taken_apart(data: bytes) -> Parts:
    """The parts of a file that is whole."""
    file = GsrFile(data)
    header = file.header
    names = []
    for name in header.names[: header.named]:
        *path, leaf = name.split(".")
        names.append((0, path, 0, leaf, name in header.buffers))
    sections = [(s.kind, data[s.start : s.start + s.length], s.pieces, s.digest) for s in file.sections]
    return Parts(
        names, len(header.names) - header.named, list(header.entries), header.graph, sections, header.structure
    )


def put_together(found: Parts) -> bytes:
    """A file with these parts, whatever they say; all checksums are right."""
    writer = Writer()
    writer.varint(len(found.names))
    for shared, new, known, leaf, buffer in found.names:
        writer.byte(known | min(shared, 7) << 3 | min(len(new), 3) << 6)
        if shared >= 7:
            writer.varint(shared - 7)
        if len(new) >= 3:
            writer.varint(len(new) - 3)
        for part in new:
            writer.text(part)
        if known == 0:
            writer.text(leaf)
            writer.byte(buffer)
    writer.varint(found.unnamed)
    for number, entry in enumerate(found.entries):
        parts._write_entry(entry, number, writer)
    writer.byte((found.graph is not None) + 2 * bool(found.structure))
    if found.graph is not None:
        write_graph(found.graph, writer)
    if found.structure:
        writer.text(found.structure)
    plain = bytes(writer.data)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    packed = packer.compress(plain) + packer.flush()
    front = Writer()
    front.data += b"GSR" + bytes([1 + bool(found.structure)])
    front.varint(len(packed))
    front.varint(len(plain))
    front.data += packed
    front.varint(len(found.sections))
    for kind, payload, pieces, checked in found.sections:
        front.byte(kind)
        front.varint(len(payload))
        if kind in CODERS:
            front.varint(pieces)
            front.data += struct.pack("<I", checked)
        front.data += struct.pack("<I", zlib.crc32(payload))
    front.data += struct.pack("<I", zlib.crc32(front.data))
    data = bytes(front.data)
    for kind, payload, _, _ in found.sections:
        data += bytes(-len(data) % 64 if kind == Kind.RAW else 0) + payload
    return data


def fitted(found: Parts) -> Parts:
    """The same with sections that hold what the entries need, as far as one can tell: the deepest way into a reader."""
    values = sum(e.float_bytes for e in found.entries if not alone(e))
    raws = [e.float_bytes for e in found.entries if alone(e)]
    if values + sum(raws) > 1 << 20:
        return found
    old = b"".join(payload for kind, payload, _, _ in found.sections if kind == Kind.VALUES) or b"\0"
    sections = [(int(Kind.VALUES), (old * (values // len(old) + 1))[:values], 0, 0)] * bool(values)
    sections += [(int(Kind.RAW), bytes(length), 0, 0) for length in raws]
    coded = [(e, e.largest) for e in found.entries if e.coding in CODED]
    if coded:
        old_coded = [s for s in found.sections if s[0] in CODERS]
        if all(not any(largest) for _, largest in coded):
            zeros = sum(e.elements for e, _ in coded)
            checked = zlib.crc32(bytes(4 * zeros)) if zeros < 1 << 22 else 0
            sections.append((int(Kind.CM4), b"", 0, checked))
        else:
            sections += [_checked(found, section) for section in old_coded]
    return replace(found, sections=sections)


def _checked(found: Parts, section: tuple[int, bytes, int, int]) -> tuple[int, bytes, int, int]:
    """A coded section, alone in its file, with the digest of what it now decodes to."""
    kind, payload, _, _ = section
    told = []
    for entry in (e for e in found.entries if e.coding in CODED):
        rows, columns = matrix_shape(entry.shape)
        if rows * columns > 1 << 18 or entry.part or len(entry.largest) != 1:
            return section
        told.append(
            IntegersHeader(
                rows=rows,
                columns=columns,
                lag=entry.lag,
                largest=entry.largest[0],
                trellis=entry.coding == Coding.TRELLIS,
            )
        )
    try:
        return kind, payload, 0, section_digest(decode_section(payload, told, CODERS[Kind(kind)]))
    except (GossamerError, KeyError, ValueError):
        return section
