"""Devices and processes, by Lightning Fabric."""

import json
import logging
import multiprocessing
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from gossamer import errors
from gossamer.core.context import Context
from gossamer.core.progress import Progress, Silent
from gossamer.train.hyperparameters import Training, computes_in_bfloat16

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FIRST_LOOK_SECONDS = 0.2


def make_fabric(context: Context, training: Training) -> "Fabric":
    """One process on one device."""
    lightning = errors.require("lightning_fabric")
    with quiet():
        precision = _precision(context, training)
        fabric: Fabric = lightning.Fabric(accelerator=context.accelerator, devices=1, precision=precision)
    return fabric


def in_processes(function: Callable[..., Any], job: Any, context: Context, training: Training) -> None:
    """Run `function(fabric, job, context)` in `context.devices` processes that average gradients
    (DistributedDataParallel).

    On CPU they are forked, with one thread each, and speak over gloo, so that nothing has to be picklable; elsewhere
    they are spawned, and the job must be picklable. What they say is passed on to `context.progress`, and an error of
    gossamer's is raised here again.
    """
    lightning = errors.require("lightning_fabric")
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    on_cpu = _device(context).type == "cpu"
    # Which parameters take part may change from step to step (auxiliary heads, terms of `loss_terms`).
    strategy = DDPStrategy(start_method="fork" if on_cpu else "spawn", find_unused_parameters=True)
    with quiet(), tempfile.TemporaryDirectory() as name, _own_environment(), _relayed(Path(name), context.progress):
        fabric = lightning.Fabric(
            accelerator="cpu" if on_cpu else context.accelerator,
            devices=context.devices,
            strategy=strategy,
            precision=_precision(context, training),
            plugins=[LightningEnvironment()],
        )
        scratch, others = Path(name), set(multiprocessing.active_children())
        try:
            launch: Callable[..., Any] = fabric.launch
            launch(_guarded, function, job, replace(context, progress=Silent()), scratch)
        except ProcessRaisedException:
            if (scratch / "error").exists():
                kind, message = json.loads((scratch / "error").read_text(encoding="utf-8"))
                raise getattr(errors, kind)(message) from None
            raise
        finally:  # after an interrupt of this process alone
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
                child.join()


def _guarded(fabric: "Fabric", function: Callable[..., Any], job: Any, context: Context, scratch: Path) -> None:
    """What each process runs."""
    if fabric.device.type == "cpu":
        torch.set_num_threads(1)  # the threads of GNU OpenMP do not survive a fork
    progress = _Lines(scratch / "said") if fabric.global_rank == 0 else Silent()
    # Where a weight has one input channel its gradient may come in another layout, which costs nothing worth a warning.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    try:
        function(fabric, job, replace(context, progress=progress))
    except errors.GossamerError as error:
        (scratch / "error").write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        raise
    torch.distributed.destroy_process_group()


class _Lines(Silent):
    """Says it in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, message: str) -> None:
        with self.path.open("a") as file:
            file.write(message + "\n")


@contextmanager
def _relayed(scratch: Path, progress: Progress) -> Iterator[None]:
    """Pass on what the processes say, line by line, until the end."""
    ended = threading.Event()

    def relay() -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(FIRST_LOOK_SECONDS)
            said = scratch / "said"
            lines = said.read_text(encoding="utf-8").splitlines(keepends=True) if said.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            for line in whole[shown:]:
                progress.say(line.rstrip("\n"))
            shown = len(whole)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _own_environment() -> Iterator[None]:
    """Take back what the launcher writes into the environment; silence the warning about forking next to the relay."""
    kept = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is multi-threaded, use of fork", category=DeprecationWarning)
            yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def quiet() -> Iterator[None]:
    """Fabric's remarks about what it was told to do go nowhere."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _device(context: Context) -> torch.device:
    device: torch.device = errors.require("lightning_fabric").Fabric(accelerator=context.accelerator, devices=1).device
    return device


def _precision(context: Context, training: Training) -> Any:
    if training.precision != "auto":
        return training.precision
    return "bf16-mixed" if computes_in_bfloat16(_device(context)) else "32-true"
