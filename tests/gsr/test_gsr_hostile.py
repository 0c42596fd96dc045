"""Small files with right checksums that ask for much: refused before it is allocated, and before it is done."""

import os
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import ROOT
from test_gsr_corrupt import header_bytes, one_tensor, packed
from torch import Tensor, nn

import gossamer
from benchmarks.robustness import _worker
from gossamer.compact import work
from gossamer.compact.network import Network
from gossamer.compact.reading import network, read_tensors
from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.format.file import GsrFile
from gossamer.gsr.format.generated import Rule
from gossamer.gsr.format.graph import Graph, State, Step, Value, write_graph
from gossamer.gsr.format.header import TensorEntry, _write_entry
from gossamer.gsr.format.ledger import Ledger, Limit
from gossamer.gsr.format.names import write_names
from gossamer.gsr.format.stored_values import Coding, GeneratedEntry
from gossamer.gsr.format.stream import Writer

X, W = Value(0), State(0)
MUCH = 32 << 20  # more than what any of these files may cost before it is refused


def header_of(entries: list[TensorEntry], named: int = 1, graph: Graph | None = None) -> bytes:
    writer = Writer()
    write_names([f"t{number}" for number in range(named)], set(), writer)
    writer.varint(len(entries) - named)
    for number, entry in enumerate(entries):
        _write_entry(entry, number, writer)
    writer.byte(graph is not None)
    if graph is not None:
        write_graph(graph, writer)
    return bytes(writer.data)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> TensorEntry:
    return TensorEntry(coding=Coding.ZEROS, dtype=dtype, shape=shape)


def made(rule: Rule, shape: tuple[int, ...], numbers: tuple[int, ...], indices: tuple[int, ...]) -> bytes:
    """A file of a few dozen bytes: a tensor that is made of zeros."""
    generated = GeneratedEntry(rule=rule, numbers=1, indices=2)
    entry = TensorEntry(coding=Coding.GENERATED, dtype=torch.float32, shape=shape, generated=generated)
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
    entry = TensorEntry(
        coding=Coding.GRID, dtype=torch.float32, shape=(count, 1), count=1, part=1, largest=(0,) * count
    )
    return packed(header_of([entry]))


def bulk(shape: tuple[int, ...], largest: int = 0) -> bytes:
    return packed(header_of([TensorEntry(coding=Coding.GRID, dtype=torch.int8, shape=shape, largest=(largest,))]))


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
@pytest.mark.slow
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
    entry = TensorEntry(coding=Coding.CONSTANT, dtype=dtype, shape=(1 << 10, 1 << 10), count=1)
    values = b"\0\0\x80\x3f"
    directory = b"\1\0\4" + zlib.crc32(values).to_bytes(4, "little")
    file = GsrFile(packed(header_of([entry]), directory, values))
    tracemalloc.start()
    tensor = read_tensors(file)["t0"]
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1 << 20  # of NumPy's memory; PyTorch's holds the tensor
    assert torch.equal(tensor.float(), torch.ones(1 << 10, 1 << 10))


def graph_of(*steps: Step, output: object = None) -> Network:
    last = Value(len(steps)) if output is None else output
    data = packed(header_of([zeros(4, 4)], graph=Graph(1, steps, last)))
    file = GsrFile(data)
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
        ((Step("to.dtype", (X, 64), {}),), "to.dtype takes something else than a ScalarType as dtype"),
        ((Step("py.add", (32, 32), {}), Step("to.dtype", (X, Value(1)), {})), "something else than a ScalarType"),
        ((Step("zeros", ([4],), {"layout": 99}),), "zeros takes something else than a Layout as layout"),
        ((Step("clone", (X,), {"memory_format": 99}),), "something else than a MemoryFormat as memory_format"),
    ],
)  # fmt: skip
def test_graphs_that_would_change_or_crash_something_are_refused(steps: tuple[Step, ...], why: str) -> None:
    with pytest.raises(CorruptFile, match=why):
        graph_of(*steps)


def power(*numbers: object) -> tuple[Step, ...]:
    return (Step("sym_size.int", (X, 0), {}), *(Step("py.pow", (Value(1), n), {}) for n in numbers))


def pooled(op: str, dims: int) -> tuple[Step, ...]:
    """A pool of a megabyte, with a window half as large for each of its elements."""
    sides = [1] * (dims - 1)
    return (
        Step("zeros", ([1, 1, *sides, 1 << 18],), {}),
        Step(op, (Value(1), [*sides, 1 << 17], [1] * dims, [*[0] * (dims - 1), 1 << 16]), {}),
    )


def sequence(op: str, gates: int, states: object) -> tuple[Step, ...]:
    """A recurrent layer of one number that goes through a long time."""
    weights = [Value(2), Value(2)]
    return (
        Step("zeros", ([1 << 17, 1, 1],), {}),
        Step("ones", ([gates, 1],), {}),
        Step("zeros", ([1, 1, 1],), {}),
        Step(op, (Value(1), states, weights, False, 1, 0.0, False, False, False), {}),
    )


ROW = Step("zeros", ([1, 1, 1, 1 << 15],), {})
GREEDY = {
    "windows in one dimension": (Step("zeros", ([1, 1 << 18],), {}),
                                 Step("avg_pool1d", (Value(1), [1 << 17], [1], [1 << 16]), {})),
    "windows in two": pooled("avg_pool2d", 2),
    "windows in three": pooled("avg_pool3d", 3),
    "largest in windows": pooled("max_pool2d", 2),
    "largest in three": pooled("max_pool3d", 3),
    "adaptive windows": (Step("unsqueeze", (X, 0), {}),
                         Step("adaptive_avg_pool2d", (Value(1), [1 << 15, 1 << 14]), {})),
    "a kernel over padding": (ROW, Step("ones", ([1, 1, 1, 1 << 14],), {}),
                              Step("conv2d", (Value(1), Value(2), None, [1, 1], [0, 1 << 13]), {})),
    "a kernel that spreads": (ROW, Step("ones", ([1, 1, 1, 1 << 14],), {}),
                              Step("conv_transpose2d.input", (Value(1), Value(2)), {})),
    "products": (Step("ones", ([1 << 12, 1 << 12],), {}), Step("matmul", (Value(1), Value(1)), {})),
    "products of a chain": (Step("einsum", ("ab,cd,ef,gh,ij,kl,mn->abcdefghijklmn", [X] * 7), {}),),
    "distances": (Step("ones", ([1 << 12, 1 << 10],), {}), Step("cdist", (Value(1), Value(1), 1.0), {})),
    "attention": (Step("ones", ([1, 1, 1 << 12, 256],), {}),
                  Step("scaled_dot_product_attention", (Value(1), Value(1), Value(1)), {})),
    "products of three": (Step("ones", ([1 << 11, 64],), {}), Step("ones", ([1 << 8, 64, 64],), {}),
                          Step("bilinear", (Value(1), Value(1), Value(2)), {})),
    "a norm by decomposition": (Step("ones", ([1024, 1024],), {}), Step("linalg_norm", (Value(1), 2), {})),
    "turns": (Step("zeros", ([1 << 21],), {}), Step("roll", (Value(1), [1] * 99, [0] * 99), {})),
    "an LSTM": sequence("lstm.input", 4, [Value(3), Value(3)]),
    "a GRU": sequence("gru.input", 3, Value(3)),
    "a tanh layer": sequence("rnn_tanh.input", 1, Value(3)),
    "sums that go on": tuple(Step("cumsum", (Value(n), 0), {}) if n else Step("zeros", ([1 << 20],), {})
                             for n in range(40)),
    "many steps": (Step("relu", (X,), {}),) * 300,
    "many steps with numbers": (Step("sym_size.int", (X, 0), {}), *(Step("py.add", (Value(1), 1), {}),) * 3000),
    "slow elements": (Step("zeros", ([1 << 20],), {}), *(Step("erfinv", (Value(1),), {}),) * 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREEDY)
def test_a_graph_that_takes_long_is_refused_before_the_step_that_would(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "FREE_WORK", 1 << 26)  # less than usual, so that the test is quick
    loaded = graph_of(*GREEDY[kind])
    with pytest.raises(BadInput, match=r"the network would take more than [\d.e+]+ operations, in \w+"):
        loaded(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (power(1 << 40), "a power above 64"),
        ((*power(60), Step("py.pow", (Value(2), 60), {})), "numbers of more than 64 bits"),
        ((Step("lt.Scalar", (X, 2), {}), Step("arange", (1 << 18,), {}), Step("reshape", (Value(2), [-1, 1]), {}),
          Step("reshape", (X, [1, 16]), {}), Step("reshape", (Value(1), [16]), {}),
          Step("zeros", ([1, 1 << 14],), {}), Step("fill_.Scalar", (Value(3), 0), {}),
          Step("reshape", (Value(6), [1, 1 << 14]), {}), Step("ones", ([1 << 14],), {"dtype": torch.bool}),
          Step("index.Tensor", (Value(8), [Value(3), Value(9)]), {})), "would make 16.0 GiB in index.Tensor"),
        ((Step("full", ([1 << 12], 1 << 20), {"dtype": torch.int64}), Step("one_hot", (Value(1), -1), {})),
         "would make 4.0 GiB in one_hot"),
        ((Step("zeros", ([1, 1, 1, 1],), {"dtype": torch.float64}),
          Step("ones", ([1, 1, 64, 64],), {"dtype": torch.float64}),
          Step("conv2d", (Value(1), Value(2), None, [1, 1], [256, 256]), {})), "would make"),
        ((Step("expand", (X, [1 << 20, 1 << 16, 4, 4]), {}), Step("sum", (Value(1),), {})), "would make"),
        ((Step("add.Tensor", (X, "zeros"), {}),), "cannot run on inputs of shape 4x4: add.Tensor: "),
        ((Step("lstm.input", (1, 2), {}),), "cannot run on inputs of shape 4x4: "),
        ((Step("py.add", (1, 1), {}), Step("zero_", (Value(1),), {})), "cannot run on inputs of shape 4x4: "),
        ((Step("reshape", (X, [3, 3]), {}),), "cannot run on inputs of shape 4x4: "),
    ],
)  # fmt: skip
def test_what_grows_with_numbers_and_data_is_foreseen(steps: tuple[Step, ...], why: str) -> None:
    loaded = graph_of(*steps)
    with pytest.raises(BadInput, match=why):
        loaded(torch.ones(4, 4))


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


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(50, 16), nn.LSTM(16, 16, 2, batch_first=True), nn.Linear(16, 50)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.lstm(self.embed(x))[0])
        return found


class Patches(nn.Module):
    """A vision transformer for images of 224 pixels, with one narrow layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 16, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1)
        return found


def convolutions() -> nn.Module:
    """As wide at its start as a ResNet for images of 224 pixels."""
    return nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(64, 64, 3, padding=1))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Recurrent, torch.zeros(4, 30, dtype=torch.int64)),
        (Patches, torch.zeros(1, 3, 224, 224)),
        (convolutions, torch.zeros(1, 3, 224, 224)),
    ],
)
@pytest.mark.slow
def test_networks_as_they_are_take_a_small_part_of_the_operations_that_they_may(
    make: Callable[[], nn.Module], inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "WORK_PER_PAIR", work.WORK_PER_PAIR >> 3)
    loaded = gossamer.load(gossamer.save(make().eval(), tmp_path / "net.gsr", (inputs,), effort="fast"))
    monkeypatch.setattr(work, "FREE_WORK", work.FREE_WORK >> 4)
    loaded(inputs)


def test_a_file_of_zeros_is_no_large_network() -> None:
    stored, given = [torch.zeros(1 << 20)], [torch.zeros(10)]
    assert work.most_work(given, stored, 1 << 13) - work.most_work(given, stored, 100) == 320 * ((1 << 20) - 12800)
    twice = [stored[0], stored[0][:5], torch.zeros(3)]
    assert work.most_work(given, twice, 1 << 20) - work.most_work(given, stored, 1 << 20) == 320 * 3


def foreign(number: int) -> str | None:
    raise KeyError("x")


def writing(number: int) -> str | None:
    Path("written").write_bytes(b"x")
    return None


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (foreign, "the fuzzer itself: .*KeyError"),
        (lambda number: os.kill(os.getpid(), 9), "7: ended by SIGKILL"),
        (writing, "7: ended by SIGXFSZ"),
        (lambda number: str(torch.ones(1 << 34)), "allocate"),
        (lambda number: "wrong", "7: 'wrong'"),
        (lambda number: None, "^$"),
    ],
)
def test_the_watched_process_notices(
    harm: _worker.Attempt, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(told, "".join(_worker.watched(harm, 7, 8)))


def test_the_watched_process_goes_on_after_a_try_that_ends_it() -> None:
    def harm(number: int) -> str | None:
        if number % 2:
            os._exit(3)
        return f"number {number}"

    assert _worker.watched(harm, 0, 4) == ["0: 'number 0'", "1: ended by status 3", "2: 'number 2'",
                                              "3: ended by status 3"]  # fmt: skip
