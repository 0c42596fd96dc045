"""Kills a planned job at random moments, lets it go on, and compares all that it decided with a job that ran through.

    python -m benchmarks.robustness.kill_planner --kills 100

The job: a small residual network on stripes under noise, a goal in multiply-adds, so that no time decides. Each job is
a process of its own, forked from one that has imported everything, and gets a SIGKILL after so many processor seconds
of the time that the undisturbed job takes: a busy machine kills where a quiet one does. The job is then started again
and ends. Equal must be: the steps, every record that is no time or memory, the history, the curves, the states, and
the bytes of the weights. One job at a time, one thread. A run that was itself interrupted goes on with the jobs that
`--out` does not have yet.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from gossamer import Context, Goal, Task, compress
from gossamer.jobs import exporting

TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.005  # seconds between two looks at the processor time of a job
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
    """One job. at: processor seconds after its start; alive: whether it was still running; differs: from the
    undisturbed one."""

    number: int
    at: float
    alive: bool
    differs: list[str]


class Block(nn.Module):
    """A residual block without a change of shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def trained() -> tuple[nn.Module, Task]:
    """A network of three blocks that tells stripes apart, and its task; the same every time."""
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


@dataclass(frozen=True)
class Job:
    """The job that is killed."""

    model: nn.Module
    task: Task

    def run(self, folder: Path) -> None:
        """In this process. What is only measured is left out: it takes most of the time and decides nothing."""
        exporting.peak_memory = lambda *args, **kwargs: 1
        exporting.runtimes = lambda goal: ["onnxruntime"]
        goal = Goal(max_drop=10, macs=60_000, threads=1, batch=16)
        context = Context(accelerator="cpu")
        compress(self.model, self.task, goal=goal, epochs=2, out=folder, context=context, verbose=False)

    def process(self, folder: Path) -> int:
        """Start the job in a process of its own; gives its number."""
        number = os.fork()
        if number == 0:
            self._begin(folder)
        return number

    def _begin(self, folder: Path) -> NoReturn:
        status = 1
        try:
            with (folder.parent / "said").open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                self.run(folder)
                status = 0
        except BaseException:
            (folder.parent / "failed").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def finish(self, folder: Path) -> float:
        """Run the job to its end; gives its processor seconds."""
        _, status, used = os.wait4(self.process(folder), 0)
        if status != 0:
            raise SystemExit(f"the job in {folder} failed: {(folder.parent / 'failed').read_text()}")
        return used.ru_utime + used.ru_stime

    def kill(self, folder: Path, at: float) -> bool:
        """Run the job for so many processor seconds; gives whether it was killed before its end."""
        number = self.process(folder)
        while processor_seconds(number) < at:
            if os.waitpid(number, os.WNOHANG)[0]:
                return False
            time.sleep(POLL)
        os.kill(number, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL


def processor_seconds(number: int) -> float:
    """Of a process and its ended children, so far."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime")
    return {"gossamer": gossamer.__version__, **{name: metadata.version(name) for name in names}}


def earlier(out: Path, seed: int) -> list[Killed]:
    """The jobs that a run with this seed and these versions has written already."""
    document = json.loads(out.read_text()) if out.exists() else {}
    if (document.get("seed"), document.get("versions")) != (seed, versions()):
        return []
    return [Killed(**one) for one in document["jobs"]]


def main() -> None:
    """Kill, and write what came of it after every kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "kill_planner.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    job, results = Job(*trained()), earlier(asked.out, asked.seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        seconds = job.finish(scratch / "whole")
        expected = decisions(scratch / "whole")
        for number in range(len(results), asked.kills):
            at = random.Random(f"{asked.seed} {number}").uniform(0, seconds)
            folder = scratch / str(number)
            alive = job.kill(folder, at)
            job.finish(folder)
            found = Killed(number, at, alive, differences(expected, decisions(folder)))
            results.append(found)
            told = ", ".join(found.differs) or "equal"
            print(f"kill {number} after {at:.1f} of {seconds:.1f} s: {told}", flush=True)
            report = {
                "measured": [run_conditions([asked.seed], 1)],
                "seed": asked.seed,
                "versions": versions(),
                "processor_seconds": round(seconds, 1),
                "kills": sum(one.alive for one in results),
                "equal": sum(not one.differs for one in results),
                "jobs": [asdict(one) for one in results],
            }
            asked.out.write_text(json.dumps(report, indent=1) + "\n")
            shutil.rmtree(folder)
    sys.exit(any(one.differs for one in results))


if __name__ == "__main__":
    main()
