"""`gossamer.load`: the network of a `.gsr` file, or its tensors into a network of the user's class."""

import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.deploy.gsr.file import File, Kind, alone
from gossamer.deploy.gsr.header import Entry
from gossamer.deploy.gsr.network import Network
from gossamer.deploy.gsr.stream import damaged
from gossamer.deploy.gsr.values import Codes, Coding, MadeOf, Width, floats_from
from gossamer.errors import BadInput, CorruptFile, unknown
from gossamer.network.made import Made

MOST_MISMATCHES = 5


def load(path: Path | str, into: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The network of a `.gsr` file, in eval mode and callable without its class; nothing in it is executed.

    into: put the tensors into this network instead and give it back, in place; it keeps its own dtypes. dtype: convert
    the floating-point tensors, for example to torch.float16. Large tensors that are stored raw stay on disk until they
    are read. Raises CorruptFile that names the damaged section, BadInput where the file and the network do not fit.
    """
    path = Path(path)
    if into is not None and dtype is not None:
        raise BadInput("dtype converts a network that is loaded without its class; convert the other one itself")
    if dtype is not None and not dtype.is_floating_point:
        raise BadInput(f"dtype = {dtype}; floating-point tensors can only be converted to a floating-point dtype")
    with opened(path) as file:
        if into is None and file.header.graph is None:
            raise BadInput(
                f"{path} holds weights alone; load them into a network of their class: load(path, into=model)"
            )
        tensors = read_tensors(file)
        if into is None:
            return network(file, tensors, dtype)
        return _put({name: tensors[name] for name in file.header.names[: file.header.named]}, into, path)


def read_tensor(path: Path | str, name: str) -> Tensor:
    """One tensor of a file by name; only the sections that hold it are decoded."""
    with opened(Path(path)) as file:
        names = file.header.names[: file.header.named]
        if name not in names:
            raise unknown("tensor", name, names)
        return _Tensors(file, lambda number: _decoded(file, number)).one(names.index(name))


@contextmanager
def opened(path: Path) -> Iterator[File]:
    """A file with its header checked. What is found to be wrong inside the block names the file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise CorruptFile("it is empty")
            # Copied on write: the user may change a tensor that was mapped, the file stays as it is.
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        yield File(data)
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}") from error


def opened_bytes(data: bytes) -> Network:
    """The network of a file that is in memory."""
    file = File(data)
    return network(file, read_tensors(file), None)


def read_tensors(file: File) -> dict[str, Tensor]:
    """All tensors by name, in the order of the file; equal ones share their memory."""
    for section in file.sections:
        file.payload(section)  # all checksums before the first integer: a damaged file is refused quickly
    numbers = range(len(file.coded))

    def narrow(number: int) -> list[Codes]:
        """The integers of a section, which wait until all sections are decoded, in 16 bits if these are enough."""
        fits = [piece.largest < 1 << 15 for piece in file.pieces[number]]
        return [q.astype(np.int16) if fit else q for q, fit in zip(file.codes(number), fits)]

    if len(numbers) > 1:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, len(numbers))) as pool:
            decoded = list(pool.map(narrow, numbers))
    else:
        decoded = [narrow(number) for number in numbers]
    parts: dict[int, list[Codes]] = {}
    for number in numbers:
        for piece, found in zip(file.pieces[number], decoded[number]):
            parts.setdefault(piece.tensor, []).append(found)
    del decoded
    reading = _Tensors(file, lambda number: _joined(parts.pop(number)))
    return {name: reading.one(number) for number, name in enumerate(file.header.names[: file.header.shown])}


def network(file: File, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> Network:
    """The callable network of a file that holds a graph."""
    header = file.header
    if header.graph is None:
        raise damaged("header", "there is no graph")
    converted: dict[int, Tensor] = {}
    if dtype is not None:
        converted = {id(t): t.to(dtype) for t in tensors.values() if t.is_floating_point()}
    names = header.names[: header.shown]
    parameters = [name not in header.buffers and number < header.named for number, name in enumerate(names)]
    return Network(header.graph, names, [converted.get(id(t), t) for t in tensors.values()], parameters)


class _Tensors:
    """Makes tensors of an opened file out of their floats and integers. codes: the integers of a coded tensor."""

    def __init__(self, file: File, codes: Callable[[int], Codes]) -> None:
        self.file, self.codes = file, codes
        self.known: dict[int, Tensor] = {}
        self.entries = file.header.entries
        raws = iter(section for section in file.sections if section.kind == Kind.RAW)
        self.raw = {number: next(raws) for number, entry in enumerate(self.entries) if alone(entry)}
        self.starts: dict[int, int] = {}
        at = 0
        for number, entry in enumerate(self.entries):
            self.starts[number] = at
            at += 0 if alone(entry) else entry.float_bytes
        self.values = file.payload(file.sections[0]) if at else memoryview(b"")

    def one(self, number: int) -> Tensor:
        """A tensor; equal ones share their memory."""
        if number not in self.known:
            entry = self.entries[number]
            self.known[number] = self.one(entry.same) if entry.coding == Coding.SAME else self._new(number, entry)
        return self.known[number]

    def _new(self, number: int, entry: Entry) -> Tensor:
        if entry.made_of:
            return self._made(number, entry, entry.made_of)
        if entry.coding == Coding.ZEROS:
            return torch.zeros(entry.shape, dtype=entry.dtype)
        if entry.coding == Coding.RAW:
            return self._raw(number, entry)
        floats = floats_from(self._floats(number, entry), entry.width)
        if entry.coding == Coding.CONSTANT:
            return torch.from_numpy(floats.repeat(entry.elements)).to(entry.dtype).reshape(entry.shape)
        return self._from_codes(entry, floats, self.codes(number))

    @np.errstate(all="ignore")
    def _made(self, number: int, entry: Entry, made_of: MadeOf) -> Tensor:
        numbers, indices, keep = (
            None if part is None else self.one(part) for part in (made_of.numbers, made_of.indices, made_of.keep)
        )
        assert numbers is not None
        if indices is not None and not 0 <= int(indices.min()) <= int(indices.max()) < numbers.shape[1]:
            raise damaged("header", f"the codebooks of tensor {number} are too short for its indices")
        shape, seed = entry.shape, made_of.seed
        return Made(rule=made_of.rule, shape=shape, numbers=numbers, indices=indices, seed=seed, keep=keep).weight()

    def _floats(self, number: int, entry: Entry) -> memoryview:
        start = self.starts[number]
        return self.values[start : start + entry.float_bytes]

    def _raw(self, number: int, entry: Entry) -> Tensor:
        own = (
            entry.width == Width.OWN
            or {
                Width.FLOAT32: torch.float32,
                Width.FLOAT16: torch.float16,
                Width.BFLOAT16: torch.bfloat16,
            }[entry.width]
            == entry.dtype
        )
        view = self.file.payload(self.raw[number]) if number in self.raw else self._floats(number, entry)
        if not own:
            return torch.from_numpy(floats_from(view, entry.width)).to(entry.dtype).reshape(entry.shape)
        # Large tensors stay in the mapped file, at a multiple of 64 bytes; small ones may lie at any byte.
        mapped = number in self.raw and not view.readonly
        return torch.frombuffer(view if mapped else bytearray(view), dtype=entry.dtype).reshape(entry.shape)

    @np.errstate(all="ignore")  # a damaged step may overflow
    def _from_codes(self, entry: Entry, floats: Any, q: Codes) -> Tensor:
        match entry.coding:
            case Coding.GRID if not entry.dtype.is_floating_point:
                return torch.from_numpy(q).to(entry.dtype).reshape(entry.shape)
            case Coding.GRID | Coding.TRELLIS:
                values = q.astype(np.float32) * floats[0]
            case Coding.ROWS:
                values = q.astype(np.float32) * floats[:, None]
            case _:
                places = q.astype(np.int32) + entry.zero
                if places.size and not 0 <= places.min() <= places.max() < len(floats):
                    raise damaged("header", f"a codebook of {len(floats)} entries is too short for its indices")
                values = floats[places]
        return torch.from_numpy(values).to(entry.dtype).reshape(entry.shape)


def _decoded(file: File, tensor: int) -> Codes:
    found = []
    for number, group in enumerate(file.pieces):
        if any(piece.tensor == tensor for piece in group):
            found += [q for piece, q in zip(group, file.codes(number)) if piece.tensor == tensor]
    return _joined(found)


def _joined(parts: list[Codes]) -> Codes:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _put(stored: dict[str, Tensor], model: nn.Module, path: Path) -> nn.Module:
    """Fill the model's own tensors; nothing is changed where names or shapes do not fit."""
    own = model.state_dict()
    misfits = [f"{name} is missing" for name in own if name not in stored]
    misfits += [f"{name} is not in the model" for name in stored if name not in own]
    misfits += [
        f"{name} has shape {tuple(stored[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if misfits:
        more = f"; and {len(misfits) - MOST_MISMATCHES} more" if len(misfits) > MOST_MISMATCHES else ""
        listed = "; ".join(misfits[:MOST_MISMATCHES])
        raise BadInput(f"the tensors of {path} do not fit {type(model).__name__}: {listed}{more}")
    model.load_state_dict(stored)
    return model
