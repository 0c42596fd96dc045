"""The peers' side of entropy_coder.py; runs in a Python with nncodec and zstandard.

    peers/bin/python benchmarks/size/_coder_peer.py IN.npz OUT.json

Keys of the input: SET/NUMBER/q (integers to code, in the tensor's own shape) and SET/NUMBER/w (weights, for NNCodec's
own trellis-coded quantization). NNCodec's coder starts afresh with every tensor, as NNCodec does, with its parameter
optimization; of its two profiles the smaller payload counts.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zstandard
from nncodec.extensions import deepCABAC

QUIET = (deepCABAC.HdspMode.AlwaysOff, np.array((0, 0), np.int8))
UNARY, DENSITY = 10, 2
# Steps and prices of a bit (0 is NNCodec's default) for its trellis quantizer.
QPS = (-16, -20, -24, -28, -31)
PRICES = (0.0, 0.4, 1.0, 2.5)


def encode(q, profile, trellis=0):
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(UNARY + 1, 1)
    skipped = np.array([profile and not row.any() for row in q], np.int32)
    encoder.encodeLayer(q, trellis, 0, profile, 0, profile, skipped, *QUIET, 0, 0)
    return encoder.finish().tobytes()


def decode(data, like, profile):
    decoder, found = deepCABAC.Decoder(), np.zeros(like.shape, np.int32)
    decoder.setStream(np.frombuffer(data, np.uint8))
    decoder.initCtxModels(UNARY + 1)
    decoder.decodeLayer(found, 0, 0, profile, 0, *QUIET, 0, 0)
    return found


def smaller(q, trellis=0):
    return min((encode(q, profile, trellis) for profile in (0, 1)), key=len)


def integers_row(tensors):
    best = {"encode_s": np.inf, "decode_s": np.inf}
    for _ in range(5):
        start = time.process_time()
        coded = [encode(q, 0) for q in tensors]
        middle = time.process_time()
        decoded = [decode(data, q, 0) for data, q in zip(coded, tensors)]
        best["encode_s"] = min(best["encode_s"], middle - start)
        best["decode_s"] = min(best["decode_s"], time.process_time() - middle)
    if not all(np.array_equal(a, b) for a, b in zip(decoded, tensors)):
        raise SystemExit("NNCodec's decoder did not give the integers back")
    wide = b"".join(q.astype(np.int8 if np.abs(q).max() < 128 else np.int16).tobytes() for q in tensors)
    zstd = zstandard.ZstdCompressor(level=19).compress(wide)
    return {"bytes": sum(len(smaller(q)) for q in tensors), "zstd_bytes": len(zstd), **best}


def trellis_row(weights, qp, price):
    """Bytes and mean squared error of NNCodec's own trellis quantizer."""
    size, error, count = 0, 0.0, 0
    for w in weights:
        encoder, levels = deepCABAC.Encoder(), np.zeros(w.shape, np.int32)
        encoder.initCtxModels(UNARY, 0)
        used = encoder.quantLayer(w, levels, 1, DENSITY, qp, price, UNARY, 0, 0)
        found = np.zeros(w.shape, np.float32)
        deepCABAC.Decoder().dequantLayer(found, levels, DENSITY, used, 0)
        size += len(smaller(levels, 1))
        error += float(((found.astype(np.float64) - w) ** 2).sum())
        count += w.size
    return {"qp": qp, "price": price, "bytes": size, "mse": error / count}


def main(source, target):
    arrays, sets = np.load(source), {}
    for key in arrays.files:
        name, number, kind = key.split("/")
        sets.setdefault(name, {}).setdefault(kind, {})[int(number)] = arrays[key]
    found = {"versions": {n: version(n) for n in ("nncodec", "zstandard", "numpy")}, "integers": {}, "trellis": {}}
    for name, kinds in sets.items():
        if "q" in kinds:
            found["integers"][name] = integers_row([kinds["q"][i] for i in sorted(kinds["q"])])
        if "w" in kinds:
            weights = [kinds["w"][i] for i in sorted(kinds["w"])]
            found["trellis"][name] = [trellis_row(weights, qp, price) for qp in QPS for price in PRICES]
    Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
