"""Every option of every command acts or is refused: what reaches the work differs from what it is without the option.

A new option without a value in `VALUES` fails here by itself, and so does a new command without a base in `BASES`.
"""

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import gossamer.cli.console
import gossamer.cli.runners
from gossamer.cli import app
from gossamer.core.context import Context
from gossamer.core.metric import Evaluation
from gossamer.core.metrics import Top1
from gossamer.core.task import Task
from gossamer.core.user_code import resolve
from gossamer.errors import BadInput

EARLY = (
    "gossamer.jobs.compression",
    "gossamer.jobs.distillation",
    "gossamer.measure.calibration",
    "gossamer.measure.robustness",
    "gossamer.nas.job",
    "gossamer.ptq.fallback",
    "gossamer.runtime.profiling",
    "gossamer.targets",
    "gossamer.runtime.verification",
    "gossamer.search.advise",
    "gossamer.search.sensitivity",
)
DIGITS = ("--data", "digits")
NET = ("mycode:Net", "--data", "mycode:task")
PAIR = ("distill", "--teacher", "resnet14", "--student")
# Commands as they are usually given, and each of their ways to work.
BASES: dict[str, tuple[str, ...]] = {
    "compress": ("compress", "resnet14", *DIGITS, "--speedup", "2"),
    "compress --recipe": ("compress", "resnet14", *DIGITS, "--recipe", "steps.yaml"),
    "compress, own data": ("compress", *NET, "--speedup", "2"),
    "quantize": ("quantize", *NET),
    "search": ("search", *DIGITS),
    "worker": ("worker", "--study", "study"),
    "distill": (*PAIR, "resnet8", *DIGITS),
    "distill auto": (*PAIR, "auto", *DIGITS, "--macs", "1M"),
    "train": ("train", "resnet8", *DIGITS),
    "train --recipe": ("train", "--recipe", "train-resnet14-digits"),
    "train, own data": ("train", *NET),
    "evaluate": ("evaluate", "resnet14", *DIGITS),
    "export": ("export", "mycode:Net", "--input", "1x1x8x8", "--out", "a.onnx"),
    "export --int8": ("export", *NET, "--int8", "--out", "a.onnx"),
    "bench": ("bench", "mycode:Net", "--input", "1x1x8x8"),
    "bench --data": ("bench", *NET),
    "analyze": ("analyze", "mycode:Net", "--input", "1x1x8x8"),
    "analyze --runtime": ("analyze", "mycode:Net", "--input", "1x1x8x8", "--runtime", "onnxruntime"),
    "analyze --advise": ("analyze", *NET, "--advise"),
    "analyze --sensitivity": ("analyze", *NET, "--sensitivity", "--weights", "net.safetensors"),
    "analyze --robustness": ("analyze", *NET, "--robustness", "--weights", "net.safetensors"),
    "inspect": ("inspect", "net.safetensors"),
    "methods": ("methods", "prune.magnitude"),
    "models": ("models",),
    "recipes list": ("recipes", "list"),
    "recipes copy": ("recipes", "copy", "train-resnet14-digits", "b.yaml"),
}
# One value for each option, unlike its default; some ways to work need another.
VALUES: dict[str, tuple[str, ...]] = {
    "--against": ("--against", "net2.safetensors"),
    "--alone": ("--no-alone",),
    "--assistant": ("--assistant", "resnet8"),
    "--augment": ("--no-augment",),
    "--batch": ("--batch", "5"),
    "--batch-size": ("--batch-size", "7"),
    "--cache": ("--cache", "answers"),
    "--concurrent": ("--concurrent", "2"),
    "--activation-bytes": ("--activation-bytes", "64kB"),
    "--compression-ratio": ("--compression-ratio", "3"),
    "--data": ("--data", "mycode:task"),
    "--device-profile": ("--device-profile", "pi5.json"),
    "--devices": ("--devices", "3"),
    "--epochs": ("--epochs", "5"),
    "--file-bytes": ("--file-bytes", "30kB"),
    "--gain": ("--gain", "macs"),
    "--input": ("--input", "2x1x9x9"),
    "--int8": ("--int8", "--data", "mycode:task"),
    "--latency-ms": ("--latency-ms", "3"),
    "--lr": ("--lr", "0.01234"),
    "--macs": ("--macs", "5M"),
    "--max-drop": ("--max-drop", "1.5"),
    "--measure": ("--no-measure",),
    "--method": ("--method", "distill.dkd"),
    "--out": ("--out", "other"),
    "--params": ("--params", "5k"),
    "--preprocessing": ("--preprocessing", "size=7"),
    "--ray": ("--ray", "local"),
    "--recipe": ("--recipe", "other.yaml"),
    "--repeats": ("--repeats", "7"),
    "--runtime": ("--runtime", "torch"),
    "--samples": ("--samples", "9"),
    "--searcher": ("--searcher", "random"),
    "--seed": ("--seed", "7"),
    "--space": ("--space", "cells"),
    "--trials": ("--trials", "4"),
    "--final-epochs": ("--final-epochs", "6"),
    "--set": ("--set", "temperature=6"),
    "--speedup": ("--speedup", "3"),
    "--split": ("--split", "validation"),
    "--student": ("--student", "resnet14"),
    "--study": ("--study", "study2"),
    "--target": ("--target", "executorch"),
    "--teacher": ("--teacher", "resnet8.safetensors"),
    "--threads": ("--threads", "1"),
    "--train": ("--no-train",),
    "--pick": ("--pick", "latency=3ms"),
    "--search": ("--search", "9m"),
    "--time-budget": ("--time-budget", "7m"),
    "--weights": ("--weights", "net.safetensors"),
    "--workers": ("--workers", "2"),
    **{flag: (flag,) for flag in ("--advise", "--calibrate", "--json", "--quiet", "--random", "--skip-faulty")},
    **{flag: (flag,) for flag in ("--robustness", "--sensitivity")},
}
OTHER: dict[tuple[str, str], tuple[str, ...]] = {
    **{(base, "--out"): ("--out", "b.safetensors") for base in BASES if base.startswith("train")},
    **{(base, "--out"): ("--out", "b.onnx") for base in BASES if base.startswith(("export", "quantize"))},
    ("worker", "--data"): ("--data", "mycode:task"),
    ("worker", "--measure"): ("--measure",),
    ("quantize", "--runtime"): ("--runtime", "openvino"),
    # Of four samples: less would be rounded up to one.
    **{(base, "--max-drop"): ("--max-drop", "30") for base in ("quantize", "export --int8")},
    **{
        (base, "--weights"): ("--weights", "resnet14.safetensors")
        for base in ("compress", "compress --recipe", "evaluate")
    },
    **{(base, "--weights"): ("--weights", "resnet8.safetensors") for base in ("distill", "train")},
    ("train --recipe", "--weights"): ("--weights", "resnet14.safetensors"),
    ("train --recipe", "--epochs"): ("--epochs", "3"),
    ("compress, own data", "--teacher"): ("--teacher", "mycode:ready"),
    ("distill auto", "--student"): ("--student", "resnet8"),
    ("evaluate", "--runtime"): ("--runtime", "torch.compile"),
    ("analyze", "--runtime"): ("--runtime", "openvino"),
    ("analyze --runtime", "--runtime"): ("--runtime", "openvino"),
    ("analyze --advise", "--runtime"): ("--runtime", "openvino"),
    **{(f"analyze --{x}", "--weights"): ("--weights", "net2.safetensors") for x in ("sensitivity", "robustness")},
    ("export", "--int8"): ("--int8",),
    ("export --int8", "--data"): ("--data", "other:task"),
    **{
        (base, "--data"): ("--data", "other:task")
        for base in BASES
        if BASES[base][1:4] == NET or base == "analyze --advise"
    },
}


RANDOM = re.compile(r"[a-z0-9_]{8}(?=/|$)")  # at the end of the names of temporary folders


def commands() -> dict[str, Any]:
    """Every command by its words."""
    group: Any = typer.main.get_command(app)
    found = {}
    for name, one in group.commands.items():
        inner = getattr(one, "commands", None)
        found |= {f"{name} {sub}": command for sub, command in inner.items()} if inner else {name: one}
    return found


def options() -> Iterator[tuple[str, str]]:
    """Every way to work with every option of its command."""
    known = commands()
    for base, words in BASES.items():
        command = known.get(words[0]) or known[" ".join(words[:2])]
        for param in command.params:
            if param.param_type_name == "option" and "--help" not in param.opts:
                yield base, max(param.opts, key=len)


class Reached(BadInput):
    """The work would begin."""


def plain(value: Any) -> Any:
    """What tells an argument from another."""
    if isinstance(value, nn.Module):
        return [(name, tuple(t.shape), round(float(t.double().sum()), 6)) for name, t in value.state_dict().items()]
    if isinstance(value, Task):
        batch = next(iter(value.train))
        return value.name, len(batch[0]), round(float(torch.as_tensor(batch[0]).double().sum()), 3)
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Context):
        return value.seed, value.devices, str(value.folder), str(value.cache), plain(value.teacher)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [(f.name, plain(getattr(value, f.name))) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items() if key not in ("command", "progress")}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return RANDOM.sub("", str(value))
    return value if isinstance(value, str | int | float | None) else type(value)


@pytest.fixture
def calls(user: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands give to those who do the work, which they do not do here."""
    from gossamer.models import build, save_weights
    from gossamer.nas.study import FORMAT

    seen: list[Any] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    for folder in ("study", "study2"):
        (user / folder / "work").mkdir(parents=True)
        origin = {"data": "digits", "batch_size": None, "augment": True, "space": "mobile"}
        known = {"identity": {"format": FORMAT, "seed": 0}, "trials": 2, "origin": origin}
        (user / folder / "work" / "study.json").write_text(json.dumps(known))
    (user / "steps.yaml").write_text("name: steps\nsteps: [{prune.magnitude: {sparsity: 0.5}}]\n")
    training = "training: {epochs: 1}\nmodel: resnet8\ndata: digits\n"
    (user / "other.yaml").write_text(f"name: other\nsteps: [{{prune.magnitude: {{sparsity: 0.4}}}}]\n{training}")
    (user / "other.py").write_text(
        "import dataclasses, mycode\ntask = lambda: dataclasses.replace(mycode.task(), name='o')"
    )
    monkeypatch.delitem(__import__("sys").modules, "other", raising=False)
    for name in ("net", "net2"):
        save_weights(resolve("mycode:Net")(), user / f"{name}.safetensors", {})
    for name in ("resnet8", "resnet14"):
        note = {"model": name, "in_channels": "1", "classes": "10", "input_size": "8"}
        save_weights(build(name, in_channels=1, classes=10, input_size=8), user / f"{name}.safetensors", note)

    def record(place: str, name: str, ends: bool, gives: Any = None, real: bool = False) -> None:
        module = __import__(place, fromlist=[name])
        before = getattr(module, name)

        def seen_by(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, plain(args), plain(kwargs)))
            if ends:
                raise Reached(name)
            return before(*args, **kwargs) if real else gives

        monkeypatch.setattr(module, name, seen_by)

    for place in EARLY:  # what is imported first under a stand-in would keep it after the test
        importlib.import_module(place)
    init = gossamer.cli.console.Console.__init__
    monkeypatch.setattr(
        gossamer.cli.console.Console,
        "__init__",
        lambda self, **kwargs: (seen.append(("console", kwargs)), init(self, **kwargs))[1],
    )
    record("gossamer.jobs.compression", "compress", ends=True)
    record("gossamer.jobs.distillation", "distill", ends=True)
    record("gossamer.nas.job", "search", ends=True)
    record("gossamer.nas.job", "join_search", ends=True)
    record("gossamer.train", "fit", ends=True)
    record("gossamer.cli.loading_data", "load_data", ends=False, real=True)
    record("gossamer.cli.loading", "load_model", ends=False, real=True)
    record("gossamer.measure", "latency", ends=True)
    record("gossamer.measure", "evaluate", ends=False, gives=Evaluation(Top1(), {"score": torch.zeros(4)}))
    record("gossamer.measure.calibration", "confidence", ends=True)
    record("gossamer.runtime.onnx_export", "export_onnx", ends=False, gives=Path("a.onnx"))
    record("gossamer.runtime.pt2.file", "export_pt2", ends=False)
    record("gossamer.runtime.verification", "verify", ends=True)
    record("gossamer.targets", "write_target", ends=True)
    record("gossamer.ptq.fallback", "quantize_int8", ends=True)
    record("gossamer.runtime.profiling", "layer_times", ends=False, gives={})
    record("gossamer.search.cost_model", "first_samples", ends=False, real=True)
    record("gossamer.search.advise", "advise", ends=True)
    record("gossamer.search.sensitivity", "sensitivity", ends=False, gives=[])
    record("gossamer.measure.robustness", "robustness", ends=False, gives=[])
    record("gossamer.report", "write_sensitivity", ends=False)
    record("gossamer.report", "write_robustness", ends=False)
    runner = type("Runner", (), {"runtime": "torch", "precision": "float32"})()
    record("gossamer.runtime.runners", "open_runner", ends=False, gives=runner)
    opening = gossamer.cli.runners
    monkeypatch.setattr(opening, "open_runner", __import__("gossamer.runtime.runners", fromlist=["a"]).open_runner)
    monkeypatch.setattr(opening, "export_onnx", __import__("gossamer.runtime.onnx_export", fromlist=["a"]).export_onnx)
    monkeypatch.setattr(opening, "load_model", __import__("gossamer.cli.loading", fromlist=["a"]).load_model)
    return seen


def reached(calls: list[Any], words: tuple[str, ...]) -> tuple[list[Any], str]:
    """What the work was given, and what stands on stderr where it was refused before."""
    calls.clear()
    torch.manual_seed(0)
    result = CliRunner().invoke(app, list(words), prog_name="gossamer")
    assert result.exit_code in (0, 2), (words, result.output, result.exception)
    began = {f"error: {call[0]}" for call in calls}  # on a busy machine, lines of progress stand before it
    refused = result.exit_code == 2 and not began & set(result.stderr.splitlines())
    return list(calls), result.stderr if refused else ""


def test_every_command_has_a_way_to_work_here() -> None:
    assert {" ".join(words[: 2 if words[0] == "recipes" else 1]) for words in BASES.values()} == set(commands())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.slow
def test_every_option_acts_or_is_refused(calls: list[Any], base: str) -> None:
    without, refused = reached(calls, BASES[base])
    assert not refused, refused
    for name, flag in options():
        words = OTHER.get((base, flag)) or VALUES[flag]
        if name != base or set(words) <= set(BASES[base]):
            continue
        if base == "recipes copy":
            Path("b.yaml").unlink()
        given, refused = reached(calls, (*BASES[base], *words))
        # What typer refuses stands in a box; the flag is in both.
        assert flag in refused if refused else given != without, f"{base} {' '.join(words)} changes nothing; {refused}"
