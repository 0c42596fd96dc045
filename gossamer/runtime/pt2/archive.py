"""The archive of a `.pt2`, looked through before anything of it is read: nothing of it is decompressed, unpickled or
evaluated, and what is read takes no more memory than the file has bytes."""

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import CorruptFile, first_line
from gossamer.runtime.metadata import STRUCTURE
from gossamer.runtime.pt2.sizes import check_sizes

FILES = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|archive_format|archive_version|byteorder"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|\.data/(version|serialization_id)|version"
    rf"|extra/{re.escape(STRUCTURE)}"
    r"|data/sample_inputs/model\.pt"  # a pickle that running does not need: it is never read
)
MOST_DIRECTORY = 8 << 20  # bytes of the list of files, about 80,000 tensors
MOST_STRUCTURE = 1 << 16
MOST_JSON = 16 << 20  # bytes of the graph, and of each table of tensors
MOST_NESTED = 64  # lists and objects inside one another
MOST_SHARED = 64  # times that all views of the stored tensors together are larger than what is stored
ROOM = 16 << 20  # bytes of views that any file may have
CHUNK = 1 << 20
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
    28: torch.uint16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
# What the parsers of the standard library raise on a damaged file.
DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, struct.error)


class Archive:
    """A `.pt2` that is open for reading. Raises CorruptFile for everything that is not as torch writes it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            size = path.stat().st_size
            if _directory_bytes(self._file, size) > MOST_DIRECTORY:
                raise CorruptFile(f"its list of files is longer than {MOST_DIRECTORY >> 20} MiB")
            self._zip = zipfile.ZipFile(self._file)
            self._entries = _entries(self._zip.infolist(), size)
            self._bytes = size
            if self._content("byteorder", 16, b"little") != b"little" or self._content("archive_version", 16) != b"0":
                raise CorruptFile("written for another kind of machine, or by a newer torch")
        except DAMAGE as error:
            self._file.close()
            raise CorruptFile(f"not a zip archive: {first_line(error)}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def graph(self) -> dict[str, Any]:
        """The exported program as JSON; its expressions of sizes are checked, not evaluated."""
        found = self._json("models/model.json")
        for entry in _objects(found):
            for key in ("expr_str", "hint_expr_str"):
                if isinstance(entry.get(key), str):
                    check_sizes(entry[key])
        return found

    def outputs(self) -> Any:
        """Where the outputs stand in what the network gave; None where the file does not say."""
        name = f"extra/{STRUCTURE}"
        return json.loads(self._content(name, MOST_STRUCTURE)) if name in self._entries else None

    def tensors(self, kind: str) -> dict[str, tuple[Tensor, bool]]:
        """The tensors of a kind, "weights" or "constants", by name, and whether each is a parameter."""
        table = self._json(f"data/{kind}/model_{kind}_config.json")
        stored: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}  # tied weights are one tensor
        found: dict[str, tuple[Tensor, bool]] = {}
        views = 0
        for name, entry in table["config"].items():
            record = entry["path_name"]
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", record):
                raise CorruptFile(f"tensor {name!r} is pickled; only plain tensors are read")
            meta = entry["tensor_meta"]
            dtype = DTYPES[_whole(meta["dtype"])]
            where = f"data/{kind}/{record}"
            if where not in stored:
                stored[where] = self._bytes_of(where)
            key = f"{where} {json.dumps(meta, sort_keys=True)}"
            if key not in made:
                made[key] = _view(stored[where], dtype, meta, name)
            views += made[key].numel() * dtype.itemsize
            if views > MOST_SHARED * self._bytes + ROOM:
                raise CorruptFile(f"its tensors are {MOST_SHARED} times as large as what is stored")
            found[name] = made[key], entry["is_param"] is True
        return found

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise CorruptFile(f"incomplete archive: {name} is missing")
        return self._entries[name]

    def _content(self, name: str, most: int, otherwise: bytes | None = None) -> bytes:
        if otherwise is not None and name not in self._entries:
            return otherwise
        entry = self._entry(name)
        if entry.file_size > most:
            raise CorruptFile(f"{name} has {entry.file_size:,} bytes; at most {most:,} are read")
        return self._zip.read(entry)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            text = self._content(name, MOST_JSON).decode()
            found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        except RecursionError as error:
            raise CorruptFile(f"{name} is nested too deep") from error
        except DAMAGE as error:
            raise CorruptFile(f"incomplete archive: {name}: {first_line(error)}") from error
        if not isinstance(found, dict):
            raise CorruptFile(f"incomplete archive: {name} holds no object")
        return found

    def _bytes_of(self, name: str) -> Tensor:
        """The bytes of a stored tensor, in memory of their own."""
        entry = self._entry(name)
        buffer = np.empty(entry.file_size, dtype=np.uint8)
        view = buffer.data
        try:
            with self._zip.open(entry) as source:
                for start in range(0, entry.file_size, CHUNK):
                    piece = source.read(min(CHUNK, entry.file_size - start))
                    view[start : start + len(piece)] = piece
                    if len(piece) < min(CHUNK, entry.file_size - start):
                        raise CorruptFile(f"{name} is cut short")
        except DAMAGE as error:
            raise CorruptFile(f"{name} is damaged: {first_line(error)}") from error
        return torch.from_numpy(buffer)


def _directory_bytes(file: IO[bytes], size: int) -> int:
    """Length of a zip's list of files, from its end record, before the list is read."""
    start = max(0, size - (1 << 16) - 22)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise CorruptFile("not a zip archive")
    length = int(struct.unpack_from("<I", tail, at + 12)[0])
    wide = tail.rfind(b"PK\6\6", 0, at)
    if wide >= 0 and wide + 48 <= len(tail):
        length = max(0 if length == 0xFFFFFFFF else length, int(struct.unpack_from("<Q", tail, wide + 40)[0]))
    return length


def _entries(listed: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """The files by name without the folder that holds them all, after a look at what the list says of each."""
    entries = {entry.filename.partition("/")[2]: entry for entry in listed}
    if len(entries) != len(listed) or len({entry.filename.partition("/")[0] for entry in listed}) > 1:
        raise CorruptFile("an archive of files with equal names")
    strange = [name for name in entries if not FILES.fullmatch(name)]
    if strange:
        raise CorruptFile(f"holds {strange[0][:80]!r}; only tensors and one graph of torch operations are read")
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 or e.file_size != e.compress_size for e in listed):
        raise CorruptFile("holds compressed or encrypted files; torch writes neither")
    if sum(entry.file_size for entry in listed) > size:
        raise CorruptFile("its files are said to be larger than the archive")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects inside a value, which must not be nested too deep."""
    inside = [iter((value,))]
    while inside:
        one = next(inside[-1], None)
        if isinstance(one, dict):
            yield one
            inside.append(item for item in one.values() if isinstance(item, dict | list))
        elif isinstance(one, list):
            inside.append(item for item in one if isinstance(item, dict | list))
        else:
            inside.pop()
        if len(inside) > MOST_NESTED:
            raise CorruptFile(f"its graph is nested more than {MOST_NESTED} deep")


def _whole(value: Any) -> int:
    """A number of JSON that must be a whole one and not negative."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def _view(stored: Tensor, dtype: torch.dtype, meta: dict[str, Any], name: str) -> Tensor:
    """The tensor that an entry describes, inside the bytes that are stored for it."""
    sizes = [_whole(size["as_int"]) for size in meta["sizes"]]
    strides = [_whole(stride["as_int"]) for stride in meta["strides"]]
    offset = _whole(meta["storage_offset"]["as_int"])
    if len(sizes) != len(strides) or len(sizes) > MOST_NESTED:
        raise CorruptFile(f"tensor {name!r} has {len(sizes)} sizes and {len(strides)} strides")
    if len(stored) % dtype.itemsize:
        raise CorruptFile(f"tensor {name!r} has {len(stored)} bytes, which is no number of {dtype}")
    values = stored.view(dtype) if len(stored) else torch.empty(0, dtype=dtype)
    count = int(np.prod(np.array(sizes, dtype=object))) if sizes else 1
    end = offset + 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides)) if count else offset
    if end > len(values) or max((*sizes, *strides, count), default=0) >= 1 << 40:
        raise CorruptFile(f"tensor {name!r} reaches over the {len(values)} values that are stored for it")
    if values.dtype == torch.bool and bool((stored > 1).any()):
        raise CorruptFile(f"tensor {name!r} holds bytes that are neither true nor false")
    return torch.as_strided(values, sizes, strides, offset)
