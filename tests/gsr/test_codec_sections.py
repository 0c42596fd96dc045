"""Sections: what goes in comes out, in every mode, everywhere the same, and nothing hostile gets through."""

import base64
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from coder_data import arithmetic, headers, laplacian
from hypothesis import given, settings
from hypothesis import strategies as st
from places import importing

from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.codec import trellis
from gossamer.gsr.codec.integers import LARGEST, Integers, IntegersHeader
from gossamer.gsr.codec.length import code_length
from gossamer.gsr.codec.section import MODES, decode_section, encode_section


@st.composite
def tensors(draw: st.DrawFn) -> Integers:
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    largest = draw(st.sampled_from([0, 1, 2, 30, 300, LARGEST]))
    values = draw(st.lists(st.integers(-largest, largest), min_size=rows * columns, max_size=rows * columns))
    q = np.array(values, np.int32).reshape(rows, columns)
    if draw(st.booleans()):
        return Integers(q=trellis.levels_of(q // 2), lag=draw(st.integers(0, columns)), trellis=True)
    return Integers(q=q, lag=draw(st.integers(0, columns)))


def assert_round_trip(section: list[Integers], mode: str) -> bytes:
    data = encode_section(section, mode)
    decoded = decode_section(data, headers(section), mode)
    assert len(decoded) == len(section)
    for tensor, q in zip(section, decoded):
        assert q.dtype == np.int32
        assert np.array_equal(q, tensor.q)
    return data


@pytest.mark.parametrize("mode", MODES)
@given(section=st.lists(tensors(), max_size=4))
@settings(max_examples=80)
@pytest.mark.slow
def test_what_goes_in_comes_out(mode: str, section: list[Integers]) -> None:
    assert_round_trip(section, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "q",
    [
        np.full((40, 50), -LARGEST, np.int32),
        np.resize(np.array([LARGEST, -LARGEST, 0], np.int32), (64, 33)),
        np.random.default_rng(0).integers(-LARGEST, LARGEST + 1, (100, 100)).astype(np.int32),
        np.where(np.arange(6000).reshape(60, 100) == 5999, 7, 0).astype(np.int32),
        np.asfortranarray(laplacian(30, 40, 3.0)),
        laplacian(60, 80, 3.0)[::2, ::3],
    ],
    ids=["least", "alternating", "uniform", "one", "fortran", "strided"],
)
def test_extremes_come_out(mode: str, q: np.ndarray) -> None:
    data = assert_round_trip([Integers(q=q, lag=3)], mode)
    assert len(data) < (4.2 if mode == "rans" else 2.2) * q.size + 3000


def test_sections_can_be_coded_side_by_side() -> None:
    """Compiled code lets go of the interpreter's lock and shares nothing."""
    sections = [[Integers(q=laplacian(60, 70, 2.0, seed))] for seed in range(6)]
    alone = [encode_section(section, "cm4") for section in sections]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda section: encode_section(section, "cm4"), sections)) == alone
        decoded = list(pool.map(lambda i: decode_section(alone[i], headers(sections[i]), "cm4")[0], range(6)))
    assert all(np.array_equal(q, section[0].q) for q, section in zip(decoded, sections))


def test_statistics_run_on_from_tensor_to_tensor() -> None:
    section = [Integers(q=laplacian(16, 64, 2.0, seed)) for seed in range(12)]
    apart = sum(len(encode_section([tensor], "cm4")) for tensor in section)
    assert len(encode_section(section, "cm4")) < 0.97 * apart


def test_the_lag_helps_where_weights_repeat_at_that_distance() -> None:
    rng = np.random.default_rng(0)
    image = np.tile(rng.integers(0, 2, (50, 1, 28)), (1, 10, 1)).reshape(50, 280) * rng.laplace(0, 6, (50, 280))
    q = np.rint(image).astype(np.int32)
    with_lag, without = (len(encode_section([Integers(q=q, lag=lag)], "cm4")) for lag in (28, 0))
    assert with_lag < without


def test_more_contexts_code_large_tensors_smaller() -> None:
    section = [Integers(q=laplacian(300, 400, 2.0))]
    sizes = {mode: len(encode_section(section, mode)) for mode in MODES}
    assert sizes["cm8"] < sizes["cm4"] < sizes["rans"]


def test_the_estimate_is_near_the_length() -> None:
    for scale, share in ((0.1, 0.2), (2.0, 0.03), (30.0, 0.03)):
        q = laplacian(300, 400, scale)
        for tensor in (Integers(q=q), Integers(q=trellis.levels_of(q), trellis=True)):
            assert code_length(tensor) == pytest.approx(8 * len(encode_section([tensor], "cm4")), rel=share)
    assert code_length(Integers(q=np.zeros((0, 4), np.int32))) == 0


GOLDEN = {"cm4": "7847093c388e5ff4eb8092b3", "cm8": "5907ef5f481029c97d1f0e8b"}
OLD_RANS = (
    "Q2+n{c-rmPp%H*E5Cp(a6b6C9rwcsH&;X6lCq1Q$f5C18H+Sx0k2?SWfDGq0#`Qgh004kgZ&~tD+}!&B0DvT|_a&Mg007`8dU5_b"
    "0Y--deI5V+0J7&$8m<0a)!_QO>s1A^42vY=@uU=`-1GQs1oR^w<W9sN^aJ2t(VgFG{fPLm+a%K0`ZNN%1M}@|143Gqm-qK20Koc3"
    "B^vTH05^9{0aL;O007+;03aQ40Q0DHtWIqDb}C07AO"
)


def golden_section() -> list[Integers]:
    return [
        Integers(q=arithmetic(30, 56, 12), lag=28),
        Integers(q=arithmetic(16, 27, 200), lag=3),
        Integers(q=trellis.levels_of(arithmetic(20, 40, 5)), trellis=True),
        Integers(q=arithmetic(3, 5, 20000)),
    ]


@pytest.mark.parametrize("mode", GOLDEN)
def test_payloads_are_the_same_bytes_for_ever(mode: str) -> None:
    """A changed digest means that no old file can be read: never change it, add a mode."""
    assert hashlib.sha256(encode_section(golden_section(), mode)).hexdigest()[:24] == GOLDEN[mode]


def test_an_old_fast_payload_can_be_read() -> None:
    """Its bytes may differ where zlib does, but what was written once is read for ever."""
    section = [Integers(q=arithmetic(6, 10, 4)), Integers(q=arithmetic(4, 9, 20000))]
    decoded = decode_section(base64.b85decode(OLD_RANS), headers(section), "rans")
    assert all(np.array_equal(q, tensor.q) for q, tensor in zip(decoded, section))


@pytest.mark.slow
def test_another_process_without_a_cache_folder_writes_the_same_bytes(tmp_path: Path) -> None:
    """numba finds neither its __pycache__ nor a home to write to, and compiles once more."""
    code = (
        "import numba.core.caching as caching\n"
        "def refuse(*_): return None\n"
        "for c in caching.CacheImpl._locator_classes: c.from_function = classmethod(refuse)\n"
        "import hashlib\n"
        "from test_codec_sections import golden_section, encode_section\n"
        "print(hashlib.sha256(encode_section(golden_section(), 'cm4')).hexdigest()[:24])"
    )
    env = {**importing(Path(__file__).parent), "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == GOLDEN["cm4"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", ["plain", "trellis"])
@pytest.mark.slow
def test_damaged_payloads_are_refused_or_decode_within_bounds(mode: str, shape: str) -> None:
    """Cut short, bits changed, bytes put in or replaced: CorruptFile, or integers that the header allows."""
    q = arithmetic(12, 18, 9)
    section = [Integers(q=trellis.levels_of(q) if shape == "trellis" else q, trellis=shape == "trellis", lag=3)]
    data, rng, refused = encode_section(section, mode), np.random.default_rng(1), 0
    told, tries = headers(section), 600
    for _ in range(tries):
        bad = bytearray(data)
        match rng.integers(5):
            case 0:
                bad = bad[: rng.integers(len(bad))]
            case 1:
                bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            case 2:
                bad[rng.integers(len(bad)) :] = rng.bytes(rng.integers(60))
            case 3:
                bad = bytearray(rng.bytes(rng.integers(200)))
            case _:
                bad.insert(rng.integers(len(bad)), rng.integers(256))
        try:
            (found,) = decode_section(bytes(bad), told, mode)
        except CorruptFile:
            refused += 1
        else:
            assert found.shape == section[0].q.shape
            assert np.abs(found).max() <= told[0].largest
            assert not told[0].trellis or trellis.follows(found)
    assert refused > tries / 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_random_bytes_never_crash_the_decoder(mode: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(600):
        rows, columns = rng.integers(0, 12, 2)
        told = IntegersHeader(
            rows=int(rows),
            columns=int(columns),
            lag=int(rng.integers(0, columns + 1)),
            largest=int(rng.choice([0, 1, 77, LARGEST - 1, LARGEST])),
            trellis=bool(rng.integers(2)),
        )
        data = rng.choice([b"", b"\0" * 300, b"\xff" * 300, rng.bytes(300)])
        try:
            found = decode_section(data, [told, told], mode)
        except CorruptFile:
            continue
        assert all(f.shape == (rows, columns) and (not f.size or np.abs(f).max() <= told.largest) for f in found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "told",
    [
        IntegersHeader(rows=1 << 20, columns=1 << 20),
        IntegersHeader(rows=-1, columns=4),
        IntegersHeader(rows=4, columns=-1),
        IntegersHeader(rows=-4, columns=-4),
        IntegersHeader(rows=2, columns=2, largest=LARGEST + 1),
        IntegersHeader(rows=2, columns=2, largest=-1),
        IntegersHeader(rows=2, columns=2, lag=3),
        IntegersHeader(rows=2, columns=2, lag=-1),
    ],
)
def test_impossible_headers_are_refused_before_anything_is_allocated(mode: str, told: IntegersHeader) -> None:
    with pytest.raises(CorruptFile, match="tensor 1 of a section"):
        decode_section(b"\0" * 99, [IntegersHeader(rows=1, columns=1), told], mode)


def test_many_headers_are_refused_together() -> None:
    with pytest.raises(CorruptFile, match="4294967296 weights"):
        decode_section(b"", [IntegersHeader(rows=1 << 15, columns=1 << 15)] * 4, "cm4")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Integers(q=np.full((1, 1), LARGEST + 1, np.int32)), "at most 32768"),
        (Integers(q=np.full((1, 1), -(1 << 31), np.int32)), "at most 32768"),
        (Integers(q=np.zeros(4, np.int32)), "shape"),
        (Integers(q=np.zeros((2, 2), np.int64)), "int32"),  # type: ignore[arg-type]
        (Integers(q=np.zeros((2, 2), np.int32), lag=3), "lag of 3"),
        (Integers(q=np.ones((2, 2), np.int32), trellis=True), "position 0"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_tensors_that_cannot_be_coded_are_refused(mode: str, tensor: Integers, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        encode_section([tensor], mode)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="did you mean 'cm8'"):
        encode_section([], "cm88")


def test_the_fast_mode_does_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np; from gossamer.gsr.codec import *\n"
        "t = Integers(q=np.arange(-6, 6, dtype=np.int32).reshape(3, 4))\n"
        "assert (decode_section(encode_section([t], 'rans'), [t.header()], 'rans')[0] == t.q).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_payload_that_starts_outside_the_range_is_refused() -> None:
    header = Integers(q=np.ones((2, 2), np.int32)).header()
    with pytest.raises(CorruptFile, match="outside the range"):
        decode_section(b"\xff\xff\xff\xff\x00\x00\x00\x00", [header], "cm4")
