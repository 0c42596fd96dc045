"""Products of signs on bits against slow doubles in numpy and torch: equal to the last integer."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gossamer.runtime.binary.images import SIZES, BitFormat, PackedImages, pack_images
from gossamer.runtime.binary.kernels import Limits, pool_bits
from gossamer.runtime.binary.products import SignProduct, Switches
from gossamer.runtime.binary.workers import Workers


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def at_zero(channels: int) -> Limits:
    return Limits(np.ones(channels, np.float32), np.zeros(channels, np.float32))


@st.composite
def layers(draw: Any) -> tuple[SignProduct, Tensor]:
    """A layer of any shape, and real inputs for it, with zeros among them."""

    def pick(low: int, high: int) -> int:
        return int(draw(st.integers(low, high)))

    groups = pick(1, 3)
    kernel, dilation, stride = (pick(1, 3), pick(1, 3)), (pick(1, 2), pick(1, 2)), (pick(1, 3), pick(1, 2))
    padding = (pick(0, 2), pick(0, 2), pick(0, 2), pick(0, 2))
    inputs, outputs = draw(st.sampled_from([1, 3, 8, 31, 32, 33, 70])), draw(st.sampled_from([1, 5, 8, 16, 33]))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    random = np.random.default_rng(pick(0, 1 << 16))
    product = SignProduct(
        signs=random.random((groups * outputs, inputs, *kernel)) < 0.5,
        scales=random.choice([0.25, 1.0, 4.0], groups * outputs).astype(np.float32),
        stride=stride,
        dilation=dilation,
        padding=padding,
        outside=draw(st.sampled_from([-1, 0, 1])),
        groups=groups,
    )
    size = [max(1, r - sum(p)) + pick(0, 6) for r, p in zip(reach, (padding[:2], padding[2:]))]
    x = torch.from_numpy(random.integers(-2, 3, (pick(1, 3), groups * inputs, *size)).astype(np.float32))
    return product, x.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else x


def slow(product: SignProduct, x: Tensor) -> Tensor:
    """The same by the definition, in float64."""
    top, bottom, left, right = product.padding
    padded = F.pad(signs(x).double(), (left, right, top, bottom), value=product.outside)
    weight = torch.from_numpy(np.where(product.signs, 1.0, -1.0) * product.scales[:, None, None, None])
    return F.conv2d(padded, weight, None, product.stride, 0, product.dilation, product.groups)


def run(product: SignProduct, x: Tensor, threads: int) -> tuple[PackedImages, Tensor]:
    workers = Workers(threads, least=1e-9)
    form = product.input_format(x.shape[0], x.shape[2], x.shape[3])
    images = pack_images(x.numpy(), form, at_zero(product.channels), workers)
    return images, torch.from_numpy(product.numbers(images, workers)).permute(0, 3, 1, 2)


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(1, 2))
@pytest.mark.slow
def test_products_of_signs_are_exact_for_all_shapes(layer: tuple[SignProduct, Tensor], threads: int) -> None:
    product, x = layer
    images, found = run(product, x, threads)
    assert torch.equal(torch.from_numpy(images.numbers()), signs(x))
    assert torch.equal(found.double(), slow(product, x))


@pytest.mark.parametrize("rows", [1, 5])
def test_counts_of_long_products_do_not_overflow(rows: int) -> None:
    """Every bit differs, in more words than counts of eight bits can add up."""
    product = SignProduct(signs=np.zeros((9, 5000, 1, 1), bool), scales=np.ones(9, np.float32))
    _, found = run(product, torch.ones(rows, 5000, 1, 1), 2)
    assert found.shape == (rows, 9, 1, 1) and (found == -5000).all()


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 1 << 16))
@pytest.mark.slow
def test_bits_are_what_the_switches_say_of_the_products(layer: tuple[SignProduct, Tensor], seed: int) -> None:
    product, x = layer
    if not product.writes_dense:
        return
    random = np.random.default_rng(seed)
    switches = Switches(
        random.integers(-product.terms, product.terms + 1, product.outputs).astype(np.int32),
        random.random(product.outputs) < 0.5,
    )
    images, numbers = run(product, x, 1)
    rows, columns = product.output_size(images.form)
    padding, outside = (1, 0, 2, 1), int(random.integers(0, 2))
    form = BitFormat(len(x), product.outputs, 1, rows, columns, padding, outside)
    found = product.bits(images, switches, form, Workers(1))
    whole = (numbers / torch.from_numpy(product.scales)[:, None, None]).numpy()
    bits = (whole >= switches.least[:, None, None]) ^ switches.flips[:, None, None]
    assert np.array_equal(found.numbers(), np.where(bits, 1, -1))
    again = pack_images(np.where(bits, 1, -1).astype(np.float32), form, at_zero(product.outputs), Workers(1))
    assert np.array_equal(found.bits, again.bits)  # the padding and the unused bits, too


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("places", [(1, 1), (9, 9), (5, 13)])
def test_limits_decide_in_both_directions_and_nan_is_never_one(places: tuple[int, int], channels_last: bool) -> None:
    random = np.random.default_rng(0)
    x = random.integers(-3, 4, (2, 37, *places)).astype(np.float32)
    x[0, 3], x[1, 4, 0, 0] = np.nan, np.inf
    limits = Limits(random.choice([-1, 1], 37).astype(np.float32), random.integers(-2, 3, 37).astype(np.float32))
    limits.limits[[5, 6]] = -np.inf, np.nan  # always and never
    wanted = x * limits.signs[:, None, None] >= limits.limits[:, None, None]
    given_ = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if channels_last else x
    found = pack_images(given_, BitFormat(2, 37, 1, *places), limits, Workers(2, least=1e-9)).numbers()
    assert np.array_equal(found == 1, wanted)


def test_padding_changes_with_what_lies_outside() -> None:
    images = pack_images(np.ones((1, 3, 2, 2), np.float32), BitFormat(1, 3, 1, 2, 2), at_zero(3), Workers(1))
    wider = images.padded((1, 0, 0, 1), 1)
    assert wider.form.padded == (3, 3) and np.array_equal(wider.numbers(), images.numbers())
    whole = np.unpackbits(wider.bits.reshape(9, 4), axis=1, bitorder="little")
    assert (whole[:, :3] == 1).all() and (whole[:, 3:] == 0).all()
    assert wider.padded((1, 0, 0, 1), 1) is wider and images.padded((0, 0, 0, 0), 1) is images


def test_a_pool_takes_the_largest_or_the_smallest_sign() -> None:
    """A window whose bits fall with the numbers is flipped before and after."""
    x: NDArray[np.uint8] = np.array([0b01, 0b00, 0b10], np.uint8)
    out, windows = np.full(2, 9, np.uint8), np.array([[0, 1], [2, -1]])
    pool_bits(x, np.arange(3), windows, np.array([0b10], np.uint8), (0, 2), out, np.arange(2))
    assert out.tolist() == [0b11, 0b00]


def test_what_is_kept_of_sizes_does_not_grow_without_end() -> None:
    product = SignProduct(signs=np.ones((8, 8, 1, 1), bool), scales=np.ones(8, np.float32))
    for rows in range(1, 4 * SIZES):
        assert (run(product, torch.ones(rows, 8, 1, 1), 1)[1] == 8).all()
    assert len(product._kept) <= 3 * SIZES + 3


@pytest.mark.parametrize(("microseconds", "parts"), [(10.0, 1), (299.0, 1), (301.0, 2), (1e9, 2)])
def test_a_thread_gets_work_that_is_worth_it(microseconds: float, parts: int) -> None:
    """At batch 1 a layer takes less time than handing half of it to another thread."""
    calls: list[tuple[int, int]] = []
    Workers(2).run(lambda a, b: calls.append((a, b)), 10, lambda a, b: (a, b), microseconds)
    assert len(calls) == parts and sorted(calls)[0][0] == 0 and sorted(calls)[-1][1] == 10
