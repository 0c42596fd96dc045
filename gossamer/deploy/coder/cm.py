"""Context-mixing arithmetic coder: every weight as a few binary decisions, each predicted by several contexts."""

import numpy as np

from gossamer.deploy.coder import tables
from gossamer.deploy.coder.jit import compiled
from gossamer.errors import CorruptFile

NODES = 192
SIZE = 8192 * NODES
SQUASH = tables.squash_table()
STRETCH = tables.stretch_table()
RATE = tables.rate_table(16)
WINDOW = tables.rate_table(15)
LOG = tables.log_table()
CLASS = tables.class_table()
BORDER = np.array(tables.class_borders() + [1 << 16], np.int64)
PIVOT = tables.pivot_table()
NEXT = np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], np.int64)


@compiled
def log16(x):
    if x < 4096:
        return np.int64(LOG[x])
    if x < 1 << 18:
        return np.int64(LOG[x >> 6]) + 96
    return np.int64(LOG[x >> 12]) + 192


@compiled
def code(
    encoding,
    stream,
    start,
    q,
    rows,
    columns,
    lag,
    largest,
    trellis,
    n,
    counters,
    signs,
    simple,
    weights,
    sets,
    mean0,
    rowwin,
    colwin,
    climit,
    wrate,
):
    # range coder state
    low = np.int64(start[0])
    rng = np.int64(start[1])
    value = np.int64(start[2])
    pos = np.int64(start[3])
    size = stream.size
    top = np.int64(CLASS[largest])
    pad = max(lag, 3)
    above = np.zeros(columns + pad + 2, np.int32)
    here = np.zeros(columns + pad + 2, np.int32)
    cmean = np.zeros(columns + 1, np.int32)
    csign = np.zeros(columns + 1, np.int32)
    base = np.zeros(8, np.int64)
    sbase = np.zeros(4, np.int64)
    at = np.zeros(8, np.int64)
    st = np.zeros(8, np.int64)
    g = np.int64(mean0)
    seen = 0
    state = 0
    shift = 7 if trellis else 8
    for r in range(rows):
        rm = g
        rs = 0
        crate = np.int64(WINDOW[min(r, colwin)])
        for c in range(columns):
            p = c + pad
            s1 = np.int64(here[p - 1])
            s2 = np.int64(here[p - 2])
            s3 = np.int64(here[p - 3])
            su = np.int64(above[p])
            sl = np.int64(here[p - lag]) if lag > 0 else np.int64(0)
            a1 = abs(s1)
            a2 = abs(s2)
            a3 = abs(s3)
            au = abs(su)
            al = abs(sl)
            if r == 0:
                cmean[c] = rm
            cm = np.int64(cmean[c])
            lrm = log16(rm)
            lcm = log16(cm)
            le = lrm + lcm - log16(g)
            le = max(0, min(le, 383))
            parity = state & 1
            tr = parity * 96
            local = (a1 + a2 + a3 + al) << (shift - 2)
            ll = log16(local)
            k1 = np.int64(CLASS[min(a1, 32768)])
            k2 = np.int64(CLASS[min(a2, 32768)])
            ku = np.int64(CLASS[min(au, 32768)])
            base[0] = ((min(k1, 15) * 16 + min(k2, 15)) * 16 + min(ku, 15)) * NODES + tr
            base[1] = SIZE + ((lrm >> 3) * 64 + (lcm >> 3)) * NODES + tr
            base[2] = (
                2 * SIZE
                + ((le >> 2) * 16 + min(np.int64(CLASS[min(al, 32768)]), 15) + (state >> 1) * 2048) * NODES
                + tr
            )
            base[3] = 3 * SIZE + ((ll >> 2) * 64 + (lrm >> 3)) * NODES + tr
            if n > 4:
                nb = (2 * a1 + a2 + 2 * au + abs(np.int64(above[p + 1])) + 2 * al) << (shift - 3)
                base[4] = 4 * SIZE + ((le >> 3) * 96 + (log16(nb) >> 2)) * NODES + tr
                base[5] = 5 * SIZE + ((le >> 2) * 48 + (ll >> 3)) * NODES + tr
                base[6] = 6 * SIZE + (r & 4095) * NODES + tr
                base[7] = 7 * SIZE + (c & 4095) * NODES + tr
            pivot = min(np.int64(PIVOT[le]), top - 1)
            # class
            i = np.int64(r) * columns + c
            target = np.int64(0)
            want = np.int64(0)
            neg = np.int64(0)
            k = np.int64(0)
            if encoding:
                target = np.int64(q[i])
                neg = np.int64(target < 0)
                target = abs(target)
                if trellis:
                    target = (target + parity) >> 1
                want = np.int64(CLASS[target])
            j = pivot
            way = 0
            while top > 0:
                node = way * 32 + j
                ws = (node + tr) * n
                dot = np.int64(0)
                for m in range(n):
                    a = base[m] + node
                    at[m] = a
                    s = np.int64(STRETCH[(np.int64(counters[a]) >> 20) + 2048])
                    st[m] = s
                    dot += s * np.int64(weights[ws + m])
                dot = (dot + 32768) >> 16
                dot = max(-2815, min(2815, dot))
                pr = np.int64(SQUASH[dot + 2816])
                bound = (rng >> 16) * pr
                if encoding:
                    bit = np.int64(want > j)
                else:
                    bit = np.int64(value < bound)
                if bit:
                    rng = bound
                else:
                    low += bound
                    value -= bound
                    rng -= bound
                    if encoding and low >= 1 << 32:
                        low -= 1 << 32
                        b = pos - 1
                        while b >= 0 and stream[b] == 255:
                            stream[b] = 0
                            b -= 1
                        if b >= 0:
                            stream[b] += np.uint8(1)
                while rng < 1 << 24:
                    if encoding:
                        stream[pos] = low >> 24
                        low = (low << 8) & 0xFFFFFFFF
                    else:
                        value = (value << 8) | (np.int64(stream[pos]) if pos < size else np.int64(0))
                    pos += 1
                    rng <<= 8
                err = ((bit << 16) - pr) * (wrate + np.int64(sets[node + tr]))
                if sets[node + tr] > 0:
                    sets[node + tr] -= 1
                for m in range(n):
                    weights[ws + m] += (st[m] * err + 65536) >> 17
                    s = np.int64(counters[at[m]])
                    cnt = s & 1023
                    pp = s >> 10
                    pp += (((bit << 22) - (1 << 21) - pp) * np.int64(RATE[cnt])) >> 16
                    counters[at[m]] = (pp << 10) | min(cnt + 1, climit)
                # next node
                if way == 0:
                    if bit:
                        way = 1
                        j += 1
                        if j >= top:
                            k = j
                            break
                    else:
                        if j == 0:
                            k = 0
                            break
                        way = 2
                        j -= 1
                elif way == 1:
                    if not bit:
                        k = j
                        break
                    j += 1
                    if j >= top:
                        k = j
                        break
                else:
                    if bit:
                        k = j + 1
                        break
                    if j == 0:
                        k = 0
                        break
                    j -= 1
            mag = BORDER[k]
            if k > 4:
                bits = (k - 5) // 2 + 1
                rest = target - mag
                got = np.int64(0)
                ctx = 1
                for b in range(bits - 1, -1, -1):
                    if ctx < 8:
                        x = k * 128 + min(le >> 3, 15) * 8 + ctx
                        x = k * 8 + ctx
                        s = np.int64(simple[x])
                        pr = 32768 + (s >> 16)
                        pr = max(64, min(65472, pr))
                    else:
                        pr = 32768
                        x = 0
                    bound = (rng >> 16) * pr
                    if encoding:
                        bit = (rest >> b) & 1
                    else:
                        bit = np.int64(value < bound)
                    if bit:
                        rng = bound
                    else:
                        low += bound
                        value -= bound
                        rng -= bound
                        if encoding and low >= 1 << 32:
                            low -= 1 << 32
                            bb = pos - 1
                            while bb >= 0 and stream[bb] == 255:
                                stream[bb] = 0
                                bb -= 1
                            if bb >= 0:
                                stream[bb] += np.uint8(1)
                    while rng < 1 << 24:
                        if encoding:
                            stream[pos] = low >> 24
                            low = (low << 8) & 0xFFFFFFFF
                        else:
                            value = (value << 8) | (np.int64(stream[pos]) if pos < size else np.int64(0))
                        pos += 1
                        rng <<= 8
                    if ctx < 8:
                        cnt = s & 1023
                        pp = s >> 10
                        pp += (((bit << 22) - (1 << 21) - pp) * np.int64(RATE[cnt])) >> 16
                        simple[x] = (pp << 10) | min(cnt + 1, climit)
                        ctx = ctx * 2 + bit
                    got = got * 2 + bit
                mag += got
            level = mag
            if trellis and mag > 0:
                level = 2 * mag - parity
            # sign
            if mag > 0:
                cs = np.int64(csign[c])
                t1 = (1 if s1 > 0 else 0) + (2 if s1 < 0 else 0)
                t2 = (1 if su > 0 else 0) + (2 if su < 0 else 0)
                t3 = (1 if sl > 0 else 0) + (2 if sl < 0 else 0)
                sbase[0] = (t1 * 3 + t2) * 3 + t3
                sbase[1] = 1024 + min(max((cs >> 11) + 16, 0), 31) * 3 + t3
                sbase[2] = 2048 + min(max((rs >> 11) + 16, 0), 31) * 3 + t1
                sm = s1 + sl
                lq = log16(min(abs(sm), 32768) << shift) - lrm + 64
                lq = max(0, min(lq >> 3, 15)) if sm != 0 else 0
                sbase[3] = 3072 + (lq * 2 + (1 if sm > 0 else 0)) * 3 + t2
                ws = 192 * n
                dot = np.int64(0)
                for m in range(4):
                    s = np.int64(STRETCH[(np.int64(signs[sbase[m]]) >> 20) + 2048])
                    st[m] = s
                    dot += s * np.int64(weights[ws + m])
                dot = (dot + 32768) >> 16
                dot = max(-2815, min(2815, dot))
                pr = np.int64(SQUASH[dot + 2816])
                bound = (rng >> 16) * pr
                if encoding:
                    bit = neg
                else:
                    bit = np.int64(value < bound)
                if bit:
                    rng = bound
                else:
                    low += bound
                    value -= bound
                    rng -= bound
                    if encoding and low >= 1 << 32:
                        low -= 1 << 32
                        b = pos - 1
                        while b >= 0 and stream[b] == 255:
                            stream[b] = 0
                            b -= 1
                        if b >= 0:
                            stream[b] += np.uint8(1)
                while rng < 1 << 24:
                    if encoding:
                        stream[pos] = low >> 24
                        low = (low << 8) & 0xFFFFFFFF
                    else:
                        value = (value << 8) | (np.int64(stream[pos]) if pos < size else np.int64(0))
                    pos += 1
                    rng <<= 8
                err = ((bit << 16) - pr) * 4
                for m in range(4):
                    weights[ws + m] += (st[m] * err + 65536) >> 17
                    s = np.int64(signs[sbase[m]])
                    cnt = s & 1023
                    pp = s >> 10
                    pp += (((bit << 22) - (1 << 21) - pp) * np.int64(RATE[cnt])) >> 16
                    signs[sbase[m]] = (pp << 10) | min(cnt + 1, 255)
                csign[c] += ((32768 if not bit else -32768) - cs) >> 4
                rs += ((32768 if not bit else -32768) - rs) >> 4
                if bit:
                    level = -level
            here[p] = level
            if not encoding:
                q[i] = level
            if trellis:
                state = NEXT[state, mag & 1]
            am = abs(level) << shift
            rm += ((am - rm) * np.int64(WINDOW[min(c, rowwin)])) >> 16
            cmean[c] = cm + (((am - cm) * crate) >> 16)
            seen += 1
            g += ((am - g) * np.int64(WINDOW[min(seen, 255)])) >> 16
        above, here = here, above
    start[0] = low
    start[1] = rng
    start[2] = value
    start[3] = pos
    return g


def new_model(n):
    counters = np.zeros(n * SIZE, np.int32)
    signs = np.zeros(4096, np.int32)
    simple = np.zeros(32 * 8, np.int32)
    weights = np.full(192 * n + 8, int(65536 * 1.2 / n), np.int32)
    weights[192 * n :] = 20000
    sets = np.full(192, 300, np.int32)
    return counters, signs, simple, weights, sets


PARAMS = dict(rowwin=63, colwin=31, climit=255, wrate=8)


def encode(tensors, mode, **kw):
    n = int(mode[2:])
    P = {**PARAMS, **kw}
    total = sum(t.q.size for t in tensors)
    out = np.zeros(total * 5 + 64, np.uint8)
    model = new_model(n)
    start = np.array([0, 0xFFFFFFFF, 0, 0], np.int64)
    for t in tensors:
        h = t.header()
        if h.weights and h.largest:
            q = np.ascontiguousarray(t.q).reshape(-1)
            code(
                True,
                out,
                start,
                q,
                h.rows,
                h.columns,
                h.lag,
                h.largest,
                h.trellis,
                n,
                *model,
                64,
                P["rowwin"],
                P["colwin"],
                P["climit"],
                P["wrate"],
            )
    low, rng, _, pos = (int(x) for x in start)
    val = int.from_bytes(out[:pos].tobytes(), "big") << 32
    # the shortest tail within the last interval
    for keep in range(5):
        unit = 1 << (32 - 8 * keep)
        x = (low + unit - 1) // unit * unit
        if x < low + rng:
            break
    return (val + x).to_bytes(pos + 4, "big")[: pos + keep]


def decode(data, headers, mode, **kw):
    n = int(mode[2:])
    P = {**PARAMS, **kw}
    stream = np.frombuffer(data, np.uint8).copy()
    model = new_model(n)
    start = np.array([0, 0xFFFFFFFF, int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4], np.int64)
    out = []
    for h in headers:
        q = np.zeros((h.rows, h.columns), np.int32)
        if h.weights and h.largest:
            code(
                False,
                stream,
                start,
                q.reshape(-1),
                h.rows,
                h.columns,
                h.lag,
                h.largest,
                h.trellis,
                n,
                *model,
                64,
                P["rowwin"],
                P["colwin"],
                P["climit"],
                P["wrate"],
            )
        out.append(q)
    used = int(start[3])
    if not used - 4 <= len(data) <= used:
        raise CorruptFile(f"a section of {len(data)} bytes codes {used - 4} to {used}")
    return out
