"""What a tensor is, read off its values; every coding gives back every bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from gossamer.compact.reading import read_tensors
from gossamer.compact.writing import describe_file
from gossamer.gsr.codec import trellis
from gossamer.gsr.format.file import GsrFile, build_file
from gossamer.gsr.format.float_grid import common_step, grid
from gossamer.gsr.format.graph import DTYPES
from gossamer.gsr.format.header import FileHeader, entry_of
from gossamer.gsr.format.stored_values import Coding, Width

GENERATOR = torch.Generator().manual_seed(0)


def stored_bytes(tensors: list[Tensor], effort: str = "default") -> bytes:
    stored = describe_file(tensors, effort)
    names = [f"t{i}" for i in range(len(tensors))]
    header = FileHeader(
        names=names, named=len(names), buffers=set(), entries=[entry_of(one) for one in stored], graph=None
    )
    return build_file(header, stored, effort)


def back(tensors: list[Tensor], effort: str = "default") -> list[Tensor]:
    return list(read_tensors(GsrFile(stored_bytes(tensors, effort))).values())


def same(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.numel() == 0 or torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def on_grid(shape: tuple[int, ...], step: float, largest: int = 7) -> Tensor:
    q = torch.randint(-largest, largest + 1, shape, generator=GENERATOR).float()
    q.view(-1)[0] = largest
    return q * torch.tensor(step)


def trellis_weights() -> Tensor:
    indices = torch.randint(-3, 4, (40, 50), generator=GENERATOR, dtype=torch.int32).numpy()
    return torch.from_numpy(trellis.dequantize(trellis.levels_of(indices), 0.1))


def vectors(values: list[float], shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(values)[torch.randint(len(values), shape, generator=GENERATOR)]


def noise(*shape: int) -> Tensor:
    """Floats of any bits: nothing about them can be said in fewer."""
    return torch.randint(-(2**31), 2**31, shape, generator=GENERATOR).int().view(torch.float32)


CASES = {
    Coding.ZEROS: torch.zeros(3, 4),
    Coding.CONSTANT: torch.full((3, 4), -0.0),
    Coding.RAW: noise(20, 30),
    Coding.GRID: on_grid((20, 30), 0.0123),
    Coding.ROWS: on_grid((20, 30), 1.0) * torch.rand(20, 1, generator=GENERATOR).add(0.1),
    Coding.CODEBOOK: vectors([0.1, -0.234, 0.0, 0.3456, float("nan"), float("inf"), -0.0], (20, 30)),
    Coding.TRELLIS: trellis_weights(),
    Coding.SPLIT: torch.randn(40, 60, generator=GENERATOR) * (torch.rand(40, 60, generator=GENERATOR) < 0.1),
    Coding.PACKED: torch.randn(5, 60, generator=GENERATOR).repeat(8, 1),
}


@pytest.mark.parametrize("coding", CASES)
@pytest.mark.parametrize("effort", ["fast", "default", "max"])
def test_each_coding_is_chosen_and_exact(coding: Coding, effort: str) -> None:
    tensor = CASES[coding]
    expected = Coding.GRID if (coding, effort) == (Coding.TRELLIS, "fast") else coding
    assert describe_file([tensor], effort)[0].coding == expected
    assert same(back([tensor], effort)[0], tensor)


def test_signs_cost_a_bit() -> None:
    tensor = (torch.rand(64, 64, generator=GENERATOR) < 0.5).float().mul(2).sub(1) * 0.0371
    assert describe_file([tensor], "default")[0].coding == Coding.GRID
    assert len(stored_bytes([tensor])) < 64 * 64 / 8 + 80


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 4, 5)])
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = 50 * torch.randn(shape, generator=GENERATOR)
    assert same(back([values.to(dtype)])[0], values.to(dtype))


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-45, -1e-40, 3.4e38, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_special_values_come_back(dtype: torch.dtype) -> None:
    assert same(back([SPECIAL.to(dtype)])[0], SPECIAL.to(dtype))
    many = SPECIAL.to(dtype).repeat(100)
    assert same(back([many])[0], many)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FC00001, 0xFFFFFFFF])
def test_every_nan_keeps_its_bits(bits: int) -> None:
    tensor = torch.tensor(np.array([bits, 0x3F800000] * 50, np.uint32).view(np.float32))
    for one in (tensor, tensor[::2].contiguous(), tensor[:2]):
        assert same(back([one])[0], one)


def test_whole_numbers_up_to_the_ends_of_their_range_come_back() -> None:
    ends = torch.tensor([-(2**63), 2**63 - 1, 0])
    assert same(back([ends])[0], ends)
    assert describe_file([torch.arange(-300, 300)], "default")[0].coding == Coding.GRID


@pytest.mark.parametrize(
    ("values", "width"),
    [([1.0, 0.5, 3.0], Width.BFLOAT16), ([1.0009765625, 2.0], Width.FLOAT16), ([0.1, 2.0], Width.FLOAT32)],
)
def test_floats_are_as_narrow_as_is_exact(values: list[float], width: Width) -> None:
    assert describe_file([torch.tensor(values)], "default")[0].width == width


def test_equal_tensors_are_stored_once() -> None:
    one = CASES[Coding.RAW]
    first, second, third = back([one, one.clone(), one.double()])
    assert first.data_ptr() == second.data_ptr()
    assert same(third, one.double())
    assert len(stored_bytes([one, one.clone()])) < len(stored_bytes([one])) + 10


@given(
    step=st.floats(2**-100, 2**100, width=32),
    q=st.lists(st.integers(-(2**15), 2**15), min_size=1, max_size=40),
)
@settings(max_examples=300)
@pytest.mark.slow
def test_a_grid_is_found_again(step: float, q: list[int]) -> None:
    """Whatever step is found, its multiples are the values; with a 1 among the integers it is the step itself."""
    values = np.array(q, np.float32) * np.float32(step)
    found = grid(values + np.float32(0))
    if found is not None:
        assert np.array_equal(found[1].astype(np.float32) * found[0], values)
    with_one = np.array([*q, 1], np.float32) * np.float32(step)
    found = grid(with_one)
    assert found is not None
    assert found[1].tolist() == [*q, 1]


def test_a_step_that_no_two_neighbours_are_apart_is_found() -> None:
    assert common_step(np.array([6, 10, 15], np.float32) * np.float32(0.1)) == np.float32(0.1)


def test_random_values_are_on_no_grid() -> None:
    assert grid(torch.randn(100, generator=GENERATOR).numpy()) is None


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(max_dims=3, max_side=12),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 0.25, -0.5, 0.1, float("nan"), float("inf")]), st.floats(width=32)
        ),
    )
)
@settings(max_examples=100)
@pytest.mark.slow
def test_any_array_comes_back(array: np.ndarray) -> None:
    tensor = torch.from_numpy(array)
    assert same(back([tensor])[0], tensor)


@given(st.lists(st.sampled_from(sorted(CASES)), min_size=1, max_size=6), st.sampled_from(["fast", "default", "max"]))
@settings(max_examples=40)
@pytest.mark.slow
def test_any_mixture_of_codings_comes_back(codings: list[Coding], effort: str) -> None:
    tensors = [CASES[coding] for coding in codings]
    assert all(same(a, b) for a, b in zip(back(tensors, effort), tensors, strict=True))


def test_a_large_tensor_is_cut_into_sections_of_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.gsr.format.file.SECTION_WEIGHTS", 500)
    monkeypatch.setattr("gossamer.gsr.format.header.SECTION_WEIGHTS", 500)
    tensors = [CASES[Coding.GRID], on_grid((100, 30), 0.5), CASES[Coding.TRELLIS], CASES[Coding.CODEBOOK]]
    tensors[0][0] = 0
    tensors[0][3] *= 100
    file = GsrFile(stored_bytes(tensors))
    assert len(file.coded) > 6
    assert all(same(a, b) for a, b in zip(read_tensors(file).values(), tensors, strict=True))
