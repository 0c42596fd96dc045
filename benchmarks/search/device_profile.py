"""Times that a device profile predicts of networks that it has never seen, beside their measured times.

    python -m benchmarks.search.device_profile --seeds 0

Two networks with random weights, in float32 and in int8, are the whole profile of this machine, as a user makes it with
`bench_on_device.py`; a second profile has some cuts besides. Then channels are cut to random widths and residual blocks
keep theirs in common, as the planner does; each cut is predicted from both profiles and timed by the same program. An
error is the distance from the measured time, in parts of it; ranks are compared over all cuts of a kind.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from gossamer.core.record import write_text
from gossamer.models import build
from gossamer.modules.element_groups import channel_groups
from gossamer.ptq.isolated_layers import quantize_for_timing
from gossamer.runtime.programs import bench_on_device
from gossamer.search.device_profile import predicted_ms, read_profile

RESULTS = paths.RESULTS / "device-profile.json"
NETWORKS = {"resnet20": 32, "mobilenet_v1_050": 128}  # and the side of their images
LEAST, ROUND = 0.15, 4  # share of the channels that stays, at least; widths are a multiple
SEEN = 4  # cuts of each network in the second profile


def cut(model: nn.Module, inputs: Tensor, source: random.Random) -> nn.Module:
    """The network with channels of random widths."""
    share = source.uniform(LEAST, 0.9)
    widths = {}
    for name, size in Counter(channel_groups(model, inputs).names).items():
        wanted = size * min(1.0, share * source.uniform(0.7, 1.3))
        widths[name] = max(ROUND, round(wanted / ROUND) * ROUND) if size >= ROUND else size
    return gossamer.prune_channels(model, inputs, widths=widths).model


def files_of(model: nn.Module, inputs: Tensor, name: str, folder: Path, threads: int) -> list[Path]:
    """Its `.onnx` files in float32 and in int8."""
    plain = gossamer.export_onnx(model, inputs, folder / f"{name}.onnx")
    small = folder / f"{name}.int8.onnx"
    quantize_for_timing(plain, small, (inputs,), threads=threads)
    return [plain, small]


def timed(files: list[Path], out: Path, threads: int, batch: int) -> dict[str, float]:
    """Milliseconds of each file, by the program that users run on their device."""
    command = [sys.executable, bench_on_device.__file__, *map(str, files), "--threads", str(threads)]
    subprocess.run([*command, "--batch", str(batch), "--out", str(out)], check=True, capture_output=True)
    return {one["file"]: one["median_ms"] for one in json.loads(out.read_text())["networks"]}


def of_network(name: str, seed: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Predicted and measured times of all cuts of one network."""
    torch.manual_seed(seed)
    source, say = random.Random(f"{name} {seed}"), Lines().say
    side = NETWORKS[name]
    model, inputs = build(name, classes=10).eval(), torch.randn(options.batch, 3, side, side)
    known = files_of(model, inputs, name, folder, options.threads)
    more = [files_of(cut(model, inputs, source), inputs, f"seen{i}", folder, options.threads) for i in range(SEEN)]
    profiles = {"original alone": known, "and a cut": [*known, *more[0]]}
    profiles[f"and {SEEN} cuts"] = [*known, *(file for pair in more for file in pair)]
    read = {}
    for label, files in profiles.items():
        timed(files, folder / f"{label}.json", options.threads, options.batch)
        read[label] = read_profile(folder / f"{label}.json")
    rows = []
    for i in range(options.cuts):
        for file in files_of(cut(model, inputs, source), inputs, f"new{i}", folder, options.threads):
            found = timed([file], folder / "new.json", options.threads, options.batch)[file.name]
            predicted = {
                label: predicted_ms(one, file, (inputs,), threads=options.threads) for label, one in read.items()
            }
            precision = "int8" if ".int8." in file.name else "float32"
            rows.append({"network": name, "seed": seed, "precision": precision, "ms": found, "predicted": predicted})
            say(f"{name}, cut {i}, {precision}: {found:.3f} ms, predicted {predicted}")
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median error and rank correlation for each profile, of all rows and of each kind."""
    kinds = {"all": rows}
    for row in rows:
        kinds.setdefault(f"{row['network']}, {row['precision']}", []).append(row)
    found: dict[str, Any] = {}
    for kind, some in kinds.items():
        for label in some[0]["predicted"]:
            pairs = [(row["predicted"][label], row["ms"]) for row in some]
            found.setdefault(kind, {"networks": len(some)})[label] = {
                "median error, %": round(100 * statistics.median(abs(p / ms - 1) for p, ms in pairs), 2),
                "largest error, %": round(100 * max(abs(p / ms - 1) for p, ms in pairs), 2),
                "rank correlation": round(float(spearmanr(*zip(*pairs)).statistic), 4),
            }
    return found


def main() -> None:
    """Profile, predict, time; write after every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--cuts", type=int, default=13, help="of each network, each in two precisions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {"rows": []}
    for seed in options.seeds:
        for name in options.networks:
            with tempfile.TemporaryDirectory() as folder:
                document["rows"] += of_network(name, seed, options, Path(folder))
            document["measured"] = with_run(document, run_conditions(options.seeds, options.threads))
            document["summary"] = summary(document["rows"])
            write_text(options.out, json.dumps(document, indent=1))
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    main()
