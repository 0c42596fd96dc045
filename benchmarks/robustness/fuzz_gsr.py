"""Damages a `.gsr` file in very many ways and looks how `gossamer.load` takes it.

    python -m benchmarks.robustness.fuzz_gsr --count 1000000 --out benchmarks/results/fuzz_gsr.json

Every damaged file must be refused with CorruptFile, or give exactly what the whole file gives. Half of the files are
resealed: their checksums are made right again, so that the damage gets past them; such a file may be another valid one,
but must not crash, hang, or take more memory than its size allows. Stopped and started again, it goes on where it was.
One process, one thread. What files say is changed by `fuzz_inputs.py`.
"""

import argparse
import json
import random
import resource
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import paths
from gossamer import compact
from gossamer.compact.reading import network, read_tensors
from gossamer.constraints.apply import constrain
from gossamer.errors import CorruptFile
from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.file import CODERS, GsrFile
from gossamer.gsr.format.stream import Reader, Writer
from gossamer.methods.share.hashed import Hashed
from gossamer.methods.share.product import product_code
from gossamer.methods.share.residual import residual_code

SLOW_SECONDS = 10.0
IMAGES = (torch.zeros(2, 1, 6, 6),)


def sample_files() -> list[bytes]:
    """Small files with every coding and a graph, in every mode of the coder."""
    with tempfile.TemporaryDirectory() as folder:
        path, by_value = Path(folder) / "net.gsr", values()
        files = [compact.save(by_value, path, IMAGES, effort=e).read_bytes() for e in ("fast", "default", "max")]
        return [*files, *(compact.save(model, path, IMAGES).read_bytes() for model in (rules(), floats()))]


def values() -> nn.Module:
    """Weights on a grid, on a grid for each row, and of a codebook."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 3)
    ).eval()
    with torch.no_grad():
        grid, rows, book = model[0].weight, model[4].weight, model[5].weight
        grid.copy_((grid * 20).round() * 0.05 + 0.0)
        rows.copy_(((rows * 40).round() + 0.0) * torch.rand(10, 1))
        book.copy_(torch.tensor([0.1, -0.23, 0.0, 0.31])[torch.randint(4, (3, 10))])
    return model


def rules() -> nn.Module:
    """Weights made of fewer numbers by every rule, one of them with zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 40), nn.Linear(40, 16))
    with torch.no_grad():
        model[1].weight[torch.rand(12, 36) < 0.3] = 0
    generator = torch.Generator().manual_seed(0)
    held = {
        "1.weight": Hashed(model[1].weight, torch.randn(20), 7),
        "3.weight": product_code(model[3].weight, 3, 4, generator),
        "4.weight": residual_code(model[4].weight, 2, 2, generator),
    }
    return constrain(model, held).eval()


def floats() -> nn.Module:
    """Sparse weights, zeros of both signs among them, and repeated rows: floats that are on no grid."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 60)).eval()
    with torch.no_grad():
        model[1].weight *= torch.rand(12, 36) < 0.1
        model[3].weight.copy_(model[3].weight[:3].repeat(20, 1))
    return model


def damaged(data: bytes, random_: random.Random) -> bytes:
    """The data with one to three changes: bits, bytes, runs, cuts."""
    result = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        at = random_.randrange(len(result) + 1)
        length = random_.choice((1, 1, 2, 4, 16, 64))
        piece = result[at : at + length]
        match random_.randrange(8):
            case 0 | 1 if at < len(result):
                result[at] ^= 1 << random_.randrange(8)
            case 2 if at < len(result):
                result[at] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
            case 3:
                del result[at:]
            case 4:
                del result[at : at + length]
            case 5:
                result[at:at] = piece
            case 6:
                result[at : at + length] = bytes(len(piece))
            case _:
                result[at : at + length] = random_.randbytes(length)
    return bytes(result)


def damaged_inside(data: bytes, random_: random.Random) -> bytes:
    """A file whose header, directory or payloads are damaged, with all checksums made right again."""
    reader = Reader(data, "header")
    reader.at = 4
    packed, length = reader.varint(1 << 24), reader.varint(1 << 24)
    plain = zlib.decompressobj(-15, zdict=DICTIONARY).decompress(reader.take(packed), length)
    before = reader.at
    file = GsrFile(data)
    directory = data[before : file.header_bytes - 4]
    payloads = data[file.header_bytes :]
    match random_.randrange(4):
        case 0 | 1:
            plain = damaged(plain, random_)
        case 2:
            directory = damaged(directory, random_)
        case _:
            payloads = damaged(payloads, random_)[: len(payloads)].ljust(len(payloads), b"\0")
            directory = bytes([len(file.sections)]) + b"".join(
                _directory_entry(section, payloads[section.start - file.header_bytes :][: section.length])
                for section in file.sections
            )
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    again = packer.compress(plain) + packer.flush()
    writer = Writer()
    writer.data += data[:4]
    writer.varint(len(again))
    writer.varint(len(plain))
    writer.data += again + directory
    return bytes(writer.data) + struct.pack("<I", zlib.crc32(writer.data)) + payloads


def _directory_entry(section: Any, payload: bytes) -> bytes:
    writer = Writer()
    writer.byte(section.kind)
    writer.varint(section.length)
    if section.kind in CODERS:
        writer.varint(section.pieces)
        writer.data += struct.pack("<I", section.digest)
    return bytes(writer.data) + struct.pack("<I", zlib.crc32(payload))


def content(data: bytes) -> tuple[Any, dict[str, Tensor]]:
    """The graph and the tensors of a file, checked as `gossamer.load` does. Raises CorruptFile."""
    file = GsrFile(data)
    tensors = read_tensors(file)
    if file.header.graph is not None:
        network(file, tensors, None)
    return file.header.graph, tensors


def fault(data: bytes, whole: tuple[Any, dict[str, Tensor]] | None) -> str | None:
    """What is wrong about how a damaged file was taken; None where all is well. whole: what it must be if accepted."""
    start = time.process_time()  # of this process, whatever else the machine does
    try:
        graph, tensors = content(data)
    except CorruptFile:
        pass
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        if whole is not None and not (graph == whole[0] and _same(tensors, whole[1])):
            return "accepted, but it is not what was written"
    seconds = time.process_time() - start
    return f"took {seconds:.1f} s" if seconds > SLOW_SECONDS else None


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(one.values(), other.values())
    )


def fuzz(files: list[bytes], first: int, last: int) -> list[str]:
    """Faults found in damaged files number `first` up to `last`; each number always gives the same file."""
    whole = [content(data) for data in files]
    faults = []
    for number in range(first, last):
        random_ = random.Random(number)
        which = random_.randrange(len(files))
        inside = number % 2 == 1
        data = (damaged_inside if inside else damaged)(files[which], random_)
        found = fault(data, None if inside else whole[which])
        if found is not None:
            faults.append(f"file {number}: {found}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "fuzz_gsr.json")
    parser.add_argument("--step", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = {"files": 0, "seconds": 0.0, "faults": []}
    if arguments.out.is_file():
        done = json.loads(arguments.out.read_text())
    files = sample_files()
    while done["files"] < arguments.count:
        start, first = time.perf_counter(), done["files"]
        last = min(first + arguments.step, arguments.count)
        done["faults"] += fuzz(files, first, last)
        done["files"], done["seconds"] = last, done["seconds"] + time.perf_counter() - start
        done["files_per_second"] = round(last / done["seconds"])
        done["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        arguments.out.write_text(json.dumps(done, indent=1))
        print(f"{last:,} files, {done['files_per_second']} a second, {len(done['faults'])} faults", flush=True)


if __name__ == "__main__":
    main()
