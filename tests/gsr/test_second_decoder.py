"""docs/coder.md is enough to decode a section: a decoder written from it gives what gossamer coded."""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pytest
import second_decoder as second
from coder_data import arithmetic, headers, laplacian
from numpy.typing import NDArray

from gossamer.gsr.codec import trellis
from gossamer.gsr.codec.integers import LARGEST, Integers
from gossamer.gsr.codec.section import MODES, encode_section


def sparse(rows: int, columns: int, seed: int) -> NDArray[np.int32]:
    """One in ten is not zero."""
    return np.where(np.random.default_rng(seed).random((rows, columns)) < 0.1, laplacian(rows, columns, 4.0, seed), 0)


def indices(q: NDArray[np.int32], lag: int = 0) -> Integers:
    return Integers(q=trellis.levels_of(q), lag=lag, trellis=True)


def wide(rows: int, columns: int) -> NDArray[np.int32]:
    """Magnitudes of every class, each octave as often as the next."""
    rng = np.random.default_rng(5)
    found: NDArray[np.int32] = (2 ** rng.uniform(0, 15, (rows, columns)) * rng.choice([-1, 1], (rows, columns))).astype(
        np.int32
    )
    found[0, 0], found[-1, -1] = LARGEST, -LARGEST
    return found


def steady(rows: int, columns: int, most: int) -> NDArray[np.int32]:
    """So predictable that counters, mixers and running means come to their bounds."""
    return np.where(np.arange(rows * columns).reshape(rows, columns) % 701 == 700, -3, most).astype(np.int32)


SECTIONS = {
    "sparse": [Integers(q=sparse(20, 45, 1), lag=9), Integers(q=sparse(40, 9, 2), lag=3)],
    "dense": [Integers(q=laplacian(16, 50, 3.0, 3)), Integers(q=laplacian(30, 18, 40.0, 4), lag=1)],
    "repeated": [Integers(q=np.tile(laplacian(8, 7, 20.0, 9), (3, 6)), lag=7)],
    "trellis": [indices(laplacian(20, 40, 1.0, 5), lag=5), Integers(q=arithmetic(3, 8, 5)), indices(sparse(9, 30, 6))],
    "wide": [Integers(q=wide(40, 20), lag=20), indices(wide(30, 20) // 2)],
    "steady": [Integers(q=steady(3, 1500, 5)), Integers(q=steady(45, 40, 8), lag=2)],
    "tall": [Integers(q=arithmetic(4200, 1, 2)), Integers(q=arithmetic(1, 4200, 2))],
    "broad": [Integers(q=laplacian(3, 600, 300.0, 10))],
    "empty": [Integers(q=np.zeros((0, 4), np.int32)), Integers(q=np.zeros((3, 4), np.int32))],
    "gaps": [
        Integers(q=np.zeros((5, 0), np.int32)),
        Integers(q=arithmetic(6, 7, 3)),
        Integers(q=np.zeros((5, 6), np.int32), lag=6),
        indices(np.zeros((3, 3), np.int32)),
        indices(arithmetic(7, 6, 1)),
    ],
}


def decode(payload: bytes, section: list[Integers], mode: str) -> list[list[list[int]]]:
    pieces = [second.Piece(**asdict(header)) for header in headers(section)]
    if mode == "rans":
        return second.decode_rans(payload, pieces)
    return second.decode_cm(payload, pieces, MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.slow
def test_the_documented_decoder_gives_what_was_coded(name: str, mode: str) -> None:
    section = SECTIONS[name]
    decoded = decode(encode_section(section, mode), section, mode)
    assert decoded == [tensor.q.tolist() for tensor in section]


def test_many_states_take_turns() -> None:
    """Enough weights for 16 states, the last turn not full."""
    section = [Integers(q=laplacian(300, 111, 2.0, 7))]
    assert decode(encode_section(section, "rans"), section, "rans") == [section[0].q.tolist()]


@pytest.mark.parametrize("mode", ["cm4", "cm8"])
def test_short_sections(mode: str) -> None:
    """Initial values and the end of the payload count for most where there is little else."""
    rng = np.random.default_rng(8)
    for _ in range(40):
        q = [rng.integers(-3, 4, (rng.integers(1, 4), rng.integers(1, 5))).astype(np.int32) for _ in range(6)]
        section = [Integers(q=part) if number % 2 else indices(part) for number, part in enumerate(q)]
        assert decode(encode_section(section, mode), section, mode) == [tensor.q.tolist() for tensor in section]


@pytest.mark.parametrize("mode", MODES)
def test_a_byte_too_many_and_another_largest_are_noticed(mode: str) -> None:
    section = SECTIONS["dense"]
    payload = encode_section(section, mode)
    with pytest.raises(ValueError, match=r"length|end"):
        decode(payload + bytes(5), section, mode)
    smaller = [Integers(q=section[0].q // 2), section[1]]
    with pytest.raises(ValueError, match=r"largest|length"):
        decode(payload, smaller, mode)


def crc(entries: Iterable[int]) -> str:
    return f"{zlib.crc32(b''.join(struct.pack('<i', entry) for entry in entries)):08x}"


def test_tables_have_the_documented_digests() -> None:
    assert crc(map(second.squash, range(-2815, 2816))) == "63e4dcfb"
    assert crc(map(second.stretch, range(4096))) == "18a81d31"
    assert crc(map(second.rate, range(1024))) == "f0b755c3"
    assert crc(map(second.mean_rate, range(256))) == "76cebe49"
    assert crc(map(second.log, range(4096))) == "b3f97c01"
    assert crc(map(second.pivot, range(384))) == "964d5369"


def test_values_that_the_document_names() -> None:
    assert [second.squash(x) for x in (0, 1, 256, 2815, -2815)] == [32768, 32831, 47910, 65520, 16]
    assert [second.stretch(k) for k in (0, 2047, 2048, 4095)] == [-2307, 0, 0, 2307]
    median = [min(LARGEST, int(177 * 2 ** (e / 16)) >> 16) for e in range(384)]
    assert [second.pivot(e) for e in range(384)] == [second.class_of(k) for k in median]
