"""The tensors of an opened `.gsr` file, out of their floats and integers.

A tensor is allocated once, and filled some rows at a time: besides it there are only the integers of the sections that
are being decoded, and blocks of BLOCK values. The ledger was charged for all of this when the file was opened.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.gsr.format.file import GsrFile, Kind, Piece, alone
from gossamer.gsr.format.float_grid import BLOCK, Floats
from gossamer.gsr.format.generated import GeneratedWeight
from gossamer.gsr.format.header import CODED, TensorEntry
from gossamer.gsr.format.packed import unpack
from gossamer.gsr.format.split import Joiner
from gossamer.gsr.format.stored_values import (
    WIDTH_BYTES,
    Codes,
    Coding,
    GeneratedEntry,
    Width,
    floats_from,
    matrix_shape,
)
from gossamer.gsr.format.stream import damaged

PLAIN = {Width.FLOAT32: torch.float32, Width.FLOAT16: torch.float16, Width.BFLOAT16: torch.bfloat16}


class Tensors:
    """Those of these numbers, with all that they are generated from."""

    def __init__(self, file: GsrFile, wanted: Iterable[int]) -> None:
        self.file, self.entries = file, file.header.entries
        raws = iter(section for section in file.sections if section.kind == Kind.RAW)
        self.raw = {number: next(raws) for number, entry in enumerate(self.entries) if alone(entry)}
        self.starts: dict[int, int] = {}
        at = 0
        for number, entry in enumerate(self.entries):
            self.starts[number] = at
            at += 0 if alone(entry) else entry.float_bytes
        self.values = file.payload(file.sections[0]) if at else memoryview(b"")
        # How many lower parts there are before those of each piece.
        self.before = {n: [0, *accumulate(e.split.counts)] for n, e in enumerate(self.entries) if e.split}
        self.known = self._coded(self._with_parts(wanted))

    def one(self, number: int) -> Tensor:
        """A tensor; equal ones share their memory."""
        if number not in self.known:
            entry = self.entries[number]
            self.known[number] = self.one(entry.same) if entry.coding == Coding.SAME else self._new(number, entry)
        return self.known[number]

    def _with_parts(self, wanted: Iterable[int]) -> set[int]:
        """The numbers of what is stored: for these tensors and all that they lead to."""
        found: set[int] = set()
        for number in wanted:
            entry = self.entries[number]
            if entry.coding == Coding.SAME:
                number, entry = entry.same, self.entries[entry.same]
            found |= {number, *(self._stored(part) for part in (entry.generated.parts if entry.generated else ()))}
        return found

    def _stored(self, number: int) -> int:
        return self.entries[number].same if self.entries[number].coding == Coding.SAME else number

    def _coded(self, wanted: set[int]) -> dict[int, Tensor]:
        """Those of them that have integers, decoded section by section, some side by side."""
        found = {
            number: torch.empty(self.entries[number].shape, dtype=self.entries[number].dtype)
            for number in sorted(wanted)
            if self.entries[number].coding in CODED
        }
        sections = [n for n, pieces in enumerate(self.file.pieces) if any(p.tensor in found for p in pieces)]

        def decode(section: int) -> None:
            for piece, q in zip(self.file.pieces[section], self.file.codes(section)):
                if piece.tensor in found:
                    self._fill(found[piece.tensor], piece, q)

        if len(sections) > 1 and self.file.side_by_side > 1:
            with ThreadPoolExecutor(min(self.file.side_by_side, len(sections))) as pool:
                list(pool.map(decode, sections))
        else:
            for section in sections:
                decode(section)
        return found

    @np.errstate(all="ignore")  # a damaged step may overflow
    def _fill(self, tensor: Tensor, piece: Piece, q: Codes) -> None:
        """Put the values of a piece's integers into the rows that it holds."""
        entry, rows = self.entries[piece.tensor], slice(piece.first, piece.first + piece.rows)
        target = tensor.view(matrix_shape(entry.shape))[rows]
        if entry.split:
            number, low = piece.first // entry.part if entry.part else 0, self._floats(piece.tensor, entry)
            lower = Joiner(entry.split, number, self.before[piece.tensor][number], low)
            self._fill_split(target, lower, q)
            return
        floats = floats_from(self._floats(piece.tensor, entry), entry.width)
        if entry.coding == Coding.ROWS:
            floats = floats[rows]
        if entry.coding == Coding.CODEBOOK and not -entry.zero <= q.min() <= q.max() < len(floats) - entry.zero:
            raise damaged("header", f"a codebook of {len(floats)} entries is too short for its indices")
        for part in _blocks(piece.rows, piece.columns):
            target[part].copy_(torch.from_numpy(_values(entry, floats, q[part], part[0].start)))

    @staticmethod
    def _fill_split(target: Tensor, lower: Joiner, q: Codes) -> None:
        for part in _blocks(*q.shape):
            values = lower.join(q[part])
            if values is None:
                break
            target[part].copy_(torch.from_numpy(values))
        if values is None or not lower.done:
            raise damaged("header", "the integers of a tensor and the lower bits of its values do not fit together")

    def _new(self, number: int, entry: TensorEntry) -> Tensor:
        if entry.generated:
            return self._generate(number, entry, entry.generated)
        if entry.coding == Coding.ZEROS:
            return torch.zeros(entry.shape, dtype=entry.dtype)
        if entry.coding == Coding.RAW:
            return self._raw(number, entry)
        if entry.coding == Coding.PACKED:
            return self._packed(number, entry)
        constant = torch.from_numpy(floats_from(self._floats(number, entry), entry.width)).to(entry.dtype)
        return torch.empty(entry.shape, dtype=entry.dtype).copy_(constant.reshape(()))

    @np.errstate(all="ignore")
    def _generate(self, number: int, entry: TensorEntry, generated: GeneratedEntry) -> Tensor:
        numbers, indices, keep = (
            None if part is None else self.one(part) for part in (generated.numbers, generated.indices, generated.keep)
        )
        assert numbers is not None
        if indices is not None and not 0 <= int(indices.min()) <= int(indices.max()) < numbers.shape[1]:
            raise damaged("header", f"the codebooks of tensor {number} are too short for its indices")
        shape, seed = entry.shape, generated.seed
        return GeneratedWeight(
            rule=generated.rule, shape=shape, numbers=numbers, indices=indices, seed=seed, keep=keep
        ).weight()

    def _packed(self, number: int, entry: TensorEntry) -> Tensor:
        data = np.empty(entry.bytes, np.uint8)
        if not unpack(self._floats(number, entry), data):
            raise damaged("values", f"tensor {number} is no LZMA stream of {entry.bytes} bytes")
        return torch.from_numpy(data).view(entry.dtype).reshape(entry.shape)

    def _floats(self, number: int, entry: TensorEntry) -> memoryview:
        start = self.starts[number]
        return self.values[start : start + entry.float_bytes]

    def _raw(self, number: int, entry: TensorEntry) -> Tensor:
        view = self.file.payload(self.raw[number]) if number in self.raw else self._floats(number, entry)
        if entry.width == Width.OWN or PLAIN[entry.width] == entry.dtype:
            # A large tensor is the section that was read, at a multiple of 64 bytes; small ones may lie at any byte.
            own = number in self.raw and not view.readonly
            return torch.frombuffer(view if own else bytearray(view), dtype=entry.dtype).reshape(entry.shape)
        tensor, each = torch.empty(entry.elements, dtype=entry.dtype), WIDTH_BYTES[entry.width]
        for at in range(0, entry.elements, BLOCK):
            floats = floats_from(view[at * each : (at + BLOCK) * each], entry.width)
            tensor[at : at + BLOCK] = torch.from_numpy(floats)
        return tensor.reshape(entry.shape)


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a matrix of at most about BLOCK elements, in the order of its elements."""
    high = max(1, BLOCK // columns)
    for row in range(0, rows, high):
        for column in range(0, columns, BLOCK):
            yield slice(row, row + high), slice(column, column + BLOCK)


def _values(entry: TensorEntry, floats: Floats, q: Any, row: int) -> Any:
    """The values of some integers, the first of them in this row of the piece."""
    match entry.coding:
        case Coding.GRID if not entry.dtype.is_floating_point:
            return q
        case Coding.GRID | Coding.TRELLIS:
            return q.astype(np.float32) * floats[0]
        case Coding.ROWS:
            return q.astype(np.float32) * floats[row : row + len(q), None]
        case _:
            return floats[q + entry.zero]
