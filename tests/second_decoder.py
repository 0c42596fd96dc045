"""A second decoder of coded sections, written from docs/coder.md alone: plain and slow, nothing of gossamer in it.

Names and order are those of the document. Damaged payloads are only noticed where the document says how.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NEXT = [(0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)]
BORDER = [0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537]
BORDER += [2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577]
PIVOTS = [137, 153, 162, 169, 174, 182, 188, 196, 202, 211, 218, 227, 233, 243, 249, 258, 265, 274, 281, 290, 297, 306]
PIVOTS += [313, 322, 329, 338, 345, 354, 361, 370]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a section is given of one matrix."""

    rows: int
    columns: int
    lag: int
    largest: int
    trellis: bool


def clamp(a: int, low: int, high: int) -> int:
    return max(low, min(high, a))


def squash(x: int) -> int:
    return min(65520, math.floor(65536 / (1 + math.exp(-x / 256)))) if x >= 0 else 65536 - squash(-x)


def stretch(k: int) -> int:
    return round(256 * math.log((2 * k + 1) / (8191 - 2 * k)))


def rate(n: int) -> int:
    return 655360 // (10 * n + 18)


def mean_rate(n: int) -> int:
    return 655360 // (10 * n + 15)


def log(x: int) -> int:
    if x < 1 << 12:
        return (x**16).bit_length() - 1 if x else 0
    return log(x >> 6) + 96 if x < 1 << 18 else log(x >> 12) + 192


def pivot(e: int) -> int:
    return sum(number <= e for number in PIVOTS)


def class_of(k: int) -> int:
    return max(j for j, border in enumerate(BORDER) if border <= k)


def top15(q: int) -> int:
    return min(class_of(abs(q)), 15)


def s(q: int) -> int:
    return 1 if q > 0 else 2 if q < 0 else 0


SQUASH = {x: squash(x) for x in range(-2815, 2816)}
STRETCH = [stretch(k) for k in range(4096)]


class RangeCoder:
    def __init__(self, payload: bytes) -> None:
        self.payload, self.at = payload, 0
        self.range, self.value = (1 << 32) - 1, 0
        for _ in range(4):
            self.value = self.value << 8 | self.next_byte()
        if self.value >= self.range:
            raise ValueError("the first four bytes are FF")

    def next_byte(self) -> int:
        self.at += 1
        return self.payload[self.at - 1] if self.at <= len(self.payload) else 0

    def decide(self, p: int) -> int:
        bound = (self.range >> 16) * p
        bit = int(self.value < bound)
        if bit:
            self.range = bound
        else:
            self.range -= bound
            self.value -= bound
        while self.range < 1 << 24:
            self.range <<= 8
            self.value = self.value << 8 | self.next_byte()
        return bit


class Counter:
    def __init__(self) -> None:
        self.p = self.n = 0

    def update(self, bit: int) -> None:
        self.p += ((bit << 22) - (1 << 21) - self.p) * rate(self.n) >> 16
        self.n = min(self.n + 1, 1023)


class Model:
    """What is learned within a section."""

    def __init__(self, payload: bytes, contexts: int) -> None:
        self.coder = RangeCoder(payload)
        self.contexts = contexts
        self.counters: defaultdict[tuple[int, int, int], Counter] = defaultdict(Counter)
        self.weights = [[{4: 24576, 8: 12288}[contexts]] * contexts for _ in range(192)]
        self.learning_rate = [22] * 192
        self.sign_counters: defaultdict[tuple[int, int], Counter] = defaultdict(Counter)
        self.sign_weights = [20000] * 4
        self.rest_counters: defaultdict[tuple[int, int], Counter] = defaultdict(Counter)

    def mix(self, counters: list[Counter], weights: list[int], pace: int) -> int:
        x = [STRETCH[(counter.p >> 10) + 2048] for counter in counters]
        total = sum(a * b for a, b in zip(x, weights))
        probability = SQUASH[clamp((total + 32768) >> 16, -2815, 2815)]
        bit = self.coder.decide(probability)
        error = (bit * 65536 - probability) * pace
        for m, counter in enumerate(counters):
            weights[m] = clamp(weights[m] + ((x[m] * error + 65536) >> 17), -(1 << 20), 1 << 20)
            counter.update(bit)
        return bit

    def class_(self, place: list[int], parity: int, expected: int, top: int) -> int:
        j, way = min(pivot(expected), top - 1), 0
        while True:
            node = parity * 96 + way * 32 + j
            counters = [self.counters[m, place[m], node] for m in range(self.contexts)]
            bit = self.mix(counters, self.weights[node], self.learning_rate[node])
            self.learning_rate[node] = max(2, self.learning_rate[node] - 1)
            if way == 1 and bit == 0:
                return j
            if way == 2 and bit == 1:
                return j + 1
            if bit == 1 and j + 1 == top:
                return top
            if bit == 0 and j == 0:
                return 0
            way, j = (1, j + 1) if bit else (2, j - 1)

    def rest(self, j: int) -> int:
        if j < 5:
            return 0
        node, found = 1, 0
        for _ in range(((j - 5) >> 1) + 1):
            if node < 8:
                counter = self.rest_counters[j, node]
                bit = self.coder.decide(clamp(32768 + (counter.p >> 6), 64, 65472))
                counter.update(bit)
                node = 2 * node + bit
            else:
                bit = self.coder.decide(32768)
            found = 2 * found + bit
        return found

    def sign(self, place: list[int]) -> int:
        return self.mix([self.sign_counters[m, place[m]] for m in range(4)], self.sign_weights, 4)


class Matrix:
    """The integers of a piece as far as they are known; 0 outside."""

    def __init__(self, piece: Piece) -> None:
        self.piece, self.q = piece, [[0] * piece.columns for _ in range(piece.rows)]

    def at(self, r: int, c: int) -> int:
        return self.q[r][c] if r >= 0 and 0 <= c < self.piece.columns else 0

    def neighbours(self, r: int, c: int) -> tuple[int, int, int, int, int, int]:
        """a1, a2, a3, far, up, beyond."""
        far = self.at(r, c - self.piece.lag) if self.piece.lag else 0
        return self.at(r, c - 1), self.at(r, c - 2), self.at(r, c - 3), far, self.at(r - 1, c), self.at(r - 1, c + 1)


def cm_places(
    near: tuple[int, int, int, int, int, int], logs: tuple[int, int, int], state: int, r: int, c: int, shift: int
) -> list[int]:
    """The places of the eight contexts of a magnitude. logs: row, column, expected."""
    a1, a2, a3, far, up, beyond = near
    row, column, expected = logs
    local = log((abs(a1) + abs(a2) + abs(a3) + abs(far)) << (shift - 2))
    around = log((2 * abs(a1) + abs(a2) + 2 * abs(up) + abs(beyond) + 2 * abs(far)) << (shift - 3))
    return [
        (top15(a1) * 16 + top15(a2)) * 16 + top15(up),
        (row >> 3) * 64 + (column >> 3),
        (state >> 1) * 2048 + (expected >> 2) * 16 + top15(far),
        (local >> 2) * 64 + (row >> 3),
        (expected >> 3) * 96 + (around >> 2),
        (expected >> 2) * 48 + (local >> 3),
        r & 4095,
        c & 4095,
    ]


def sign_places(
    near: tuple[int, int, int, int, int, int], row: int, row_sign: int, column_sign: int, shift: int
) -> list[int]:
    a1, _, _, far, up, _ = near
    both = a1 + far
    size = 0 if both == 0 else clamp((log(min(abs(both), 32768) << shift) - row + 64) >> 3, 0, 15)
    return [
        (s(a1) * 3 + s(up)) * 3 + s(far),
        ((column_sign >> 11) + 16) * 3 + s(far),
        ((row_sign >> 11) + 16) * 3 + s(a1),
        (size * 2 + (1 if both > 0 else 0)) * 3 + s(up),
    ]


def cm_piece(model: Model, piece: Piece) -> list[list[int]]:
    matrix = Matrix(piece)
    shift, top = (7, class_of((piece.largest + 1) >> 1)) if piece.trellis else (8, class_of(piece.largest))
    mean, state = 64, 0
    column_mean, column_sign = [0] * piece.columns, [0] * piece.columns
    for r in range(piece.rows):
        row_mean, row_sign = mean, 0
        for c in range(piece.columns):
            if r == 0:
                column_mean[c] = row_mean
            row, column = log(row_mean), log(column_mean[c])
            expected = clamp(row + column - log(mean), 0, 383)
            parity = state & 1
            near = matrix.neighbours(r, c)
            j = model.class_(cm_places(near, (row, column, expected), state, r, c, shift), parity, expected, top)
            k = BORDER[j] + model.rest(j)
            magnitude = k
            if piece.trellis:
                magnitude = 2 * k - parity if k > 0 else 0
                state = NEXT[state][k & 1]
            if magnitude > piece.largest:
                raise ValueError("above the largest magnitude")
            if k > 0:
                negative = model.sign(sign_places(near, row, row_sign, column_sign[c], shift))
                target = 32767 - 65535 * negative
                column_sign[c] += (target - column_sign[c]) >> 4
                row_sign += (target - row_sign) >> 4
                matrix.q[r][c] = -magnitude if negative else magnitude
            size = magnitude << shift
            row_mean += (size - row_mean) * mean_rate(min(c, 127)) >> 16
            column_mean[c] += (size - column_mean[c]) * mean_rate(min(r, 31)) >> 16
            mean += (size - mean) * mean_rate(min(r * piece.columns + c + 1, 255)) >> 16
    return matrix.q


def decode_cm(payload: bytes, pieces: Sequence[Piece], contexts: int) -> list[list[list[int]]]:
    """The matrices of a section of kind cm4 or cm8."""
    model, found = Model(payload, contexts), []
    for piece in pieces:
        if piece.rows * piece.columns == 0 or piece.largest == 0:
            found.append([[0] * piece.columns for _ in range(piece.rows)])
        else:
            found.append(cm_piece(model, piece))
    if not model.coder.at - 4 <= len(payload) <= model.coder.at:
        raise ValueError("the payload has another length")
    return found


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("too short")
        return self.data[self.at - count : self.at]

    def numbers(self, count: int, width: int, *, signed: bool = False) -> list[int]:
        data = self.take(count * width)
        return [int.from_bytes(data[i : i + width], "little", signed=signed) for i in range(0, len(data), width)]


def rans_side(packed: bytes, pieces: Sequence[Piece]) -> tuple[list[int], list[list[int]]]:
    """The class of every weight, and the tables."""
    side, classes = Bytes(zlib.decompress(packed)), []
    for piece in pieces:
        (kind,) = side.take(1)
        rows = list(side.take(piece.rows if kind else 1))
        columns = list(side.take(piece.columns)) if kind == 2 else [128] * piece.columns
        if kind > 2:
            raise ValueError("an unknown kind of scales")
        for r in range(piece.rows):
            scale = rows[r] if kind else rows[0]
            classes += [clamp((scale + c - 128) >> 1, 0, 23) for c in columns]
    low, high = side.take(24 * 256), side.take(24 * 256)
    if side.at != len(side.data):
        raise ValueError("something follows the tables")
    flat = [a + 256 * b for a, b in zip(low, high)]
    tables = [flat[i : i + 256] for i in range(0, len(flat), 256)]
    for number, table in enumerate(tables):
        if sum(table) != 4096 and (any(table) or number in classes):
            raise ValueError("a table does not sum to 4096")
    return classes, tables


def rans_values(data: Bytes, pieces: Sequence[Piece]) -> Iterator[int]:
    """The integers (for a trellis the indices) of all pieces."""
    classes, tables = rans_side(data.take(data.numbers(1, 4)[0]), pieces)
    wide = any(piece.largest == 32768 for piece in pieces)
    plain = iter(data.numbers(data.numbers(1, 4)[0], 4 if wide else 2, signed=True))
    width = 1 << clamp((len(classes) >> 12).bit_length(), 3, 10)
    states = data.numbers(width, 4)
    for i, number in enumerate(classes):
        x, table = states[i % width], tables[number]
        slot, first, symbol = x & 4095, 0, 0
        while first + table[symbol] <= slot:
            first += table[symbol]
            symbol += 1
        x = table[symbol] * (x >> 12) + slot - first
        if x < 1 << 16:
            x = x << 16 | data.numbers(1, 2)[0]
        states[i % width] = x
        yield next(plain) if symbol == 255 else symbol - 127
    if any(x != 65536 for x in states) or data.at != len(data.data) or next(plain, None) is not None:
        raise ValueError("the section does not end where its weights do")


def decode_rans(payload: bytes, pieces: Sequence[Piece]) -> list[list[list[int]]]:
    """The matrices of a section of kind rans."""
    with_weights = [piece for piece in pieces if piece.rows * piece.columns]
    values = list(rans_values(Bytes(payload), with_weights)) if with_weights else []
    found, at = [], 0
    for piece in pieces:
        matrix, state = Matrix(piece), 0
        for r in range(piece.rows):
            for c in range(piece.columns):
                q = values[at]
                if piece.trellis:
                    parity, k = state & 1, abs(q)
                    level = 2 * k - parity if k > 0 else 0
                    q, state = (-level if q < 0 else level), NEXT[state][k & 1]
                if abs(q) > piece.largest:
                    raise ValueError("above the largest magnitude")
                matrix.q[r][c] = q
                at += 1
        found.append(matrix.q)
    return found
