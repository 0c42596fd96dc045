"""Floats as they come: files of sparse, half-precise, repeated and plain values are never larger than gzip or xz."""

import gzip
import lzma
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_gsr_values import noise, same, stored_bytes
from torch import Tensor

from gossamer.compact.reading import read_tensors
from gossamer.compact.writing import describe_file
from gossamer.errors import CorruptFile
from gossamer.gsr.format.file import GsrFile, build_file
from gossamer.gsr.format.header import FileHeader, entry_of
from gossamer.gsr.format.packed import pack, unpack, worth_packing
from gossamer.gsr.format.split import FloatSplit, Joiner, pack_bits, splits, unpack_bits
from gossamer.gsr.format.stored_values import Coding, as_stored, raw_bytes
from gossamer.models.shipped import pretrained


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparse(tensor: Tensor, zeros: float) -> Tensor:
    """The smallest magnitudes set to 0; vectors as they are."""
    if tensor.ndim < 2:
        return tensor
    smallest = tensor.abs().flatten().argsort()[: round(zeros * tensor.numel())]
    return tensor.flatten().index_fill(0, smallest, 0.0).reshape(tensor.shape)


def lenet300(zeros: float) -> list[Tensor]:
    shapes = [(300, 784), (300,), (100, 300), (100,), (10, 100), (10,)]
    return [sparse(random(*shape, seed=number), zeros) for number, shape in enumerate(shapes)]


def shipped(name: str, data: str, zeros: float) -> list[Tensor]:
    """A trained network of this package, its weights rounded to half precision when it was stored."""
    return [sparse(tensor, zeros) for tensor in pretrained(name, data).state_dict().values()]


def trained(zeros: float) -> list[Tensor]:
    """Weights of full precision that a little training has moved."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 200), torch.nn.ReLU(), torch.nn.Linear(200, 50))
    x, y = torch.randn(256, 64), torch.randint(50, (256,))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [sparse(tensor, zeros) for tensor in model.state_dict().values()]


def chosen(count: int, *shape: int) -> Tensor:
    """Elements out of so many different values."""
    return random(count)[torch.randint(count, shape, generator=torch.Generator().manual_seed(1))]


SPECIAL = np.array([0x7FC00001, 0xFF800001, 0xFFC00000, 0x7F800000, 1, 0x80000100, 0x80000000, 0, 5], np.uint32)
MASKED = random(200, 300) * (torch.rand(200, 300, generator=torch.Generator().manual_seed(3)) < 0.08)  # half are -0.0
CASES: dict[str, Callable[[], list[Tensor]]] = {
    "random, dense": lambda: [random(100, 300), random(300)],
    "random, 50 % zeros": lambda: [sparse(random(100, 300), 0.5), random(300)],
    "random, 75 % zeros": lambda: [sparse(random(100, 300), 0.75), random(300)],
    "random, 99 % zeros": lambda: [sparse(random(200, 500), 0.99), random(300)],
    "LeNet-300-100, 92 % zeros": lambda: lenet300(0.92),
    "shipped LeNet-300-100": lambda: shipped("lenet300", "fashion-mnist", 0)[2:],
    "shipped LeNet-300-100, 92 % zeros": lambda: shipped("lenet300", "fashion-mnist", 0.92),
    "shipped ResNet-14": lambda: shipped("resnet14", "digits", 0)[:40],
    "shipped ResNet-14, 80 % zeros": lambda: shipped("resnet14", "digits", 0.8)[:60],
    "trained": lambda: trained(0),
    "trained, 70 % zeros": lambda: trained(0.7),
    "trained, bfloat16": lambda: [tensor.bfloat16().float() for tensor in trained(0)],
    "zeros of both signs": lambda: [MASKED],
    "zeros at random": lambda: [MASKED + 0.0],
    "100 different values": lambda: [chosen(100, 100, 300)],
    "3,000 different values": lambda: [chosen(3000, 100, 300)],
    "10,000 different values": lambda: [chosen(10000, 100, 500)],
    "five decimals": lambda: [(random(100, 300) * 1e5).round() / 1e5],
    "rows that occur again": lambda: [random(40, 300)[torch.arange(150) ** 2 % 40]],
    "constants": lambda: [torch.full((300, 100), 0.3), torch.ones(100), torch.cat([torch.ones(5000), random(5000)])],
    "denormals": lambda: [random(100, 300) * 1e-38],
    "special values": lambda: [torch.from_numpy(np.tile(SPECIAL, 900).view(np.float32)), random(50, 50)],
    "any bits": lambda: [noise(100, 300)],
    "other dtypes": lambda: [
        random(50, 200).double() / 3,
        random(50, 200).half(),
        torch.arange(9000),
        MASKED.bfloat16(),
    ],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_a_file_is_never_larger_than_gzip_or_xz_of_the_raw_bytes(name: str) -> None:
    """Counted without the header of the file (names, shapes, checksums), which raw bytes do not have; theirs counts."""
    tensors = CASES[name]()
    data = stored_bytes(tensors)
    file = GsrFile(data)
    assert all(same(found, tensor) for found, tensor in zip(read_tensors(file).values(), tensors, strict=True))
    raw = b"".join(raw_bytes(tensor).tobytes() for tensor in tensors)
    smallest = min(len(gzip.compress(raw, 9)), len(lzma.compress(raw, preset=9)))
    assert len(data) - file.header_bytes <= smallest
    # What is not made of noise alone gains more than any header.
    assert len(data) <= smallest or name in ("any bits", "special values")


@pytest.mark.slow
def test_zeros_make_a_network_small() -> None:
    """266,610 float32 weights, 8 % of them not 0: their places take 13 kB, signs and exponents 7, the rest is noise."""
    assert len(stored_bytes(lenet300(0.92))) < 80_000
    assert len(stored_bytes(lenet300(0.99))) < 14_000


def test_floats_that_gain_little_stay_raw_where_they_shall_open_fast() -> None:
    dense, pruned = random(200, 300), sparse(random(200, 300), 0.9)
    assert [one.coding for one in describe_file([dense, pruned], "fast")] == [Coding.RAW, Coding.SPLIT]
    assert describe_file([dense], "default")[0].coding == Coding.SPLIT


@given(st.integers(0, 31), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_numbers_of_any_width_come_back(width: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << width, count, dtype=np.uint32)
    data = pack_bits(numbers, width)
    assert len(data) == -(-count * width // 8)
    assert int.from_bytes(data, "little") == sum(int(number) << i * width for i, number in enumerate(numbers))
    assert np.array_equal(unpack_bits(np.frombuffer(data, np.uint8), 0, count, width), numbers)
    first = count // 3
    assert np.array_equal(
        unpack_bits(np.frombuffer(data, np.uint8), first * width, count - first, width), numbers[first:]
    )


def test_many_numbers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.gsr.format.split.SPREAD", 64)
    numbers = np.arange(1000, dtype=np.uint32)
    assert np.array_equal(unpack_bits(np.frombuffer(pack_bits(numbers, 13), np.uint8), 0, 1000, 13), numbers)


def joined(q: np.ndarray, split: FloatSplit, low: bytes) -> np.ndarray | None:
    """In two steps, as a tensor of several blocks is."""
    joiner, half = Joiner(split, 0, 0, low), q.size // 2
    parts = [joiner.join(q[:half]), joiner.join(q[half:])]
    return None if any(part is None for part in parts) or not joiner.done else np.concatenate(parts)


@given(npst.arrays(np.uint32, st.integers(1, 60), elements=st.one_of(
    st.sampled_from([0, 0x80000000, 1, 0x3F800000, 0x7F800001, 0xFFC00000]), st.integers(0, 2**32 - 1),
)))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_floats_are_joined_again(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    for split, q, low in splits(values) if bits.any() else ():
        assert split.reason(bits.size) == ""
        assert len(low) == split.bytes
        found = joined(q, split, low)
        assert found is not None
        assert np.array_equal(found.view(np.uint32), bits)


def test_what_does_not_fit_together_is_not_joined() -> None:
    split, q, low = splits(np.array([0.1, -0.3, 0.0, 7.5], np.float32))[0]
    for wrong in (q[:3], np.append(q, 1), np.where(q == 0, 1, q), np.where(q == 1, 2000, q)):
        assert joined(wrong, split, low) is None
    width = split.shift - split.cut
    assert 3 * width % 8
    assert joined(q, split, low[:-1] + bytes([low[-1] | 128])) is None


def test_a_stream_gives_all_its_bytes_or_nothing() -> None:
    data = raw_bytes(random(30, 40).repeat(3, 1))
    stream, target = pack(data), np.empty_like(data)
    assert len(stream) < 0.4 * data.size
    assert unpack(stream, target)
    assert np.array_equal(target, data)
    for wrong in (stream[:-1], stream + b"\0", stream[:50], b"", b"\xff" * 20):
        assert not unpack(wrong, target)
    assert not unpack(stream, target[:-1])
    assert not unpack(stream, np.append(target, np.uint8(0)))


def test_copies_are_noticed_wherever_they_are() -> None:
    rows = random(400, 999)
    assert not worth_packing(raw_bytes(rows), 0.8 * rows.numel() * 4)
    again = torch.cat([rows, rows[:100].flip(0)])
    assert worth_packing(raw_bytes(again), 0.8 * again.numel() * 4)
    assert worth_packing(raw_bytes(sparse(again, 0.8)), 0.1 * again.numel() * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 24}, "24 of 23 bits are left out"),
        ({"shift": 32, "cut": 0}, "0 of 32 bits"),
        ({"top": 256}, "more than 31 bits"),
        ({"counts": (12,)}, "12 values of 9 are not zero"),
        ({"counts": (4,)}, "its sections do not fit"),
        ({"top": 0}, "do not fit together"),
    ],
)
def test_a_file_whose_split_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    stored = next(one for one in as_stored(random(3, 3)) if one.coding == Coding.SPLIT)
    assert stored.split is not None
    entry = replace(entry_of(stored), split=replace(stored.split, **change))
    header = FileHeader(names=["t"], named=1, buffers=set(), entries=[entry], graph=None)
    with pytest.raises(CorruptFile, match=message):
        read_tensors(GsrFile(build_file(header, [stored], "default")))
