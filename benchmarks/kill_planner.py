"""Kills a planned job at random moments, lets it go on, and compares all that it decided with a job that ran through.

    python benchmarks/kill_planner.py --kills 100 --seed 0 --out results/kill_planner.json

The job: a small residual network on stripes under noise, a goal in multiply-adds, so that no time decides. Each kill is
a SIGKILL in a process of its own, at a moment of the time that the undisturbed job takes;
the job is then started again and ends. Equal must be: the steps, every record that is no time or memory, the
history, the curves, the states, and the bytes of the weights. One process at a time, one thread.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = ("latency", "peak_memory")  # another number each time


def decisions(folder: Path) -> dict[str, Any]:
    """All of a finished job that must not depend on when it ran."""
    document = json.loads((folder / "records.json").read_text())
    for name in ("seconds", "environment", "command"):
        document.pop(name)
    document["records"] = [row for row in document["records"] if row["what"] not in MEASURED]
    document.pop("files")  # the archives hold numbers of their own; the weights are compared below
    for state in document["states"]:
        state.pop("latency_ms")
    for curve in document["curves"]:
        curve.pop("seconds")
    for layer in (*document["layers_before"], *document["layers_after"]):
        layer.pop("time_ms")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"document": document, "recipe": (folder / "recipe.yaml").read_text(), "weights": weights}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Places at which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for n, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{where}/{n}")]
    return [] if one == other else [where or "/"]


@dataclass(frozen=True)
class Killed:
    """One job. at: seconds after its start; alive: whether it was still running; differs: from the undisturbed one."""

    number: int
    at: float
    alive: bool
    differs: list[str]


def worker(folder: Path) -> None:
    """The job itself."""
    import torch

    from gossamer import Context, Goal, compress

    torch.set_num_threads(1)
    model, task = trained()
    print("ready", flush=True)
    goal = Goal(max_drop=10, macs=60_000, threads=1, batch=16)
    compress(model, task, goal=goal, epochs=2, out=folder, context=Context(accelerator="cpu"))


def trained() -> tuple[Any, Any]:
    """A network of three blocks that tells stripes apart, and its task; the same every time."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from gossamer import Task

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))

    generator = torch.Generator().manual_seed(2)
    kinds = torch.stack([torch.eye(6)[:, None, i::3].sum((1, 2)).expand(6, 6) for i in range(3)])

    def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        labels = torch.arange(16 * count) % 3
        images = 2 * kinds[labels][:, None] + 0.7 * torch.randn(16 * count, 1, 6, 6, generator=generator)
        return list(zip(images.split(16), labels.split(16)))

    train = batches(12)
    task = Task(
        name="stripes",
        train=train,
        validation=batches(6),
        test=batches(6),
        calibration=[images for images, _ in train[:2]],
        example_inputs=(train[0][0][:4],),
    )
    torch.manual_seed(0)
    blocks = (Block() for _ in range(3))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(4):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), task


def started(folder: Path) -> subprocess.Popen[str]:
    """The job in a process of its own, once it has begun."""
    command = [sys.executable, __file__, "--worker", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"the job in {folder} does not start")
    return process


def finish(folder: Path) -> float:
    """Run the job to its end; gives its seconds."""
    start, process = time.monotonic(), started(folder)
    begun = time.monotonic()
    if process.wait() != 0:
        raise SystemExit(f"the job in {folder} ended with {process.returncode} after {begun - start:.0f} s")
    return time.monotonic() - begun


def kill(number: int, folder: Path, at: float, expected: dict[str, Any]) -> Killed:
    """One job, killed and started again."""
    process = started(folder)
    try:
        process.wait(at)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    alive = process.wait() == -signal.SIGKILL
    finish(folder)
    return Killed(number, at, alive, differences(expected, decisions(folder)))


def main() -> None:
    """Kill, and write what came of it after every kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kill_planner.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        worker(asked.worker)
        return
    moments, results = random.Random(asked.seed), list[Killed]()
    with tempfile.TemporaryDirectory() as scratch:
        seconds = finish(Path(scratch) / "whole")
        expected = decisions(Path(scratch) / "whole")
        for number in range(asked.kills):
            found = kill(number, Path(scratch) / str(number), moments.uniform(0, seconds), expected)
            results.append(found)
            print(
                f"kill {number} after {found.at:.1f} of {seconds:.1f} s: {', '.join(found.differs) or 'equal'}",
                flush=True,
            )
            equal = sum(not one.differs for one in results)
            report = {
                "seed": asked.seed,
                "seconds": seconds,
                "kills": sum(one.alive for one in results),
                "equal": equal,
                "jobs": [vars(one) for one in results],
            }
            asked.out.write_text(json.dumps(report, indent=1))
    sys.exit(any(one.differs for one in results))


if __name__ == "__main__":
    main()
