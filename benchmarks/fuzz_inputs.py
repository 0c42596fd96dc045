"""Changes `.pt2` files, `.onnx` files and recipes in very many ways, in their structure, and looks how they are taken.

    python benchmarks/fuzz_inputs.py --count 100000 --out results/fuzz_inputs.json

What is changed is what the file says: a value of its JSON, a field of its message, a key of its mapping; then a valid
archive, message or text is written again, so that the change gets past what would refuse a damaged file. Every file
must be refused with one of gossamer's own errors, in one line, or be taken; a network that is taken must run or refuse
with such an error, and leave its weights and the files around as they were. Each number always gives the same file.
One process for every step, one thread.
"""

import argparse
import copy
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import yaml
from torch import nn

from gossamer.cli.file_summary import read_contents
from gossamer.errors import GossamerError
from gossamer.jobs import recipe
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.runners import open_runner

SLOW_SECONDS = 10.0
MOST_MEMORY = 2 << 30  # bytes by which the process may grow over all tries
IMAGES = torch.zeros(2, 1, 8, 8)
HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 64, 255, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 70, 10**30,
    0.0, -0.5, 1e300, True, False, None, "", "x", "../../etc/passwd", "victim", "NaN", "Infinity", "9**9**9**9",
    "torch.ops.aten.fill_.Scalar", "torch.ops.aten.copy_.default", "torch.ops.aten.from_file.default",
    "torch.ops.aten.full.default", "torch.ops.aten.repeat.default", "torch.ops.aten.expand.default",
    "torch.ops.aten.chunk.default", "torch.ops.aten.dropout.default", "torch.ops.aten.matmul.default",
    "torch.ops.aten.pow.Tensor_Scalar", "torch.ops.higher_order.cond", "_operator.pow", "_operator.getitem",
    "Symbol('s0')", "Pow(Symbol('s0'), Integer(9999))", "(" * 99 + ")" * 99, "a" * 5000, [], {}, [[]], [1, 2],
    {"as_int": 1 << 40}, {"as_none": True}, {"as_tensor": {"name": "x"}}, {"as_string": "victim"}, {"as_name": "x"},
)  # fmt: skip


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


def unpacked(data: bytes) -> dict[str, Any]:
    """The files of an archive by name; JSON as values."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    return {name: json.loads(part) if name.endswith(".json") else part for name, part in parts.items()}


def packed(parts: dict[str, Any]) -> bytes:
    """A valid archive of files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, part in parts.items():
            target.writestr(name, part if isinstance(part, bytes) else json.dumps(part))
    return buffer.getvalue()


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a value of JSON."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        keys: Any = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def change(value: Any, draw: random.Random) -> None:
    """Change one place of a value of JSON: another value, another place's, gone, twice, in another order."""
    everywhere = places(value)
    if not everywhere:
        return
    where, key = draw.choice(everywhere)
    # Half of the changes keep the kind of value: those get deepest.
    alike = [a[b] for a, b in everywhere if type(a[b]) is type(where[key])]
    match draw.randrange(8):
        case 0 | 1:
            where[key] = copy.deepcopy(draw.choice(HOSTILE))
        case 2 | 3:
            where[key] = copy.deepcopy(draw.choice(alike))
        case 4 if isinstance(where[key], int):
            where[key] = draw.choice([number for number in HOSTILE if isinstance(number, int)])
        case 5:
            del where[key]
        case 6 if isinstance(where, list):
            where.insert(draw.randrange(len(where) + 1), copy.deepcopy(where[key]))
        case 7 if isinstance(where, list):
            draw.shuffle(where)
        case _ if isinstance(where, dict):
            where[str(draw.choice(HOSTILE))[:40]] = where.pop(key)


def changed_pt2(data: bytes, draw: random.Random) -> bytes:
    """The archive with one to four changes, mostly in its graph."""
    parts = unpacked(data)
    tables = [name for name in parts if name.endswith(".json")]
    model = next(name for name in tables if name.endswith("model.json"))
    for _ in range(draw.choice((1, 1, 2, 4))):
        match draw.randrange(12):
            case 0:
                parts[draw.choice(list(parts))] = draw.randbytes(draw.choice((0, 1, 7, 64)))
                return packed(parts)
            case 1:
                del parts[draw.choice(list(parts))]
                return packed(parts)
            case 2 | 3:
                change(parts[draw.choice(tables)], draw)
            case 4:
                change(parts[model], draw)
            case _:
                graph = parts[model]["graph_module"].get("graph")
                change(graph.get("nodes", graph) if isinstance(graph, dict) else parts[model], draw)
    return packed(parts)


def changed_onnx(data: bytes, draw: random.Random) -> bytes:
    """The model with one to four fields changed, taken away or repeated."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        messages = [model]
        for message in messages:
            for field, value in message.ListFields():
                if field.message_type is not None:
                    messages += list(value) if _many(value) else [value]
        message = draw.choice(messages)
        fields = message.ListFields() or [(field, None) for field in message.DESCRIPTOR.fields]
        field, value = draw.choice(fields if draw.random() < 0.8 else [(f, None) for f in message.DESCRIPTOR.fields])
        _change_field(message, field, value, draw)
    return bytes(model.SerializeToString())


def _many(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _change_field(message: Any, field: Any, value: Any, draw: random.Random) -> None:
    try:
        if draw.random() < 0.2:
            message.ClearField(field.name)
        elif field.message_type is not None:
            if _many(value) and len(value):
                value.append(copy.deepcopy(draw.choice(list(value))))
        elif _many(value):
            value[draw.randrange(len(value))] = draw.choice(HOSTILE)
        else:
            other = draw.choice(HOSTILE)
            setattr(message, field.name, other.encode() if field.type == field.TYPE_BYTES else other)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        pass  # not a value of this field


def changed_recipe(data: bytes, draw: random.Random) -> bytes:
    """The recipe with one to four changes, of its values or of its text."""
    if draw.random() < 0.3:
        text = bytearray(data)
        for _ in range(draw.choice((1, 2, 4))):
            at = draw.randrange(len(text))
            text[at : at + draw.choice((0, 1, 5))] = draw.choice(
                (b"*a", b"&a ", b"[", b"{", b"!!", b"\xff", b"\n", b": ")
            )
        return bytes(text)
    raw = yaml.safe_load(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        change(raw, draw)
    return yaml.safe_dump(raw).encode()


def take_pt2(path: Path) -> None:
    """Load and run it; raises what gossamer raises, or AssertionError where something was changed."""
    network = load_pt2(path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        with torch.no_grad():
            network(IMAGES)
    finally:
        for name, tensor in network.state_dict().items():
            same = torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (tensor, before[name])))
            assert same, f"it wrote into {name}"


def take_onnx(path: Path) -> None:
    """Look into it and open it."""
    read_contents(path)
    open_runner("onnxruntime", path, threads=1)


def take_recipe(path: Path) -> None:
    recipe.load(path)


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[bytes, random.Random], bytes], Callable[[Path], None]]] = {
    "pt2": (sample_pt2, changed_pt2, take_pt2),
    "onnx": (sample_onnx, changed_onnx, take_onnx),
    "yaml": (RECIPE.encode, changed_recipe, take_recipe),
}


def fault(kind: str, data: bytes, folder: Path) -> str | None:
    """What is wrong about how a file was taken; None where all is well."""
    victim, path = folder / "victim", folder / f"net.{kind}"
    victim.write_bytes(b"as it was")
    path.write_bytes(data)
    start = time.process_time()  # of this process, whatever else the machine does
    found = None
    try:
        KINDS[kind][2](path)
    except GossamerError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000:
            found = f"a message of {len(text)} characters: {text[:80]!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if time.process_time() - start > SLOW_SECONDS:
        return f"took {time.process_time() - start:.1f} s"
    if sorted(file.name for file in folder.iterdir()) != sorted((path.name, "victim")) or path.read_bytes() != data:
        return "left other files"
    return found if victim.read_bytes() == b"as it was" else "wrote into a file"


def fuzz(kind: str, first: int, last: int) -> list[str]:
    """Faults found in the files number `first` up to `last`."""
    whole = KINDS[kind][0]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(first, last):
            found = fault(kind, KINDS[kind][1](whole, random.Random(f"{kind} {number}")), folder)
            if found is not None:
                faults.append(f"{kind} {number}: {found}")
                for file in folder.iterdir():
                    file.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return [*faults, *([f"{kind} {first} to {last}: {grown >> 20} MiB"] if grown > MOST_MEMORY else [])]


def in_its_own_process(kind: str, first: int, last: int) -> list[str]:
    """`fuzz` in a process that may die."""
    command = [sys.executable, __file__, "--kind", kind, "--first", str(first), "--last", str(last)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    except subprocess.TimeoutExpired:
        return [f"{kind} {first} to {last}: hangs"]
    if done.returncode:
        return [f"{kind} {first} to {last}: ended with {done.returncode}: {done.stderr[-300:]}"]
    return list(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="of each kind")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz_inputs.json")
    parser.add_argument("--step", type=int, default=2_000)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--first", type=int)
    parser.add_argument("--last", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.last is not None:
        print(json.dumps(fuzz(arguments.kind, arguments.first, arguments.last)))
        return
    done: dict[str, Any] = {"files": dict.fromkeys(KINDS, 0), "seconds": 0.0, "faults": []}
    if arguments.out.is_file():
        done = json.loads(arguments.out.read_text())
    while min(done["files"].values()) < arguments.count:
        kind = min(done["files"], key=done["files"].get)
        start, first = time.perf_counter(), done["files"][kind]
        last = min(first + arguments.step, arguments.count)
        done["faults"] += in_its_own_process(kind, first, last)
        done["files"][kind], done["seconds"] = last, done["seconds"] + time.perf_counter() - start
        arguments.out.write_text(json.dumps(done, indent=1))
        print(f"{done['files']}, {len(done['faults'])} faults", flush=True)


if __name__ == "__main__":
    main()
