# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""The compiled part of the context-mixing coder, in one file because numba's cache looks at the file's date only.

A weight is a magnitude class (found by tests "is it above class j?" from a pivot up or down), a sign, and the rest of
the magnitude within its class. Each test is predicted by counters, one for each context, whose logits a mixer adds with
learned weights (logistic mixing: Mahoney 2005). Integers only, so that every machine decodes the same: logits in
1/256 nat, probabilities of 16 bits, means of magnitudes with 8 fractional bits, their logarithms in 1/16 octave.
Counters are (probability - 1/2) in 22 bits, then a count in 10 bits; zero is a fresh one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.gsr.codec import tables
from gossamer.gsr.codec.jit import compiled, inlined
from gossamer.gsr.codec.trellis import NEXT

NODES = 192  # 2 parities of the trellis x 3 ways to a test x 32 classes
SLOTS = 8192  # contexts of one kind
SIGNS = 4
LOW, RANGE, VALUE, AT = range(4)
COUNT_BITS = 10
COUNT_LIMIT = tables.COUNT_LIMIT
ROW_WINDOW, COLUMN_WINDOW, TENSOR_WINDOW = 127, 31, 255
FIRST_MEAN = 64

SQUASH, STRETCH, LOG = tables.squash_table(), tables.stretch_table(), tables.log_table()
CLASS, PIVOT, BORDER = tables.class_table(), tables.pivot_table(), np.array(tables.class_borders(), np.int64)
RATE, MEAN_RATE = tables.rate_table(18), tables.rate_table(15)


class Model(NamedTuple):
    """What is learned within a section, and the range coder (low, range, value, bytes written or read)."""

    counters: NDArray[np.int32]
    weights: NDArray[np.int32]
    learning_rate: NDArray[np.int32]
    sign_counters: NDArray[np.int32]
    sign_weights: NDArray[np.int32]
    rest_counters: NDArray[np.int32]
    coder: NDArray[np.int64]


def fresh_model(contexts: int) -> Model:
    """Nothing learned yet. Mixer weights are 16.16; their sum is 1.5, so that agreeing contexts count for more."""
    return Model(
        counters=np.zeros(contexts * SLOTS * NODES, np.int32),
        weights=np.full(NODES * contexts, 3 * 65536 // (2 * contexts), np.int32),
        learning_rate=np.full(NODES, 22, np.int32),
        sign_counters=np.zeros(SIGNS * 1024, np.int32),
        sign_weights=np.full(SIGNS, 20000, np.int32),
        rest_counters=np.zeros(32 * 8, np.int32),
        coder=np.array([0, 0xFFFFFFFF, 0, 0], np.int64),
    )


@inlined
def decide(encoding, wanted, probability, coder, stream):
    """Code one decision that is 1 with a probability (16 bits). Past the end of the stream: zeros, nothing written."""
    span, at, size = coder[RANGE], coder[AT], stream.size
    # A binary range coder: the current interval [low, low + span) is split in proportion to the probability, and the
    # decision selects the lower part (1) or the upper part (0). A likely decision shrinks it little: few bits.
    bound = (span >> 16) * probability
    bit = wanted if encoding else np.int64(coder[VALUE] < bound)
    if bit:
        span = bound
    else:
        span -= bound
        coder[VALUE] -= bound
        if encoding:
            coder[LOW] += bound
            if coder[LOW] >= 1 << 32:  # a carry: it moves into the bytes that are already written, through all 255s
                coder[LOW] -= 1 << 32
                back = min(at, size) - 1
                while back >= 0 and stream[back] == 255:
                    stream[back] = 0
                    back -= 1
                if back >= 0:
                    stream[back] += np.uint8(1)
    # Less than 24 bits of precision are left, so the top byte is settled: write it (or read the next).
    while span < 1 << 24:
        span <<= 8
        if encoding:
            if at < size:
                stream[at] = coder[LOW] >> 24
            coder[LOW] = coder[LOW] << 8 & 0xFFFFFFFF
        else:
            coder[VALUE] = coder[VALUE] << 8 | (np.int64(stream[at]) if at < size else 0)
        at += 1
    coder[RANGE], coder[AT] = span, at
    return bit


@inlined
def log16(x):
    """floor(16 log2(x)), 0 for 0, of an integer below 2^24; exact below 2^12, of its leading bits above."""
    if x < 1 << 12:
        return np.int64(LOG[x])
    if x < 1 << 18:
        return np.int64(LOG[x >> 6]) + 96
    return np.int64(LOG[x >> 12]) + 192


@inlined
def toward(mean, magnitude, age):
    """A running mean after one more value; the older it is, the slower it moves."""
    return mean + ((magnitude - mean) * np.int64(MEAN_RATE[age]) >> 16)


@inlined
def updated(counter, bit):
    """A counter after a decision: a step of 1 / (count + 1.8)."""
    # Fast at first, then slower up to a limit, so that a counter learns soon and still follows a change.
    count = counter & COUNT_LIMIT
    probability = counter >> COUNT_BITS
    probability += ((bit << 22) - (1 << 21) - probability) * np.int64(RATE[count]) >> 16
    return probability << COUNT_BITS | min(count + 1, COUNT_LIMIT)


@inlined
def predict(counters, places, offset, weights, first, logits):
    """The mixed probability of the decision whose counters are at places + offset; their logits go to `logits`."""
    # Logistic mixing: probabilities are stretched to logits, added with learned weights, and squashed back. A context
    # that is sure has a large logit, and so a say that one that knows nothing has not.
    total = np.int64(0)
    for m in range(places.size):
        logits[m] = STRETCH[(counters[places[m] + offset] >> 20) + 2048]
        total += logits[m] * weights[first + m]
    limit = tables.LOGIT_LIMIT
    return np.int64(SQUASH[max(-limit, min(limit, total + 32768 >> 16)) + limit + 1])


@inlined
def learn(counters, places, offset, weights, first, logits, error, bit):
    """Move the mixer along its gradient, and each counter towards the decision."""
    # The gradient of the coding length by a mixer weight is error x logit: online gradient descent.
    for m in range(places.size):
        moved = weights[first + m] + (logits[m] * error + 65536 >> 17)
        weights[first + m] = max(-(1 << 20), min(1 << 20, moved))
        place = places[m] + offset
        counters[place] = updated(np.int64(counters[place]), bit)


@inlined
def code_class(encoding, wanted, tests, places, logits, model, stream):
    """The class of a magnitude, 0..top: tests upwards from the pivot while true, or downwards while false.

    tests: pivot, top and parity of the trellis state.
    """
    pivot, top, parity = tests
    # Starting at the expected class, most magnitudes need two tests. A test of a class has another meaning on the way
    # up than on the way down, so each way has counters and mixer weights of its own.
    contexts = places.size
    j, way = min(pivot, top - 1), 0
    while True:
        node = parity * 96 + way * 32 + j
        first = node * contexts
        probability = predict(model.counters, places, node, model.weights, first, logits)
        bit = decide(encoding, np.int64(wanted > j), probability, model.coder, stream)
        error = ((bit << 16) - probability) * np.int64(model.learning_rate[node])
        model.learning_rate[node] = max(2, model.learning_rate[node] - 1)
        learn(model.counters, places, node, model.weights, first, logits, error, bit)
        # The way is decided by the first test; the first answer that turns round ends the search.
        if way == 0:
            way = 1 if bit else 2
        elif (way == 1) != (bit == 1):
            return j + bit
        if (bit and j + 1 == top) or (not bit and j == 0):
            return j + bit
        j += 1 if bit else -1


@inlined
def code_rest(encoding, rest, found, model, stream):
    """The place of a magnitude within class `found`; its first three bits are adaptive."""
    if found < 5:
        return np.int64(0)
    # Binary digits, the highest first. Densities fall within a class, so the first digits are worth predicting.
    got, node = np.int64(0), 1
    for b in range((found - 5) // 2, -1, -1):
        wanted = rest >> b & 1
        if node < 8:
            place = found * 8 + node
            counter = np.int64(model.rest_counters[place])
            probability = max(64, min(65472, 32768 + (counter >> 16)))
            bit = decide(encoding, wanted, probability, model.coder, stream)
            model.rest_counters[place] = updated(counter, bit)
            node = 2 * node + bit
        else:
            bit = decide(encoding, wanted, 32768, model.coder, stream)
        got = 2 * got + bit
    return got


@inlined
def code_sign(encoding, wanted, places, logits, model, stream):
    """1 for a negative weight."""
    probability = predict(model.sign_counters, places, 0, model.sign_weights, 0, logits)
    bit = decide(encoding, wanted, probability, model.coder, stream)
    error = ((bit << 16) - probability) * 4
    learn(model.sign_counters, places, 0, model.sign_weights, 0, logits, error, bit)
    return bit


@inlined
def find_contexts(places, near, logs, state, position, shift):
    """Where the counters of a weight's magnitude begin, one place for each context.

    near: this row, the one above, the weight's place in both, and the lag. logs: of the means of row and column, and of
    the expected magnitude. position: row and column.
    """
    here, above, p, lag = near
    row, column, expected = logs
    r, c = position
    a1, a2, a3 = abs(np.int64(here[p - 1])), abs(np.int64(here[p - 2])), abs(np.int64(here[p - 3]))
    up, far = abs(np.int64(above[p])), abs(np.int64(here[p - lag])) if lag else np.int64(0)
    local = log16((a1 + a2 + a3 + far) << (shift - 2))
    k1, k2, k3 = min(np.int64(CLASS[a1]), 15), min(np.int64(CLASS[a2]), 15), min(np.int64(CLASS[up]), 15)
    # The contexts: neighbours; means of row and column; expected size with trellis state and the weight one lag back;
    # local size. With more contexts, also other pairs of sizes, the row itself and the column itself.
    places[0] = (k1 * 16 + k2) * 16 + k3
    places[1] = (row >> 3) * 64 + (column >> 3)
    places[2] = (state >> 1) * 2048 + (expected >> 2) * 16 + min(np.int64(CLASS[far]), 15)
    places[3] = (local >> 2) * 64 + (row >> 3)
    if places.size > 4:
        around = log16((2 * a1 + a2 + 2 * up + abs(np.int64(above[p + 1])) + 2 * far) << (shift - 3))
        places[4] = (expected >> 3) * 96 + (around >> 2)
        places[5] = (expected >> 2) * 48 + (local >> 3)
        places[6] = r & 4095
        places[7] = c & 4095
    for m in range(places.size):
        places[m] = (m * SLOTS + places[m]) * NODES


@inlined
def find_sign_contexts(places, near, row, row_sign, column_sign, shift):
    """The same for the sign: signs nearby, mean signs of row and column, and the sum of two neighbours."""
    here, above, p, lag = near
    left, up, far = np.int64(here[p - 1]), np.int64(above[p]), np.int64(here[p - lag]) if lag else np.int64(0)
    s1 = (1 if left > 0 else 0) + (2 if left < 0 else 0)
    s2 = (1 if up > 0 else 0) + (2 if up < 0 else 0)
    s3 = (1 if far > 0 else 0) + (2 if far < 0 else 0)
    both = left + far
    size = max(0, min((log16(min(abs(both), 32768) << shift) - row + 64) >> 3, 15)) if both else 0
    places[0] = (s1 * 3 + s2) * 3 + s3
    places[1] = 1024 + ((column_sign >> 11) + 16) * 3 + s3
    places[2] = 2048 + ((row_sign >> 11) + 16) * 3 + s1
    places[3] = 3072 + (size * 2 + (1 if both > 0 else 0)) * 3 + s2


@compiled
def code_tensor(encoding, stream, q, columns, lag, largest, trellis, model):
    """Code a tensor (q: flat, row by row) into or out of the stream, and learn from it."""
    # Rows are padded in front by zeros, so that neighbours and lags need no test of borders.
    pad, shift = max(lag, 3), 7 if trellis else 8
    top = np.int64(CLASS[(largest + 1) >> 1 if trellis else largest])
    above, here = np.zeros(columns + pad + 1, np.int32), np.zeros(columns + pad + 1, np.int32)
    column_means, column_signs = np.zeros(columns, np.int64), np.zeros(columns, np.int64)
    places = np.zeros(model.weights.size // NODES, np.int64)
    sign_places, logits = np.zeros(SIGNS, np.int64), np.zeros(8, np.int64)
    mean, state, target, wanted = np.int64(FIRST_MEAN), np.int64(0), np.int64(0), np.int64(0)
    for i in range(q.size):
        r, c = i // columns, i % columns
        p = c + pad
        if c == 0:
            above, here = here, above
            row_mean, row_sign = mean, np.int64(0)
        if r == 0:
            column_means[c] = row_mean
        # Rank-one model of sizes: row mean x column mean / mean of the tensor, as logarithms.
        row, column = log16(row_mean), log16(column_means[c])
        expected = max(0, min(row + column - log16(mean), tables.LOG_LIMIT - 1))
        parity = state & 1
        find_contexts(places, (here, above, p, lag), (row, column, expected), state, (r, c), shift)
        magnitude, level = np.int64(0), np.int64(0)
        if encoding:
            target = abs(np.int64(q[i]))
            target = (target + parity) >> 1 if trellis else target
            wanted = np.int64(CLASS[target])
        tests = np.int64(PIVOT[expected]), top, parity
        found = code_class(encoding, wanted, tests, places, logits, model, stream)
        if found > 0:
            magnitude = BORDER[found] + code_rest(encoding, target - BORDER[found], found, model, stream)
            level = 2 * magnitude - parity if trellis else magnitude
            signs = column_signs[c]
            find_sign_contexts(sign_places, (here, above, p, lag), row, row_sign, signs, shift)
            negative = code_sign(encoding, np.int64(q[i] < 0), sign_places, logits, model, stream)
            column_signs[c] += (32767 - 65535 * negative - signs) >> 4
            row_sign += (32767 - 65535 * negative - row_sign) >> 4
        # From here on encoder and decoder know the weight, and both learn from it alike.
        size = level << shift
        row_mean = toward(row_mean, size, min(c, ROW_WINDOW))
        column_means[c] = toward(column_means[c], size, min(r, COLUMN_WINDOW))
        mean = toward(mean, size, min(i + 1, TENSOR_WINDOW))
        here[p] = -level if found > 0 and negative else level
        q[i] = here[p]
        state = np.int64(NEXT[state, magnitude & 1]) if trellis else state
