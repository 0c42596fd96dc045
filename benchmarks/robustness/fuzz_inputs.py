"""Changes `.gsr`, `.pt2` and `.onnx` files, recipes and images in very many ways, and looks how they are taken.

    python -m benchmarks.robustness.fuzz_inputs --count 200000 --out benchmarks/results/fuzz_inputs.json

What is changed is what the file says: a tensor or an operation, a value of its JSON, a field of its message, a key of
its mapping, a chunk; then a valid file is written again, so that the change gets past what would refuse a damaged file.
Every file must be refused with one of gossamer's own errors, in one line, or be taken; a network that is taken must run
or refuse with such an error, in a time that its estimated operations explain, and leave its weights and the files
around as they were. Each number always gives the same file. One process for all tries (`_worker.py`), one thread;
files are in memory. Limits of running are lower than usual: what goes over them is noticed sooner.
"""

import argparse
import contextlib
import json
import random
import resource
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import paths
from benchmarks.robustness._changes import changed_onnx, changed_pt2, changed_recipe
from benchmarks.robustness._gsr_mutations import mutated
from benchmarks.robustness._gsr_parts import taken_apart
from benchmarks.robustness._images import changed_image, sample_images, take_image
from benchmarks.robustness._worker import SLOW_SECONDS, memory, watched, write
from benchmarks.robustness.fuzz_gsr import sample_files
from gossamer.cli.file_summary import read_contents
from gossamer.compact import watch, work
from gossamer.compact.network import Network
from gossamer.compact.reading import network, opened, read_tensors
from gossamer.errors import GossamerError
from gossamer.gsr.format.ledger import Limit
from gossamer.jobs import recipe
from gossamer.onnx_import import import_onnx
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import Frozen, export_pt2, load_pt2
from gossamer.runtime.runners import open_runner

LOWER = 5  # bits by which the limits of running are lower here
HEADER_BYTES = 1 << 27  # of the names, entries and steps that the limits allow, as objects of Python
RUN_SECONDS, OPERATION_SECONDS = 0.2, 10e-9  # what a run may take, and for each estimated operation
WARM_UP = 20
IN_MEMORY = Path("/dev/shm")
IMAGES = torch.zeros(2, 1, 8, 8)


class Small(nn.Module):
    """Layers, views, writes in place and outputs with names, in few operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        a, b = torch.relu_(self.norm(self.conv(x))).chunk(2, 1)
        pooled = torch.cat([a + b, a.mul(2).clamp_(max=3)], 1).mean((2, 3))
        grid = torch.arange(x.shape[0] * 2, device=x.device).view(-1, 2)
        return {"logits": self.linear(pooled), "more": (pooled.softmax(-1), grid)}


RECIPE = """
name: half
model: resnet20
data: fashion-mnist
seed: 3
augment: true
training: {epochs: 3, lr: 0.1}
steps:
  - restructure.blocks: {names: [stage1.1]}
  - prune.channels: {widths: {conv1: 8}}
  - distill.recover: {epochs: 2, lr: 0.05, alpha: 0.5}
int8: false
claims: {test_top1: 92.5}
"""


def sample_pt2() -> bytes:
    """A small valid `.pt2`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return export_pt2(Small().eval(), (IMAGES,), Path(folder) / "net.pt2").read_bytes()


def sample_onnx() -> bytes:
    """A small valid `.onnx`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(Small().eval(), (IMAGES,), Path(folder) / "net.onnx").read_bytes()


def lower_limits() -> None:
    """Let networks out of files make and compute less than usual, in this process."""
    for module, names in ((watch, ("MOST_MADE", "MOST_RESULT", "MOST_ALIVE")), (work, ("FREE_WORK",))):
        for name in names:
            setattr(module, name, getattr(module, name) >> LOWER)


def take_gsr(path: Path) -> None:
    """Load and run it."""
    with opened(path) as file:
        tensors = read_tensors(file)
        taken = network(file, tensors, None) if file.header.graph is not None else None
    if taken is not None:
        assert taken._graph is not None
        run(taken, [torch.ones(2, 1, 6, 6) for _ in range(taken._graph.inputs)])


def take_pt2(path: Path) -> None:
    """Load and run it."""
    run(load_pt2(path), [IMAGES.clone()])


def run(taken: Network | Frozen, inputs: list[Tensor]) -> None:
    """Run a network twice. Raises what gossamer raises, or AssertionError where something is wrong."""
    kept = {**dict(taken.state_dict()), **{f"input {n}": x for n, x in enumerate(inputs)}}
    before = {name: _checksum(tensor) for name, tensor in kept.items()}
    inner = taken.network if isinstance(taken, Frozen) else taken
    try:
        with torch.no_grad(), noted() as followed:
            taken(*inputs)
            start = time.process_time()
            taken(*inputs)
            seconds = time.process_time() - start
    finally:
        for name, tensor in kept.items():
            assert before[name] == _checksum(tensor), f"it wrote into {name}"
    most = RUN_SECONDS + OPERATION_SECONDS * followed[0].work
    assert inner._always or seconds <= most, f"took {seconds:.2f} s for {followed[0].work:.2g} operations"


@contextlib.contextmanager
def noted() -> Iterator[list[watch.Watch]]:
    """All that watches runs inside the block."""
    usual, found = watch.Watch.__init__, list[watch.Watch]()

    def begin(self: watch.Watch, *args: Any) -> None:
        usual(self, *args)
        found.append(self)

    watch.Watch.__init__ = begin  # type: ignore[method-assign]
    try:
        yield found
    finally:
        watch.Watch.__init__ = usual  # type: ignore[method-assign]


def _checksum(tensor: Tensor) -> int:
    """Of the memory of a tensor that is not too large to be looked at so often."""
    if tensor.numel() > 1 << 16:
        return 0
    return zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def take_onnx(path: Path) -> None:
    """Look into it, open it, and make a network of it; where one of these refuses, the others are still tried."""
    errors = list[GossamerError]()
    for take in (read_contents, lambda p: open_runner("onnxruntime", p, threads=1), import_onnx):
        try:
            take(path)
        except GossamerError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def take_recipe(path: Path) -> None:
    recipe.load_recipe(path)


@dataclass(frozen=True)
class Kind:
    """Files of one kind: whole ones, ready to be changed; a change of them; and what is done with a file.

    most: bytes that a process may take for a file of so many bytes; None where nothing is promised.
    """

    whole: Callable[[], Any]
    changed: Callable[[Any, random.Random], bytes]
    take: Callable[[Path], None]
    most: Callable[[int], int] | None


def _running_bytes() -> int:
    return 2 * watch.MOST_ALIVE + HEADER_BYTES


def _gsr_bytes(size: int) -> int:
    return Limit.TENSORS.most(size) + Limit.WORK.most(size) + HEADER_BYTES + _running_bytes()


KINDS: dict[str, Kind] = {
    "gsr": Kind(
        lambda: [taken_apart(data) for data in sample_files()],
        lambda whole, draw: mutated(draw.choice(whole), draw),
        take_gsr,
        _gsr_bytes,
    ),
    "pt2": Kind(sample_pt2, changed_pt2, take_pt2, lambda size: 64 * size + _running_bytes()),
    "onnx": Kind(sample_onnx, changed_onnx, take_onnx, None),
    "yaml": Kind(RECIPE.encode, changed_recipe, take_recipe, lambda size: HEADER_BYTES),
    "image": Kind(sample_images, changed_image, take_image, lambda size: 1 << 30),
}


def fault(kind: str, data: bytes, folder: Path) -> str | None:
    """What is wrong about how a file was taken; None where all is well."""
    path, victim = folder / f"net.{kind}", folder / "victim"
    if not victim.exists():
        write(victim, b"as it was")
    write(path, data)
    found = None
    start = time.process_time()  # of this process, whatever else the machine does
    try:
        KINDS[kind].take(path)
    except GossamerError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000 or "allocate" in text:
            found = f"a message of {len(text)} characters: {text[:80]!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if (seconds := time.process_time() - start) > SLOW_SECONDS:
        return f"took {seconds:.1f} s"
    if sorted(file.name for file in folder.iterdir()) != sorted((path.name, "victim")) or path.read_bytes() != data:
        return "left other files"
    return found if victim.read_bytes() == b"as it was" else "wrote into a file"


def attempts(kind: str, folder: Path) -> Callable[[int], str | None]:
    """Tries of one kind, by number. What they need is made here, once."""
    whole, grown = KINDS[kind].whole(), [0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(WARM_UP):  # so that no worker has to import and compile again
            fault(kind, KINDS[kind].changed(whole, random.Random(number)), folder)

    def attempt(number: int) -> str | None:
        if not grown[0]:
            lower_limits()
            grown[0] = memory("VmHWM")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = KINDS[kind].changed(whole, random.Random(f"{kind} {number}"))
        found = fault(kind, data, folder)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        most = KINDS[kind].most
        if found is None and most is not None and after > before and (after << 10) - grown[0] > most(len(data)):
            found = f"took {((after << 10) - grown[0]) >> 20} MiB"
        if found is not None:
            for file in folder.iterdir():
                file.unlink()
        return found

    return attempt


def versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxruntime", "pillow", "PyYAML", "numpy")
    return {name: metadata.version(name) for name in names}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first file of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "fuzz_inputs.json")
    parser.add_argument("--step", type=int, default=1_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = {
        "first": arguments.first,
        "files": dict.fromkeys(arguments.kinds, 0),
        "processor_seconds": dict.fromkeys(arguments.kinds, 0.0),
        "seconds": 0.0,
        "faults": [],
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as name:
        tries = {}
        for kind in arguments.kinds:
            (Path(name) / kind).mkdir()
            tries[kind] = attempts(kind, Path(name) / kind)
        start = time.perf_counter()
        while min(done["files"].values()) < arguments.count and done["seconds"] < arguments.seconds:
            kind = min(done["files"], key=done["files"].__getitem__)
            before = _children_seconds()
            first = arguments.first + done["files"][kind]
            last = min(first + arguments.step, arguments.first + arguments.count)
            done["faults"] += [f"{kind} {told}" for told in watched(tries[kind], first, last)]
            done["files"][kind] = last - arguments.first
            done["processor_seconds"][kind] += round(_children_seconds() - before, 1)
            done["seconds"] = round(time.perf_counter() - start, 1)
            done["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
            arguments.out.write_text(json.dumps(done, indent=1) + "\n")
            print(f"{done['files']}, {len(done['faults'])} faults", flush=True)


if __name__ == "__main__":
    main()
