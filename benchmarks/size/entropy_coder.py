"""gossamer's entropy coders against NNCodec (ISO/IEC 15938-17), Huffman, Deep Compression's gaps, zstd and gzip.

The same integers for all: weights of the shipped networks, whole and magnitude-pruned, rounded to multiples of one
step per set. Then each side's own trellis quantizer at equal squared error. docs/comparisons.md says how to read it.

    python -m benchmarks.size.entropy_coder --peers-python peers/bin/python
    python -m benchmarks.size.entropy_coder --table
"""

import argparse
import gzip
import itertools
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.tables import write_table
from gossamer.core.record import environment, write_text
from gossamer.gsr.codec import gaps, huffman, scalar, trellis
from gossamer.gsr.codec.integers import Integers
from gossamer.gsr.codec.section import decode_section, encode_section
from gossamer.models import pretrained

RESULTS = paths.RESULTS / "coder.json"
NETWORKS = ("lenet300", "lenet5", "resnet20")
DATA = "fashion-mnist"
# Share of weights kept, and NNCodec's quantization parameter: the step is 2^(qp / 4), about.
VARIANTS = ((1.0, -20), (1.0, -28), (0.08, -20), (0.03, -20))
MODES = ("cm4", "cm8", "rans")
# For quantizing at equal error: steps by qp, prices of a bit in squared steps, and where to compare.
QPS = (-16, -20, -24, -28, -31)
TRELLIS_PRICES, SCALAR_PRICES = (0.2, 0.5, 1.0, 2.0), (0.0, 0.12, 0.3)
ERRORS_DB = (-38, -42, -46, -50)
Weights = list[NDArray[np.float32]]
Points = list[dict[str, Any]]


def weights_of(network: str) -> Weights:
    return [p.detach().numpy() for p in pretrained(network, DATA).parameters() if p.ndim > 1]


def step_of(qp: int) -> float:
    return 2.0 ** (qp >> 2) * (4 + (qp & 3)) / 4


def rounded(weights: Weights, kept: float, qp: int) -> list[NDArray[np.int32]]:
    """Multiples of the step; the smallest magnitudes of the whole network are zero."""
    border = np.quantile(np.abs(np.concatenate([w.reshape(-1) for w in weights])), 1 - kept) if kept < 1 else -1.0
    return [np.where(np.abs(w) > border, np.rint(w / step_of(qp)), 0).astype(np.int32) for w in weights]


def lag_of(shape: tuple[int, ...]) -> int:
    """The width of the kernel, or of the image that a first layer of LeNet-300 sees."""
    if len(shape) == 4:
        return shape[3] if shape[3] > 1 else 0
    return 28 if shape[1] == 784 else 0


def section_of(tensors: list[NDArray[np.int32]], is_trellis: bool = False) -> list[Integers]:
    return [Integers(q=q.reshape(q.shape[0], -1), lag=lag_of(q.shape), trellis=is_trellis) for q in tensors]


def mode_row(section: list[Integers], mode: str, repeats: int) -> dict[str, float]:
    """Bytes, and the least processor seconds of several runs each way; compiled code is warm."""
    told, best = [t.header() for t in section], {"encode_s": math.inf, "decode_s": math.inf}
    for _ in range(repeats + 1):
        start = time.process_time()
        data = encode_section(section, mode)
        middle = time.process_time()
        decoded = decode_section(data, told, mode)
        best["encode_s"] = min(best["encode_s"], middle - start)
        best["decode_s"] = min(best["decode_s"], time.process_time() - middle)
    if not all(np.array_equal(q, t.q) for q, t in zip(decoded, section)):
        raise SystemExit(f"{mode} did not give the integers back")
    return {"bytes": len(data), **best}


def order0_bytes(tensors: list[NDArray[np.int32]]) -> float:
    counts = [np.unique(q, return_counts=True)[1] for q in tensors]
    return sum(float((n * np.log2(n.sum() / n)).sum()) for n in counts) / 8


def integers_row(tensors: list[NDArray[np.int32]], repeats: int) -> dict[str, Any]:
    section = section_of(tensors)
    wide = b"".join(q.astype(np.int8 if np.abs(q).max() < 128 else np.int16).tobytes() for q in tensors)
    return {
        "weights": sum(q.size for q in tensors),
        "density": sum(int(np.count_nonzero(q)) for q in tensors) / sum(q.size for q in tensors),
        "modes": {mode: mode_row(section, mode, repeats) for mode in MODES},
        "order0_bytes": order0_bytes(tensors),
        "huffman_bytes": sum(len(huffman.encode(q)) for q in tensors),
        "gaps_bytes": sum(len(gaps.encode(q, 8 if q.ndim == 4 else 5)) for q in tensors),
        "gzip_bytes": len(gzip.compress(wide, 9)),
    }


def quantized_points(weights: Weights, quantizer: Any, steps: Sequence[float], prices: Sequence[float]) -> Points:
    """Errors and bytes (cm8) of a network, for each step and price; one of each for all tensors."""
    flat, points = [w.reshape(w.shape[0], -1) for w in weights], []
    for step, price in itertools.product(steps, prices):
        levels = [quantizer.quantize(w, step, price) for w in flat]
        error = sum(float(((q * step - w) ** 2).sum()) for q, w in zip(levels, flat))
        section = section_of([q.reshape(w.shape) for q, w in zip(levels, weights)], quantizer is trellis)
        size = len(encode_section(section, "cm8"))
        points.append({"step": step, "price": price, "bytes": size, "mse": error / sum(w.size for w in flat)})
    return points


def bytes_at(points: Points, error_db: float) -> float:
    """The fewest bytes of any price at an error; between steps by a monotone cubic (good to 1 to 2 %)."""
    found = []
    for price in {p["price"] for p in points}:
        curve = sorted((10 * math.log10(p["mse"]), p["bytes"]) for p in points if p["price"] == price)
        xs, ys = zip(*curve)
        if xs[0] <= error_db <= xs[-1]:
            found.append(float(PchipInterpolator(xs, ys)(error_db)))
    return min(found)


def measure(peers_python: str, repeats: int) -> dict[str, Any]:
    networks = {name: weights_of(name) for name in NETWORKS}
    sets = {
        f"{name}, {kept:.0%} kept, qp {qp}": rounded(weights, kept, qp)
        for name, weights in networks.items()
        for kept, qp in VARIANTS
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.json"
        arrays = {f"{name}/{i}/q": q for name, tensors in sets.items() for i, q in enumerate(tensors)}
        arrays |= {f"{name}/{i}/w": w for name, weights in networks.items() for i, w in enumerate(weights)}
        np.savez(source, **arrays)  # type: ignore[arg-type]
        peer = Path(__file__).with_name("_coder_peer.py")
        subprocess.run([peers_python, str(peer), str(source), str(target)], check=True)
        theirs = json.loads(target.read_text())
    integers = {name: integers_row(t, repeats) | {"nncodec": theirs["integers"][name]} for name, t in sets.items()}
    steps = [step_of(qp) for qp in QPS]
    equal = {
        name: {
            "nncodec": theirs["trellis"][name],
            "trellis": quantized_points(networks[name], trellis, [0.6 * step for step in steps], TRELLIS_PRICES),
            "scalar": quantized_points(networks[name], scalar, steps, SCALAR_PRICES),
        }
        for name in NETWORKS
    }
    return {
        "format": 1,
        "measured": [run_conditions(["none: the shipped weights"], 1, theirs["versions"])],
        "conditions": {"networks": NETWORKS, "data": DATA, "repeats": repeats, "threads": 1},
        "environment": environment(),
        "peers_versions": theirs["versions"],
        "integers": integers,
        "equal_error": equal,
    }


def against(ours: float, theirs: float) -> str:
    return f"{100 * ours / theirs - 100:+.1f} %"


def table(document: dict[str, Any]) -> str:
    """The Markdown of a document."""
    lines = [
        "# Entropy coders",
        "",
        "Generated from `coder.json`. Payload bytes of all weight tensors, in brackets against NNCodec's",
        "payload for the same integers.",
        "",
        "| integers | density | NNCodec | cm4 | cm8 | rans | order-0 entropy | Huffman | with gaps | zstd | gzip |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in document["integers"].items():
        peer = row["nncodec"]["bytes"]
        sizes = [row["modes"][mode]["bytes"] for mode in MODES]
        sizes += [row["order0_bytes"], row["huffman_bytes"], row["gaps_bytes"]]
        sizes += [row["nncodec"]["zstd_bytes"], row["gzip_bytes"]]
        cells = " | ".join(f"{size:,.0f} ({against(size, peer)})" for size in sizes)
        lines.append(f"| {name} | {row['density']:.3f} | {peer:,} | {cells} |")
    lines += [
        "",
        "MB of float32 weights per processor second, encode / decode, one thread, compiled code warm:",
        "",
        "| integers | NNCodec (C++) | cm4 | cm8 | rans (numpy) |",
        "|---|---|---|---|---|",
    ]
    for name, row in document["integers"].items():
        megabytes = row["weights"] * 4e-6
        timed = [row["nncodec"], *(row["modes"][mode] for mode in MODES)]
        cells = " | ".join(f"{megabytes / t['encode_s']:.0f} / {megabytes / t['decode_s']:.0f}" for t in timed)
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        "Payload bytes (cm8) at equal squared error of the weights, each side with the best price of a bit,",
        "interpolated between steps (good to 1 to 2 %); in brackets against NNCodec with its trellis:",
        "",
        "| network | error (dB) | NNCodec, trellis | our trellis | our rate-aware rounding |",
        "|---|---|---|---|---|",
    ]
    for name, sides in document["equal_error"].items():
        for error in ERRORS_DB:
            peer, *ours = (bytes_at(sides[side], error) for side in ("nncodec", "trellis", "scalar"))
            cells = " | ".join(f"{size:,.0f} ({against(size, peer)})" for size in ours)
            lines.append(f"| {name} | {error} | {peer:,.0f} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default="peers/bin/python", help="a Python with nncodec and zstandard")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only the table again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.table:
        document = measure(options.peers_python, options.repeats)
        write_text(options.out, json.dumps(document, indent=1))
    write_table(options.out, table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
