"""rANS, Huffman and gaps against entropy, Kraft's sum and slow loops; the constant tables against their formulas."""

import contextlib
import heapq
import math
import zlib

import numpy as np
import pytest
from coder_data import arithmetic, entropy_bits, headers, laplacian
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.codec import gaps, huffman, rans, tables
from gossamer.gsr.codec.integers import Integers
from gossamer.gsr.codec.rans_tables import TOTAL, frequencies
from gossamer.gsr.codec.section import decode_section, encode_section

CRC = 0xD8326734
small_arrays = st.lists(st.integers(-40, 40) | st.just(0), max_size=200).map(lambda v: np.array(v, np.int32))


def test_constant_tables_are_the_same_everywhere() -> None:
    built = [tables.squash_table(), tables.stretch_table(), tables.rate_table(18), tables.rate_table(15)]
    built += [tables.log_table(), tables.class_table(), tables.pivot_table()]
    assert zlib.crc32(b"".join(t.astype("<i4").tobytes() for t in built)) == CRC


def test_squash_and_stretch_are_the_logistic_function_and_its_inverse() -> None:
    squash, stretch = tables.squash_table(), tables.stretch_table()
    for logit in range(-tables.LOGIT_LIMIT, tables.LOGIT_LIMIT + 1, 7):
        exact = 65536 / (1 + math.exp(-logit / 256))
        assert abs(int(squash[logit + tables.LOGIT_LIMIT + 1]) - min(max(exact, 16), 65520)) <= 1
    for k in range(4096):
        p = (k + 0.5) / 4096
        assert abs(int(stretch[k]) - 256 * math.log(p / (1 - p))) <= 0.51


def test_logarithms_and_classes() -> None:
    assert [int(x) for x in tables.log_table()[[0, 1, 2, 3, 4095]]] == [0, 0, 16, int(16 * math.log2(3)), 191]
    borders = tables.class_borders()
    assert borders[:11] == [0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25]
    assert borders[-1] == 24577
    for found, low in enumerate(borders):
        high = borders[found + 1] if found + 1 < len(borders) else tables.LARGEST + 1
        assert high - low == (1 if found < 5 else 1 << ((found - 5) // 2 + 1))
        assert set(tables.class_table()[low:high].tolist()) == {found}


def test_rans_words_are_within_a_thousandth_of_the_entropy() -> None:
    values = np.random.default_rng(0).choice(np.arange(-3, 4), (1, 400_000), p=[0.02, 0.08, 0.2, 0.4, 0.2, 0.08, 0.02])
    data = encode_section([Integers(q=values.astype(np.int32))], "rans")
    side = 8 + int.from_bytes(data[:4], "little")
    assert len(data) - side < 1.001 * entropy_bits(values) / 8 + 3 * rans.lanes(values.size)
    assert len(data) < 1.01 * entropy_bits(values) / 8


def test_rans_profits_from_the_scales_of_rows_and_columns() -> None:
    q = laplacian(300, 400, 3.0)
    assert len(encode_section([Integers(q=q)], "rans")) < 0.97 * entropy_bits(q) / 8


@given(counts=st.lists(st.integers(0, 10**6), min_size=256, max_size=256))
@pytest.mark.slow
def test_frequencies_sum_to_their_total(counts: list[int]) -> None:
    found = frequencies(np.array(counts, np.int64))
    assert int(found.sum()) == (TOTAL if any(counts) else 0)


def test_one_symbol_costs_nothing_and_rare_ones_are_announced() -> None:
    q = np.zeros((100, 1000), np.int32)
    q[5, 7], q[50, 1] = 120, -30000
    section = [Integers(q=q)]
    data = encode_section(section, "rans")
    assert len(data) < 700
    assert np.array_equal(decode_section(data, headers(section), "rans")[0], q)


@given(q=small_arrays)
def test_huffman_gives_the_values_back(q: np.ndarray) -> None:
    assert np.array_equal(huffman.decode(huffman.encode(q), q.size), q)


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any))
def test_huffman_is_optimal_between_entropy_and_one_more_and_kraft_is_one(counts: list[int]) -> None:
    lengths = huffman.huffman_lengths(np.array(counts, np.int64))
    present = [(n, int(length)) for n, length in zip(counts, lengths) if n]
    total = sum(n for n, _ in present)
    entropy = sum(n / total * math.log2(total / n) for n, _ in present)
    mean = sum(n * length for n, length in present) / total
    assert entropy - 1e-9 <= mean < entropy + 1
    assert sum(2.0**-length for _, length in present) == 1
    assert [length == huffman.ABSENT for length in lengths] == [n == 0 for n in counts]
    heap, slow = sorted(n for n, _ in present), 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        slow += both
        heapq.heappush(heap, both)
    assert sum(n * length for n, length in present) == slow


def test_huffman_streams_have_the_bits_that_are_told() -> None:
    q = arithmetic(20, 30, 9)
    span = int(q.max()) - int(q.min()) + 1
    assert len(huffman.encode(q)) == 8 + span + -(-huffman.coded_bits(q) // 8)


def test_huffman_tables_beyond_their_span_are_refused() -> None:
    with pytest.raises(BadInput, match="at most 65536 entries"):
        huffman.encode(np.array([0, 1 << 16], np.int32))


def slow_gaps(flat: list[int], bits: int) -> tuple[list[int], list[int]]:
    found, values, since = [], [], 0
    for value in flat:
        since += 1
        if value != 0:
            while since > 2**bits:
                found.append(2**bits - 1)
                values.append(0)
                since -= 2**bits
            found.append(since - 1)
            values.append(value)
            since = 0
    return found, values


@given(q=st.lists(st.sampled_from([0, 0, 0, 0, 0, 1, -2]), max_size=120), bits=st.integers(1, 5))
def test_gaps_are_those_of_a_loop_and_lead_back(q: list[int], bits: int) -> None:
    flat = np.array(q, np.int32)
    found, values = gaps.split_gaps(flat, bits)
    assert (found.tolist(), values.tolist()) == slow_gaps(q, bits)
    assert np.array_equal(gaps.join_gaps(found, values, flat.size), flat)
    assert np.array_equal(gaps.decode(gaps.encode(flat, bits), flat.size), flat)


def test_the_row_of_a_layer() -> None:
    q = np.zeros(100, np.int32)
    q[[0, 1, 60, 99]] = [1, 1, 2, -3]
    row = gaps.layer_bits(q, 5)
    # Stored: 0, 1, filler 33, 60, filler 92, 99; gaps - 1: 0 0 31 26 31 6; values 1 1 0 2 0 -3.
    assert (row.density, row.stored, row.code, row.index) == (0.04, 6, 2, 5)
    assert row.coded_index == pytest.approx((1 + 1 + 2 + 2 + 2 + 2 + 2) / 6, abs=0.4)
    assert row.rate == pytest.approx((row.coded_code + row.coded_index) * 6 / 3200)


@pytest.mark.parametrize("bits", [0, 17])
def test_impossible_gap_widths_are_refused(bits: int) -> None:
    with pytest.raises(BadInput, match="1 to 16"):
        gaps.split_gaps(np.ones(3, np.int32), bits)


def test_damaged_huffman_and_gap_streams_are_refused_or_decode_within_bounds() -> None:
    q = arithmetic(20, 20, 3).reshape(-1) * (np.arange(400) % 5 == 0)
    data, rng = gaps.encode(q, 3), np.random.default_rng(0)
    for _ in range(3000):
        bad = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.integers(1, 4)):
            if bad:
                bad[rng.integers(len(bad))] = rng.integers(256)
        try:
            assert gaps.decode(bytes(bad), q.size).size == q.size
        except CorruptFile:
            continue


@given(data=st.binary(max_size=80), count=st.integers(0, 50))
def test_random_huffman_streams_are_refused_or_have_their_count(data: bytes, count: int) -> None:
    with contextlib.suppress(CorruptFile):
        assert huffman.decode(data, count).size == count
