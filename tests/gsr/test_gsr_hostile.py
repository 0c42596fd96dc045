"""Small files with right checksums that ask for much: refused before it is allocated, and before it is done."""

import os
import tracemalloc
import zlib
from pathlib import Path

import fuzz_gsr
import pytest
import torch
from places import ROOT
from test_gsr_corrupt import header_bytes, one_tensor, packed
from torch import Tensor, nn

import gossamer
from gossamer.compact.network import Network
from gossamer.compact.reading import network, read_tensors
from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.format.file import File
from gossamer.gsr.format.generated import Rule
from gossamer.gsr.format.graph import Graph, State, Step, Value, write_graph
from gossamer.gsr.format.header import Entry, _write_entry
from gossamer.gsr.format.ledger import Ledger, Limit
from gossamer.gsr.format.names import write_names
from gossamer.gsr.format.stored_values import Coding, MadeOf
from gossamer.gsr.format.stream import Writer

X, W = Value(0), State(0)
FILES = fuzz_gsr.sample_files()
MUCH = 32 << 20  # more than what any of these files may cost before it is refused


def header_of(entries: list[Entry], named: int = 1, graph: Graph | None = None) -> bytes:
    writer = Writer()
    write_names([f"t{number}" for number in range(named)], set(), writer)
    writer.varint(len(entries) - named)
    for number, entry in enumerate(entries):
        _write_entry(entry, number, writer)
    writer.byte(graph is not None)
    if graph is not None:
        write_graph(graph, writer)
    return bytes(writer.data)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Entry:
    return Entry(coding=Coding.ZEROS, dtype=dtype, shape=shape)


def made(rule: Rule, shape: tuple[int, ...], numbers: tuple[int, ...], indices: tuple[int, ...]) -> bytes:
    """A file of a few dozen bytes: a tensor that is made of zeros."""
    made_of = MadeOf(rule=rule, numbers=1, indices=2)
    entry = Entry(coding=Coding.MADE, dtype=torch.float32, shape=shape, made_of=made_of)
    return packed(header_of([entry, zeros(*numbers), zeros(*indices, dtype=torch.uint8)]))


def names(groups: list[tuple[int, list[str], str]]) -> bytes:
    writer = Writer()
    writer.varint(len(groups))
    for shared, new, leaf in groups:
        writer.byte(min(shared, 7) << 3 | min(len(new), 3) << 6)
        if shared >= 7:
            writer.varint(shared - 7)
        if len(new) >= 3:
            writer.varint(len(new) - 3)
        for part in new:
            writer.text(part)
        writer.text(leaf)
        writer.byte(0)
    writer.varint(0)
    return packed(bytes(writer.data) + b"\1\1\1" * len(groups) + b"\0")


def long_names(count: int) -> bytes:
    return names([(0, ["m" * 1000] * 60, "a")] + [(60, [], f"w{number}") for number in range(count)])


def long_lists(count: int) -> bytes:
    """Steps that take long lists."""
    steps = tuple(Step("cat", ([[1] * 4000] * 25,), {}) for _ in range(count))
    return packed(one_tensor(2)[:-1] + b"\1" + header_bytes(Graph(1, steps, X)))


def pieces(count: int) -> bytes:
    entry = Entry(coding=Coding.GRID, dtype=torch.float32, shape=(count, 1), count=1, part=1, largest=(0,) * count)
    return packed(header_of([entry]))


def bulk(shape: tuple[int, ...], largest: int = 0) -> bytes:
    return packed(header_of([Entry(coding=Coding.GRID, dtype=torch.int8, shape=shape, largest=(largest,))]))


HOSTILE = {
    "a codebook wider than its tensor": lambda: made(Rule.PRODUCT, (1 << 20, 1), (1, 1, 1 << 25), (1, 1 << 20)),
    "many small codebooks": lambda: made(Rule.RESIDUAL, (4096, 4096), (4096, 1, 4096), (4096, 4096)),
    "a long row of codebooks": lambda: made(Rule.RESIDUAL, (1, 1), (1 << 25, 1, 1), (1 << 25, 1)),
    "names that share a long path": lambda: long_names(2000),
    "modules within modules": lambda: names([(0, ["m"] * 1000, "w"), (1000, ["m"] * 1000, "w")]),
    "many tensors": lambda: packed(header_of([zeros(0)] * 70_000)),
    "a graph of long lists": lambda: long_lists(4),
    "dimensions without strides": lambda: packed(one_tensor(1 << 40, 1 << 40, 0)),
    "many pieces": lambda: pieces(200_000),
    "many integers": lambda: bulk((1 << 20, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_that_asks_for_much_is_refused_cheaply(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gsr"
    path.write_bytes(HOSTILE[kind]())
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        gossamer.load(path, into=nn.Linear(1, 1))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < MUCH


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_a_constant_takes_the_memory_of_its_tensor(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(coding=Coding.CONSTANT, dtype=dtype, shape=(1 << 10, 1 << 10), count=1)
    values = b"\0\0\x80\x3f"
    directory = b"\1\0\4" + zlib.crc32(values).to_bytes(4, "little")
    file = File(packed(header_of([entry]), directory, values))
    tracemalloc.start()
    tensor = read_tensors(file)["t0"]
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1 << 20  # of NumPy's memory; PyTorch's holds the tensor
    assert torch.equal(tensor.float(), torch.ones(1 << 10, 1 << 10))


def graph_of(*steps: Step, output: object = None) -> Network:
    last = Value(len(steps)) if output is None else output
    data = packed(header_of([zeros(4, 4)], graph=Graph(1, steps, last)))
    file = File(data)
    return network(file, read_tensors(file), None)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((Step("batch_norm", (X, None, None, W, W, True, 0.1, 1e-5, False), {}),), "changes its running mean"),
        ((Step("batch_norm", (X, None, None, W), {"running_var": W, "training": True}),), "changes its running mean"),
        ((Step("instance_norm", (X, None, None, W, W, True, 0.1, 1e-5, False), {}),), "changes its running mean"),
        ((Step("py.add", ([W], []), {}), Step("py.getitem", (Value(1), 0), {}), Step("zero_", (Value(2),), {})),
         "py.add takes something else than numbers"),
        ((Step("py.getitem", ([X, W], 1), {}), Step("zero_", (Value(1),), {})), "takes something else than a result"),
        ((Step("py.mul", ([1], 1 << 40), {}),), "py.mul takes something else than numbers"),
        ((Step("scaled_dot_product_attention", (X, X, X, None, 0.5), {}),), "draws random numbers"),
    ],
)  # fmt: skip
def test_graphs_that_would_change_something_are_refused(steps: tuple[Step, ...], why: str) -> None:
    with pytest.raises(CorruptFile, match=why):
        graph_of(*steps)


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inner: nn.Module = Deep(depth - 1) if depth else nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


def long_name() -> nn.Module:
    model = nn.Module()
    model.register_buffer("a" * 1025, torch.zeros(1))
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Deep(70), "modules are nested more than 64 deep"),
        (long_name(), "number above 1024"),
        (nn.ParameterList([torch.zeros([1] * 33)]), "number above 32"),
    ],
)
def test_what_a_reader_would_refuse_is_refused_when_it_is_saved(model: nn.Module, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{type(model).__name__} cannot be stored: .*{why}"):
        gossamer.save(model, tmp_path / "net.gsr", effort="fast")
    assert not list(tmp_path.iterdir())


def test_a_network_beyond_a_limit_is_refused_when_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.gsr.format.file.Ledger", lambda size: Ledger(size - (1 << 16)))
    with pytest.raises(BadInput, match="Linear cannot be stored: its names are larger than a file of"):
        gossamer.save(nn.Linear(3, 3), tmp_path / "net.gsr")


def test_a_ledger_counts_up_to_its_limits() -> None:
    ledger = Ledger(10)
    ledger.charge(Limit.NAMES, (1 << 22) + 2559)
    ledger.charge(Limit.NAMES, 1)
    with pytest.raises(CorruptFile, match=r"names are larger than a file of 10 bytes may hold: at most 4,196,864 char"):
        ledger.charge(Limit.NAMES, 1)
    assert ledger.at_once([1 << 20, 1 << 26]) == 4
    with pytest.raises(CorruptFile, match="sections are larger"):
        ledger.at_once([1, 1 << 29])


def test_the_description_of_the_format_states_the_limits() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    for limit in Limit:
        free, each = limit.value[2:]
        row = f"| 2^{free.bit_length() - 1} | {'1' if each == 1 else f'2^{each.bit_length() - 1}'} |"
        assert row in text, limit


def test_thousands_of_files_that_say_something_else_do_no_harm() -> None:
    assert fuzz_gsr.watched(FILES, 0, 300) == []


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda data: (_ for _ in ()).throw(KeyError("x")), "KeyError"),
        (lambda data: os.kill(os.getpid(), 9), "ended by SIGKILL"),
        (lambda data: Path("written").write_bytes(b"x"), "ended by SIGXFSZ"),
        (lambda data: torch.ones(1 << 34), "allocate"),
    ],
)
def test_the_watched_fuzzer_notices(harm, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz_gsr, "File", harm)
    assert told in "".join(fuzz_gsr.watched(FILES, 7, 8))
