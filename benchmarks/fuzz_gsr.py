"""Damages a `.gsr` file in very many ways and looks how `gossamer.load` takes it.

    python benchmarks/fuzz_gsr.py --count 1000000 --out results/fuzz_gsr.json

Every damaged file must be refused with CorruptFile, or give exactly what the whole file gives. Half of the files are
resealed: their checksums are made right again, so that the damage gets past them; such a file may be another valid one,
but must not crash, hang, or take more memory than its size allows. Stopped and started again, it goes on where it was.
One process, one thread.

With --structure what the files say is changed (`gsr_structure.py`), again with right checksums.
A process of its own does that, and is watched: it must raise nothing but gossamer's errors, take at most SLOW_SECONDS
and the memory that docs/format.md states, and write nowhere.
"""

import argparse
import json
import os
import random
import resource
import signal
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, NoReturn

import torch
from gsr_structure import mutated, taken_apart
from torch import Tensor, nn

from gossamer import compact
from gossamer.compact.reading import network, read_tensors
from gossamer.constraints.base import constrain
from gossamer.errors import CorruptFile, GossamerError, own_error
from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.file import CODERS, File
from gossamer.gsr.format.ledger import Limit
from gossamer.gsr.format.stream import Reader, Writer
from gossamer.methods.share.hashed import Hashed
from gossamer.methods.share.product import product_code
from gossamer.methods.share.residual import residual_code

SLOW_SECONDS = 10.0
HEADER_BYTES = 1 << 27  # of the names, entries and steps that the limits allow, as objects of Python
MOST_ADDRESSES = 4 << 30
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
    file = File(data)
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
    file = File(data)
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


def structural_fault(data: bytes) -> str | None:
    """What is wrong about how a file is taken that says something else; None where all is well."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    try:
        file = File(data)
        tensors = read_tensors(file)
        if file.header.graph is not None:
            network(file, tensors, None)
    except GossamerError as error:
        return _too_much(error, before, _reading_bytes(data))
    except Exception as error:
        return f"loading: {type(error).__name__}: {error}"
    return _too_much(None, before, _reading_bytes(data))


def _reading_bytes(data: bytes) -> int:
    return Limit.TENSORS.most(len(data)) + Limit.WORK.most(len(data)) + HEADER_BYTES


def _too_much(error: Exception | None, before: int, most: int) -> str | None:
    if error is not None and "allocate" in str(error):
        return f"asked for too much: {error}"
    taken = _memory("VmHWM") - before
    return f"took {taken >> 20} MB" if taken > most else None


def _memory(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) << 10


def warm_up(files: list[bytes]) -> None:
    """Load whole files: what is compiled or imported on first use is not to be done in every process."""
    for data in files:
        structural_fault(data)


def watched(files: list[bytes], first: int, last: int) -> list[str]:
    """Faults found in the files with changed structure from number `first` up to `last`; each try has 10 s."""
    faults = []
    while first < last:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            _tries(files, first, last, writing)
        os.close(writing)
        with os.fdopen(reading) as answers:
            for line in answers:
                told, at, text = line.rstrip("\n").split(" ", 2)
                first = int(at) + 1
                faults += [f"file {at}: {text}"] if told == "fault" else []
        status = os.waitpid(process, 0)[1]
        if status:
            ended = signal.Signals(status & 127).name if status & 127 else f"status {status >> 8}"
            slow = ended == "SIGPROF"
            faults.append(f"file {first - 1}: " + (f"took more than {SLOW_SECONDS} s" if slow else f"ended by {ended}"))
    return faults


def _tries(files: list[bytes], first: int, last: int, answers: int) -> NoReturn:
    """Never comes back: a process of its own."""
    status, number = 1, first
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MOST_ADDRESSES,) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # whatever writes into a file ends the process
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        whole = [taken_apart(data) for data in files]
        for number in range(first, last):
            os.write(answers, f"begun {number} \n".encode())
            signal.setitimer(signal.ITIMER_PROF, SLOW_SECONDS)  # of the processor's time; the signal ends the process
            random_ = random.Random(number)
            found = structural_fault(mutated(random_.choice(whole), random_))
            if found is not None:
                os.write(answers, f"fault {number} {found[:300]!r}\n".encode())
        status = 0
    except BaseException as error:
        os.write(answers, f"fault {number} the fuzzer itself: {own_error(error)!r}\n".encode())
    finally:
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz_gsr.json")
    parser.add_argument("--step", type=int, default=10_000)
    parser.add_argument("--structure", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = {"files": 0, "seconds": 0.0, "faults": []}
    if arguments.out.is_file():
        done = json.loads(arguments.out.read_text())
    files = sample_files()
    warm_up(files)
    while done["files"] < arguments.count:
        start, first = time.perf_counter(), done["files"]
        last = min(first + arguments.step, arguments.count)
        done["faults"] += (watched if arguments.structure else fuzz)(files, first, last)
        done["files"], done["seconds"] = last, done["seconds"] + time.perf_counter() - start
        done["files_per_second"] = round(last / done["seconds"])
        done["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        arguments.out.write_text(json.dumps(done, indent=1))
        print(f"{last:,} files, {done['files_per_second']} a second, {len(done['faults'])} faults", flush=True)


if __name__ == "__main__":
    main()
