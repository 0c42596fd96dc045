"""Damaged, hostile and old files: refused with the name of the section, or read exactly."""

import base64
import random
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from torch import nn

import gossamer
from benchmarks.robustness import fuzz_gsr
from gossamer.errors import CorruptFile
from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.file import GsrFile
from gossamer.gsr.format.graph import (
    Graph,
    State,
    Step,
    Value,
    read_graph,
    write_graph,
)
from gossamer.gsr.format.names import read_names, write_names
from gossamer.gsr.format.operations import NAMES, VIEWS, function_of
from gossamer.gsr.format.stream import Reader, Writer

FILES = fuzz_gsr.sample_files()
WHOLE = [fuzz_gsr.content(data) for data in FILES]


def packed(plain: bytes, directory: bytes = b"\0", payload: bytes = b"", version: int = 1) -> bytes:
    """A file with right checksums around a header."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    again = packer.compress(plain) + packer.flush()
    writer = Writer()
    writer.data += b"GSR" + bytes([version])
    writer.varint(len(again))
    writer.varint(len(plain))
    writer.data += again + directory
    return bytes(writer.data) + struct.pack("<I", zlib.crc32(writer.data)) + payload


def one_tensor(*shape: int, coding: int = 1, rest: bytes = b"") -> bytes:
    """A header with one tensor and no graph."""
    writer = Writer()
    write_names(["t"], set(), writer)
    writer.varint(0)
    writer.byte(coding)
    writer.varint(len(shape))
    for size in shape:
        writer.varint(size)
    return bytes(writer.data) + rest + b"\0"


def test_the_smallest_file_is_read() -> None:
    graph, tensors = fuzz_gsr.content(packed(one_tensor(2, 3)))
    assert graph is None
    assert torch.equal(tensors["t"], torch.zeros(2, 3))


@pytest.mark.parametrize("which", range(len(FILES)))
def test_every_cut_is_refused(which: int) -> None:
    for end in range(len(FILES[which])):
        with pytest.raises(CorruptFile):
            fuzz_gsr.content(FILES[which][:end])


@pytest.mark.slow
def test_every_flipped_bit_is_noticed() -> None:
    data = FILES[1]
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFile):
            fuzz_gsr.content(bytes(changed))


@pytest.mark.slow
def test_thousands_of_damaged_files_are_refused_or_exact() -> None:
    assert fuzz_gsr.fuzz(FILES, 0, 4000) == []


def test_the_fuzzer_notices_a_wrong_file() -> None:
    assert fuzz_gsr.fault(FILES[0], WHOLE[0]) is None
    assert fuzz_gsr.fault(packed(one_tensor(2)), WHOLE[0]) == "accepted, but it is not what was written"
    assert "TypeError" in str(fuzz_gsr.fault(None, WHOLE[0]))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_refused(data: bytes) -> None:
    for file in (data, b"GSR\x01" + data, packed(data)):
        with pytest.raises(CorruptFile):
            fuzz_gsr.content(file)


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_damage_behind_right_checksums_never_crashes(seed: int) -> None:
    assert fuzz_gsr.fault(fuzz_gsr.damaged_inside(FILES[seed % 3], random.Random(seed)), None) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin like"),
        (b"PK\x03\x04" + bytes(100), "does not begin like"),
        (b"GSR\x03" + bytes(100), "version 3 of the format, this gossamer reads up to 2: install a newer one"),
        (b"GSR\x00" + bytes(100), "version 0"),
        (packed(one_tensor(2, 3))[:-1] + b"x", "section 'header' is damaged: its checksum is wrong"),
        (packed(one_tensor(2, 3)) + b"x", "was cut off or added to"),
        (packed(one_tensor(2, 3) + b"x"), "1 bytes too many"),
        (packed(one_tensor(1 << 39, 1 << 39)), "larger than a file of"),
        (packed(one_tensor(*[1 << 20] * 32)), "larger than a file of"),
        (packed(one_tensor(1 << 41)), "number above"),
        (packed(one_tensor(*[1] * 33)), "number above 32"),
        (packed(one_tensor(1 << 26, coding=4, rest=b"\x07")), "larger than a file of"),
        (packed(one_tensor(0, coding=3)), "an empty tensor holds values"),
        (packed(one_tensor(2, coding=15)), "coding 15, which is unknown"),
        (packed(one_tensor(2, coding=3)), "sections do not fit its tensors"),
        (packed(one_tensor(2, coding=6, rest=b"\x01\x02\x02")), "entry 2 of a codebook of 2"),
        (packed(one_tensor(2, 3, coding=0x84, rest=b"\x08\x01")), "a lag of 4"),
        (packed(one_tensor(2), b"\x01\x05\x00" + bytes(4)), "kind 5, which is unknown"),
        (packed(one_tensor(2), b"\xff\xff\xff\xff\x0f"), "number above"),
        (packed(b"\xff" * 5), "number above"),
        (packed(b"\x02\x41\x01a\x41\x01a\0"), "two tensors have one name"),
        (packed(b"\x01\x41\x03a.b"), "no part of a name"),
    ],
)
def test_a_hostile_file_is_refused_with_the_reason(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gsr"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=message if data else "is empty") as caught:
        gossamer.load(path)
    assert "hostile.gsr" in str(caught.value)


def header_bytes(graph: Graph) -> bytes:
    writer = Writer()
    write_graph(graph, writer)
    return bytes(writer.data)


X, W = Value(0), State(0)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(1, (Step("relu_", (X,), {}),), Value(1)), "relu_ writes into an input or a stored tensor"),
        (Graph(1, (Step("zero_", (W,), {}),), X), "zero_ writes into"),
        (Graph(1, (Step("view", (X, [1]), {}), Step("zero_", (Value(1),), {})), X), "zero_ writes into"),
        (Graph(1, (Step("chunk", (W, 2), {}), Step("py.getitem", (Value(1), 0), {}), Step("zero_", (Value(2),), {})),
               X), "zero_ writes into"),
        (Graph(1, (Step("relu", (State(7),), {}),), X), "takes a tensor that is not stored"),
        (Graph(0, (), None), "has no inputs"),
        (Graph(1, (), [[[[[[[X]]]]]]]), "nested more than 6 deep"),
        (Graph(1, (), "long" * 20), "number above 64"),
    ],
)  # fmt: skip
def test_a_hostile_graph_is_refused(graph: Graph, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        fuzz_gsr.content(packed(one_tensor(2)[:-1] + b"\1" + header_bytes(graph)))


def test_a_graph_cannot_take_what_comes_later() -> None:
    data = bytearray(header_bytes(Graph(1, (Step("relu", (X,), {}),), Value(1))))
    assert data[4] == 32
    data[4] = 33
    with pytest.raises(CorruptFile, match="what does not exist yet"):
        read_graph(Reader(bytes(data), "header"), 1)


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=15),
        st.sampled_from([torch.float16, torch.bool, torch.channels_last, torch.strided, X, W, State(3)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=9), st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=12,
)  # fmt: skip


def depth(value: object) -> int:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(depth, items), default=0) if isinstance(value, dict | list | tuple) else 0


@pytest.mark.slow
@given(st.lists(values, max_size=5).filter(lambda args: all(depth(arg) <= 6 for arg in args)))
@settings(max_examples=300)
def test_any_arguments_come_back(args: list[object]) -> None:
    graph = Graph(1, (Step("cat", tuple(args), {}), Step("relu", (X,), {"dtype": torch.float32})), (Value(1), X))
    found = read_graph(Reader(header_bytes(graph), "header"), 4)
    assert found == graph
    assert repr(found) == repr(graph)  # True and 1, 0.0 and -0.0 are equal


part = st.text(
    st.characters(blacklist_characters=".", blacklist_categories=("Cs",)), min_size=1, max_size=8
) | st.sampled_from(["weight", "bias", "running_mean", "running_var", "num_batches_tracked", "0", "conv"])


@given(st.lists(st.lists(part, min_size=1, max_size=9).map(".".join), unique=True, max_size=30), st.data())
@settings(max_examples=200)
@pytest.mark.slow
def test_any_names_come_back(names: list[str], data: st.DataObject) -> None:
    buffers = set(data.draw(st.lists(st.sampled_from(names), max_size=10))) if names else set()
    writer = Writer()
    write_names(names, buffers, writer)
    reader = Reader(bytes(writer.data), "header")
    assert read_names(reader) == (names, buffers)
    reader.end()


@given(st.integers(-(2**62), 2**62))
def test_numbers_come_back_and_have_one_spelling(number: int) -> None:
    writer = Writer()
    writer.signed(number)
    assert Reader(bytes(writer.data), "header").signed(2**62) == number
    longer = bytes([*writer.data[:-1], writer.data[-1] | 128, 0])
    with pytest.raises(CorruptFile, match=r"needless bytes|number above"):
        Reader(longer, "header").signed(2**62)


def test_every_operation_of_the_list_exists_once() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert [name for name in NAMES if function_of(name) is None] == []


def test_the_description_of_the_format_names_the_operations_and_the_dictionary() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ((?:`[^`]+` ?)+)\|$", text, re.MULTILINE)
    listed = [
        (int(first) + place, name) for first, names in rows for place, name in enumerate(re.findall("`(.*?)`", names))
    ]
    assert listed == list(enumerate(NAMES))
    assert f"CRC `{zlib.crc32(DICTIONARY):08x}`, {len(DICTIONARY)} bytes" in " ".join(text.split())
    views = text.partition("May give views:")[2].partition("\n\n")[0]
    assert set(re.findall("`(.*?)`", views)) == VIEWS


# `fuzz_gsr.sample_files()[1]` as the first release wrote it; never to be changed after that.
GOLDEN = """
R1NSAUJiY3FiNHAB+pHRxInRlKGFhQWYRtjYmBmB4izARMDAwMAkyM7QysTlYAaMeS42JmYuJqAaIGRkA9uB6QioZZISEBsAAgCCAV00lY0CxAIA/hPv
hP0LYCUSUps2zcxMPQZAR75qtJI+KE8YPlZvJT6AP8QHUT7Id1s+zVweP54leD9oq8s9V3dNP4iLdj5GI84+SZplP7QZxj4Qa+A9qnKqvSCdXbwAANy7
oHVkPWYFrz3QTqK8ThfUvSixfT3MJxk9H4VrvgAAAADNzMw9UriePohPgz4l6W++G4ZPvYSqCZO2L/VySsC1OIjeWbnpWF7pYiL31sICj+Ok+1o9lBM1
3l+le5WZfiUfcBOYpZPYq+ltTQwq1JacT8VDxEI8Dtn7SfEEaq7tBVkI5VyQvvfvKEkxV8Tt3iWaq2ejHC/2qBP49fgMAqeXTlfsQpXPSiX2oUfOtQR+
5ucj77uDCFRdtYPQu0cDDjgSV1yC9ai1+hk8jItwl1MByR9WgZTOifWgcIkjfR9mU0UDvRp0lq3JD+QBRqDVjHvcXvtPy1KnGu85xeLk4/8fJeXPpCGK
+MWAyccw81EXN6mtsdk8MJIQFDLZ8aqPXiSB8O0cJVeUShAFBZOZxSxu6TfdaX0X2aQCfl1dvjW8qiZy2k19M3RjozeqtRjMGWON6hZx1ohSrFL8zc7Q
lDAQ5i82mLAjKL0XLqw2ioUIRS7iC0ACNYOgag==
"""


def test_an_old_file_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "golden.gsr"
    path.write_bytes(base64.b64decode(GOLDEN))
    model = gossamer.load(path)
    assert isinstance(model, nn.Module)
    assert zlib.crc32(b"".join(t.numpy().tobytes() for t in model.state_dict().values())) == 0x6008235A
    x = torch.arange(72.0).reshape(2, 1, 6, 6) / 72
    with torch.no_grad():
        assert torch.allclose(
            model(x), torch.tensor([[6.22416, -0.776488, -5.118089], [6.366894, -1.26282, -5.519461]]), atol=1e-5
        )
    assert GsrFile(path.read_bytes()).header.graph is not None
