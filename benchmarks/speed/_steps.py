"""The steps of `compare.py` that make networks: dense, int8 alone, gossamer's main job, by hand. Each is done once."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import gossamer
from benchmarks.common.progress import Lines
from benchmarks.speed import _by_hand, _measure
from gossamer.cli.loading import Request, load_model
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.jobs.recipe import load_recipe, shipped
from gossamer.measure import evaluate
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.models import build_for, checkpoints, load_weights, save_weights
from gossamer.ptq.fallback import float32_scores

INT8_BUDGET = 0.1  # points, of int8 alone
HAND = {"lr": 0.1, "weight_decay": 5e-4}  # fine-tuning of what was pruned by hand: as in training from scratch
DEFAULT_TRAINING = gossamer.Training(epochs=8, lr=0.1, schedule="one_cycle", warmup=0.3)


@dataclass(frozen=True)
class Bench:
    """The options, and one seed's folder, network and data at a time."""

    options: argparse.Namespace
    lines: Lines

    @property
    def work(self) -> Path:
        return Path(self.options.work) / f"{self.options.model}-{self.options.data}"

    def folder(self, seed: int) -> Path:
        return self.work / f"seed{seed}"

    def dense_path(self, seed: int) -> Path:
        return self.folder(seed) / "dense.safetensors"

    def task(self, seed: int) -> Task:
        return gossamer.load_task(self.options.data, seed=seed)

    def dense(self, seed: int, task: Task) -> nn.Module:
        if not self.dense_path(seed).exists():
            raise BadInput(f"seed {seed}: there is no dense network yet; add dense to --stages")
        return load_weights(build_for(self.options.model, task), self.dense_path(seed)).eval()

    def run(self, seed: int) -> gossamer.Context:
        return gossamer.Context(seed=seed, progress=self.lines)

    def once(self, facts: Path, name: str, make: Callable[[], dict[str, Any]]) -> bool:
        """Run a step unless its facts are there; they are written last, with the seconds that it took."""
        if facts.exists():
            return True
        facts.parent.mkdir(parents=True, exist_ok=True)
        self.lines.say(name)
        began = time.monotonic()
        found = make()
        write_text(facts, json.dumps(found | {"wall_seconds": round(time.monotonic() - began, 1)}, indent=1))
        return True


def train_dense(bench: Bench, seed: int) -> dict[str, Any]:
    """The network that everything starts from: given, shipped, or trained as the shipped recipe says."""
    options, target = bench.options, bench.dense_path(seed)
    task = bench.task(seed)
    given = options.weights.get(seed)
    name = f"train-{options.model}-{options.data}"
    recipe = load_recipe(Path(name)) if name in shipped() else None
    ships = [c for c in checkpoints() if (c.name, c.data) == (options.model, options.data) and seed == 0]
    if given is not None or (ships and options.dense_epochs is None):
        source = given or ships[0].path
        save_weights(load_weights(build_for(options.model, task), source), target, {})
        found: dict[str, Any] = {"source": "given" if given else "shipped checkpoint"}
    else:
        training = recipe.training if recipe and recipe.training else DEFAULT_TRAINING
        if options.dense_epochs is not None:
            training = replace(training, epochs=options.dense_epochs)
        model = load_model(Request(model=options.model, task=task, random=True, seed=seed)).model
        checkpoint = target.with_suffix(".ckpt")
        gossamer.fit(model, task, training, bench.run(seed), checkpoint=checkpoint, label=f"dense, seed {seed}")
        save_weights(model, target, {})
        checkpoint.unlink()
        found = {"source": f"trained as {name}" if recipe else "trained", "training": training.options()}
    model = bench.dense(seed, task)
    return found | {split: evaluate(model, task, split).shown for split in _measure.SPLITS}


def int8_alone(bench: Bench, seed: int, folder: Path) -> dict[str, Any]:
    """gossamer's int8 fallback sequence on the dense network, nothing cut, nothing trained."""
    task = bench.task(seed)
    model = bench.dense(seed, task)
    reference = float32_scores(model, task)
    made = gossamer.quantize_int8(
        model,
        task,
        folder,
        goal=gossamer.Goal(max_drop=INT8_BUDGET, threads=bench.options.threads),
        reference=reference,
        context=bench.run(seed),
    )
    return {"rung": made.chosen, "drop_validation": made.drop.points, "rungs": [asdict(step) for step in made.steps]}


def main_job(bench: Bench, seed: int, goal: gossamer.Goal, folder: Path) -> dict[str, Any]:
    """gossamer's main job, as a user calls it."""
    options = bench.options
    task = bench.task(seed)
    model = bench.dense(seed, task)
    result = folder / "result"
    resumed = result.exists()
    made = gossamer.compress(model, task, goal=goal, epochs=options.epochs, out=result, context=bench.run(seed))
    document = made.document
    return {
        "seed": seed,
        "goal": asdict(goal),
        "name": folder.name,
        "met": document.met,
        "missed": document.missed,
        "steps_seconds": document.seconds,
        "resumed": resumed,
        "recipe": (result / "recipe.yaml").read_text(),
        "command": document.command,
    }


def hand_folder(bench: Bench, seed: int, network: str) -> Path:
    return bench.folder(seed) / "hand" / network.replace(":", "-")


def job_folder(bench: Bench, seed: int, goal: gossamer.Goal) -> Path:
    return bench.folder(seed) / "gossamer" / f"gossamer-{goal.runtime}-{goal.speedup:g}x"


def missing(bench: Bench, seed: int) -> list[str]:
    """What the options ask for and is not there."""
    options = bench.options
    networks = [_by_hand.DENSE, *map(str, options.cuts)]
    jobs = [job_folder(bench, seed, goal) for goal in options.goals]
    found = [f"by hand, {n}" for n in networks if not (hand_folder(bench, seed, n) / _by_hand.FACTS).exists()]
    found += [job.name for job in jobs if not (job / "job.json").exists()]
    return [f"seed {seed}: {name}" for name in found]


def by_hand(bench: Bench, seed: int, network: str, *, train_only: bool = False) -> bool:
    """One network of the hand, in the peers' Python. Gives whether it worked; a failure leaves the rest going."""
    options, recover = bench.options, RecoveryDistillation(epochs=bench.options.epochs, **HAND)
    folder = hand_folder(bench, seed, network)
    if (folder / _by_hand.FACTS).exists() or (train_only and (folder / _by_hand.TRAINED).exists()):
        return True
    bench.lines.say(f"seed {seed}: by hand, {network}")
    command = [options.peers_python, _by_hand.__file__, str(folder), network]
    values = {"dense": bench.dense_path(seed), "model": options.model, "data": options.data, "seed": seed}
    values |= {name: getattr(recover, name) for name in ("epochs", "lr", "weight_decay", "temperature", "alpha")}
    for name, value in values.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if train_only:
        command.append("--train-only")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        bench.lines.say(f"seed {seed}: by hand, {network} FAILED with status {status}, see {folder / 'log.txt'}")
    return status == 0


def steps(bench: Bench, seed: int) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What there is to do for a seed, in order: a name, and work that gives whether it succeeded."""
    options, folder = bench.options, bench.folder(seed)
    if "dense" in options.stages:
        name = f"seed {seed}: dense"
        yield name, partial(bench.once, folder / "dense.json", name, partial(train_dense, bench, seed))
    if "int8" in options.stages:
        name, alone = f"seed {seed}: gossamer int8 alone", folder / "gossamer" / _measure.INT8_ALONE
        yield name, partial(bench.once, alone / "job.json", name, partial(int8_alone, bench, seed, alone))
        yield f"seed {seed}: by hand, {_by_hand.DENSE}", partial(by_hand, bench, seed, _by_hand.DENSE)
    if "gossamer" in options.stages:
        for goal in options.goals:
            job = job_folder(bench, seed, goal)
            name = f"seed {seed}: {job.name}"
            yield name, partial(bench.once, job / "job.json", name, partial(main_job, bench, seed, goal, job))
    if "tune" in options.stages:
        for cut in options.cuts:
            yield f"seed {seed}: fine-tuning, {cut}", partial(by_hand, bench, seed, str(cut), train_only=True)
    if "hand" in options.stages:
        for cut in options.cuts:
            yield f"seed {seed}: by hand, {cut}", partial(by_hand, bench, seed, str(cut))
