# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""The compiled part of the quantizers; one file, because numba's cache looks at the file's date only."""

import numpy as np

from gossamer.gsr.codec.jit import compiled, inlined


@inlined
def bits_of(bits, magnitude):
    """The cost of an index of a magnitude >= 0 by one row of `Rates.bits`."""
    last = bits.size - 1
    if magnitude <= last:
        return bits[magnitude]
    return bits[last] + 2 * np.log2(magnitude / last)


@compiled
def choose(x, gain, lagrangian, bits, classes, levels):
    """Fill in the cheapest level of each weight: error + lagrangian x bits."""
    # From just above the weight down towards zero, where bits get fewer: the cost falls, then rises, so the first rise
    # ends the search.
    for i in range(x.size):
        target, row = abs(x[i]), bits[classes[i]]
        best, best_cost = 0, gain[i] * target * target + lagrangian * row[0]
        k = int(target) + 1
        previous = np.inf
        while k > 0:
            cost = gain[i] * (target - k) * (target - k) + lagrangian * bits_of(row, k)
            if cost < best_cost:
                best, best_cost = k, cost
            if cost > previous:
                break
            previous = cost
            k -= 1
        levels[i] = best if x[i] >= 0 else -best


@compiled
def indices_from_levels(levels, table, indices, states):
    """Fill in indices and states; give the position of the first level that does not obey, or the number of levels."""
    state = 0
    for i in range(levels.size):
        parity = state & 1
        level = np.int64(levels[i])
        states[i] = state
        # Even states take even levels, odd states odd ones; zero is in both quantizers.
        if level != 0 and (abs(level) + parity) & 1:
            return i
        k = (abs(level) + parity) >> 1 if level != 0 else 0
        indices[i] = k if level > 0 else -k
        state = np.int64(table[state, k & 1])
    return levels.size


@compiled
def levels_from_indices(indices, table, levels):
    """Fill in the levels."""
    state = 0
    for i in range(indices.size):
        k = np.int64(indices[i])
        parity = state & 1
        levels[i] = 2 * k - (parity if k > 0 else -parity if k < 0 else 0)
        state = np.int64(table[state, k & 1])


@compiled
def viterbi(x, gain, lagrangian, bits, classes, table, start, levels):
    """Fill in the levels of the cheapest path from the state `start`; give the state after it."""
    # Dynamic programming over 8 states. Of all paths into a state only the cheapest can be part of the best one, so one
    # predecessor for each state and weight is kept.
    count = x.size
    picked = np.empty((count, 4), np.int32)
    came = np.empty((count, 8), np.uint8)
    price = np.empty(4)
    costs = np.full(8, np.inf)
    costs[start] = 0.0
    for i in range(count):
        # Four prices serve all 16 transitions: a state matters only through its parity, a branch through that of k.
        for choice in range(4):
            price[choice], picked[i, choice] = best_index(
                abs(x[i]), gain[i], lagrangian, bits[choice >> 1, classes[i]], choice >> 1, choice & 1
            )
        after = np.full(8, np.inf)
        for state in range(8):
            for branch in range(2):
                cost = costs[state] + price[(state & 1) * 2 + branch]
                to = table[state, branch]
                if cost < after[to]:
                    after[to] = cost
                    came[i, to] = state
        costs = after
    # From the cheapest last state back along the predecessors.
    end = np.argmin(costs)
    state = end
    for i in range(count - 1, -1, -1):
        before = came[i, state]
        parity = before & 1
        # Which branch led here: the two successors of a state are different, so comparing one is enough.
        k = picked[i, parity * 2 + (table[before, 1] == state)]
        level = 2 * k - parity if k > 0 else 0
        levels[i] = level if x[i] >= 0 else -level
        state = before
    return end


@inlined
def best_index(target, gain, lagrangian, bits, parity, branch):
    """The cheapest index of a parity for a magnitude: down from above it while that pays, or zero."""
    best_cost, best = np.inf, branch
    if branch == 0:
        best_cost = gain * target * target + lagrangian * bits[0]
    # The smallest index above the weight whose own parity is the branch; level = 2 k - parity.
    k = 2 * int(((target + parity) / 2 - branch) // 2) + branch + 2
    previous = np.inf
    while k > 0:
        error = target - (2 * k - parity)
        cost = gain * error * error + lagrangian * bits_of(bits, k)
        if cost < best_cost:
            best_cost, best = cost, k
        if cost > previous:
            break
        previous = cost
        k -= 2
    return best_cost, best
