"""The command line: every command on something tiny, exit statuses, output for people and for machines."""

import io
import itertools
import json
import math
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gossamer.cli import app
from gossamer.cli.console import Bars, Console, Lines, _plain, _Work
from gossamer.cli.deploy import _bench_row
from gossamer.cli.options import parse_bytes, parse_count, parse_minutes, parse_shape
from gossamer.jobs.recipe import Recipe
from gossamer.measure import Latency, calibration
from gossamer.measure.robustness import PROJECTIONS
from gossamer.methods import catalogue
from gossamer.train import Training

COMMANDS = [
    "compress",
    "quantize",
    "distill",
    "search",
    "worker",
    "analyze",
    "inspect",
    "train",
    "evaluate",
    "export",
    "bench",
    "methods",
    "models",
]


def call(*words: object, status: int = 0) -> Any:
    """Run a command line; the result has stdout and stderr."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="gossamer")
    assert result.exit_code == status, (result.exit_code, result.output, result.exception)
    return result


def document(*words: object, status: int = 0) -> Any:
    """The JSON document of a command, which is all that stands on stdout."""
    return json.loads(call(*words, "--json", status=status).stdout)


TRAINED: list[bytes] = []  # the file that `train` wrote


@pytest.fixture
def trained(user: Path) -> Path:
    """The user's network, trained for a moment."""
    path = user / "net.safetensors"
    if not TRAINED:
        words = ("train", "mycode:Net", "--data", "mycode:task", "--epochs", 2, "--out", path.name, "--quiet")
        assert call(*words).stderr == "" and not path.with_suffix(".ckpt").exists()
        TRAINED.append(path.read_bytes())
    path.write_bytes(TRAINED[0])
    return path


# What the user writes


@pytest.mark.parametrize(
    ("text", "size"),
    [("30000", 30_000), ("30kB", 30_000), ("30KB", 30_000), ("30KiB", 30_720), ("1.5MB", 1_500_000), ("2GiB", 2**31)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "number"), [("250k", 250_000), ("10M", 10**7), ("1_000", 1000), ("1.2M", 1_200_000)])
def test_counts(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(("text", "minutes"), [("5m", 5), ("5min", 5), ("300s", 5), ("1.5h", 90)])
def test_times(text: str, minutes: float) -> None:
    assert parse_minutes(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["", "5", "m", "0s", "-5m", "5 days"])
def test_what_is_no_time_is_refused(text: str) -> None:
    said = call("compress", "resnet20", f"--time-budget={text}", status=2).stderr
    assert "is not a time" in " ".join(said.split())


@pytest.mark.parametrize("text", ["", "kB", "-3kB", "3 apples", "3iB", "3MiBB", "1e", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    result = call("compress", "resnet20", f"--file-bytes={text}", status=2)
    assert "is not a size in bytes" in " ".join(result.stderr.split())


@pytest.mark.parametrize("text", ["3kB", "3Ki", "many"])
def test_what_is_no_count_is_refused(text: str) -> None:
    assert "is not a count" in " ".join(call("compress", "resnet20", f"--macs={text}", status=2).stderr.split())


def test_shapes() -> None:
    assert parse_shape("1x3x224x224") == (1, 3, 224, 224)
    assert "is not a shape" in call("analyze", "resnet20", "--input", "1x0", status=2).stderr


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: gossamer {command} " in " ".join(call(command, "--help").stdout.split())


@pytest.mark.parametrize("command", ["list", "copy"])
def test_help_of_recipes_shows_an_example(command: str) -> None:
    assert f"Example: gossamer recipes {command}" in call("recipes", command, "--help").stdout


def test_every_command_is_in_the_help_and_tested_here() -> None:
    assert [c.name or c.callback.__name__ for c in app.registered_commands if c.callback] == COMMANDS


def test_help_answers_without_anything_that_takes_long_to_import() -> None:
    code = (
        "import sys; from gossamer.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.split()
    slow = {"torch", "numpy", "scipy", "sklearn", "numba", "onnx", "onnxruntime", "pydantic", "lightning_fabric", "PIL"}
    assert slow & set(modules) == set()


def test_version() -> None:
    assert call("--version").stdout.startswith("gossamer 0.")


# Commands


@pytest.mark.slow
def test_train_writes_weights_that_evaluate_well(trained: Path) -> None:
    row = document("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained, "--split", "validation")
    assert row["value"] > 90 and row["low"] < row["value"]
    assert (row["n"], row["conditions"]["split"]) == (64, "validation")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_distill_teaches_measures_and_continues(user: Path, trained: Path) -> None:
    words: tuple[Any, ...] = ("distill", "--teacher", f"mycode:Net={trained}", "--student", "mycode:Net")
    words = (*words, "--data", "mycode:task", "--epochs", 1, "--set", "temperature=2", "--cache", "answers", "--quiet")
    found = document(*words)
    assert (
        Path(found["folder"]).name == "Net-from-Net-bright" and found["document"]["teaching"]["method"] == "distill.kd"
    )
    assert (user / "out/Net-from-Net-bright/report.html").is_file() and list((user / "answers").iterdir())
    shown = call(*words).stdout
    assert "teacher" in shown and "Student taught" in shown
    recipe = (user / "out/Net-from-Net-bright/recipe.yaml").read_text()
    assert "temperature: 2.0" in recipe


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_result_folder_is_taught_further_and_a_missed_goal_is_said(
    user: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("distill", "--teacher", f"mycode:Net={trained}", "--data", "mycode:task", "--no-alone")
    words = (*words, "--epochs", 1, "--lr", 0.05)
    auto = ("--student", "auto", "--params", 400, "--out", "first", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("gossamer.jobs.exporting.missed", lambda *args: ["params: 500, asked for at most 400"])
        assert "missed: params: 500" in call(*words, *auto, status=3).stderr
    found = document(*words, "--student", "first", "--out", "second", "--quiet")
    before = json.loads((user / "first" / "records.json").read_text())
    params = [[r["value"] for r in one["records"] if (r["what"], r["subject"]) == ("params", "result")]
              for one in (before, found["document"])]  # fmt: skip
    assert params[0] == params[1] and params[0][0] <= 400


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "distill.hints", "--set", "layers={a:b}"), "unknown layer of the student in distill.hints 'a'"),
        (("--method", "prune.magnitude"), "only methods below distill"),
        (("--method", "distill.kdd"), "unknown method in --method, 'distill.kdd'; did you mean 'distill.kd'"),
        (("--set", "temperature"), "write OPTION=VALUE"),
        (("--set", "warmth=3"), "unknown option"),
        (("--set", "alpha=3"), "alpha = 3"),
        (("--macs", "3M"), "--macs is for --student auto"),
        (("--student", "auto"), "something to gain"),
        (("--teacher", "none.onnx"), "no such file"),
    ],
)
@pytest.mark.slow
def test_distill_says_what_is_wrong(user: Path, more: tuple[str, str], message: str) -> None:
    words = ("--teacher", "mycode:Net", "--student", "mycode:Net", "--data", "mycode:task", *more)
    assert message in " ".join(call("distill", *words, status=2).stderr.split())


def test_evaluate_shows_the_interval_as_plain_aligned_lines(trained: Path) -> None:
    lines = call("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained).stdout.splitlines()
    assert len(lines) == 2 and " to " in lines[1] and lines[0].index("samples") + 5 == lines[1].index("32")


def test_evaluate_says_how_sure_a_classifier_is(trained: Path) -> None:
    words = ("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained)
    found = document(*words)
    task, model = import_module("mycode").task(), import_module("mycode").Net().eval()
    model.load_state_dict(load_file(trained))
    logits, labels = calibration.logits_and_labels(model, task.test)
    assert found["ece"] == pytest.approx(calibration.calibration_error(logits, labels), abs=1e-5)
    assert found["nll"] == pytest.approx(calibration.negative_log_likelihood(logits, labels), abs=1e-5)
    assert f"{found['nll']:.4f}" in call(*words).stdout
    assert calibration.confidence(lambda x: x, [(torch.zeros(2, 3), torch.zeros(2, 3))]) == {}


@pytest.mark.slow
def test_train_and_evaluate_call_the_metric_by_its_name(trained: Path) -> None:
    code = (
        "import dataclasses, mycode, torch\n"
        "def brightness(model, loader): return torch.cat([model(x).softmax(1)[:, 0] for x, _ in loader])\n"
        "def task(): return dataclasses.replace(mycode.task(), metric=brightness)"
    )
    (trained.parent / "bright.py").write_text(code)
    words = ("mycode:Net", "--data", "bright:task")
    assert "brightness %" in call("evaluate", *words, "--weights", trained).stdout
    assert "brightness %" in call("train", *words, "--epochs", 1, "--out", "b.safetensors").stdout
    assert document("evaluate", *words, "--weights", trained)["conditions"]["metric"] == "brightness"
    assert "top-1 %" in call("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained).stdout


def test_quiet_says_nothing_on_stderr(trained: Path) -> None:
    result = call("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained, "--quiet")
    assert result.stderr == "" and result.stdout


def test_train_takes_network_data_and_settings_from_a_recipe(user: Path) -> None:
    plan = Recipe(name="mine", model="mycode:Net", data="mycode:task", training=Training(epochs=1, lr=0.01))
    plan.save(user / "mine.yaml")
    result = call("train", "--recipe", "mine.yaml", "--out", "a.safetensors")
    assert "epoch 1 of 1" in result.stderr and "epoch 2" not in result.stderr
    assert (user / "a.safetensors").is_file()


@pytest.mark.slow
def test_a_zoo_network_comes_back_from_the_file_alone(user: Path) -> None:
    call("train", "resnet8", "--data", "mycode:task", "--epochs", 1, "--out", "r8.safetensors")
    alone = document("evaluate", "r8.safetensors", "--data", "mycode:task")
    named = document("evaluate", "resnet8", "--weights", "r8.safetensors", "--data", "mycode:task")
    assert alone["value"] == named["value"] and alone["low"] == named["low"]


@pytest.mark.slow
def test_export_onnx_then_inspect_and_evaluate_it(trained: Path) -> None:
    out = document("export", "mycode:Net", "--weights", trained, "--data", "mycode:task", "--out", "net.onnx")
    assert out["bytes"] == Path("net.onnx").stat().st_size and out["agreement"] == "100 % over 64 samples"
    contents = document("inspect", "net.onnx")
    weights = 8 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 8 + 2  # the norm is folded into the first convolution
    assert contents["file_bytes"] == out["bytes"]
    assert 4 * weights <= sum(t["bytes"] for t in contents["tensors"]) <= 4 * weights + 64
    float32 = document("evaluate", "mycode:Net", "--data", "mycode:task", "--weights", trained)
    assert document("evaluate", "net.onnx", "--data", "mycode:task")["value"] == float32["value"]


@pytest.mark.slow
def test_export_pt2_computes_the_same_and_can_be_benched(trained: Path) -> None:
    call("export", "mycode:Net", "--weights", trained, "--input", "2x1x8x8", "--out", "net.pt2")
    exported = {t["name"]: t["shape"] for t in document("inspect", "net.pt2")["tensors"]}
    saved = {t["name"]: t["shape"] for t in document("inspect", trained)["tensors"]}
    assert exported.items() <= saved.items() and "0.weight" in exported
    rows = document("bench", "net.pt2", "--runtime", "torch", "--input", "1x1x8x8", "--batch", 4, "--repeats", 5)
    assert rows[0]["latency"]["batch"] == 4


@pytest.mark.slow
def test_export_int8_is_smaller_in_its_tensors(trained: Path) -> None:
    arguments = ("mycode:Net", "--weights", trained, "--data", "mycode:task", "--max-drop", 50)
    assert document("export", *arguments, "--int8", "--out", "small.onnx")["met"] is True
    assert "int8" in {t["dtype"] for t in document("inspect", "small.onnx")["tensors"]}


def test_quantize_says_what_it_costs_and_what_it_gains(trained: Path, quick: None) -> None:
    arguments = ("mycode:Net", "--weights", trained, "--data", "mycode:task")
    found = document("quantize", *arguments, "--max-drop", 100, "--batch", 4)
    assert (found["out"], found["met"], found["n"]) == ("Net.int8.onnx", True, 64)
    assert found["bytes"]["after"] == Path("Net.int8.onnx").stat().st_size
    assert found["drop"] == pytest.approx(found["before"] - found["after"], abs=1e-6)
    assert set(found["latency_ms"]) == {"before", "after"} and found["speedup"] > 0
    assert "int8" in {t["dtype"] for t in document("inspect", "Net.int8.onnx")["tensors"]}
    assert document("evaluate", "Net.int8.onnx", "--data", "mycode:task")["value"] == pytest.approx(
        found["after"], abs=5
    )


@pytest.mark.slow
def test_quantize_needs_no_labels_and_a_collapse_is_said(
    trained: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("quantize", "mycode:Net", "--weights", trained, "--data", "mycode:unlabelled", "--out", "own.onnx")
    assert document(*words, "--max-drop", 100)["metric"] == "agreement"
    monkeypatch.setattr("gossamer.measure.Drop.within", lambda *_: False)  # nothing is good enough
    said = call(*words, status=3)
    assert "MORE THAN ALLOWED" in said.stdout and Path("own.onnx").is_file()
    assert "unlabelled has no labels: networks are judged by how far they agree with Net" in said.stderr


def test_a_failed_export_leaves_nothing(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.errors import ExportMismatch

    def mismatch(*_: object) -> None:
        raise ExportMismatch("does not compute what the network does")

    monkeypatch.setattr("gossamer.runtime.verification.verify", mismatch)
    said = call("export", "mycode:Net", "--input", "2x1x8x8", "--out", "sub/net.onnx", status=2).stderr
    assert "does not compute" in said
    assert list((user / "sub").iterdir()) == []


@pytest.mark.slow
def test_bench_times_networks_side_by_side(trained: Path) -> None:
    call("export", "mycode:Net", "--weights", trained, "--input", "2x1x8x8", "--out", "net.onnx")
    arguments = ("bench", "mycode:Net", "net.onnx", "--input", "1x1x8x8", "--threads", 1, "--batch", 3, "--repeats", 5)
    rows = document(*arguments)
    assert [(r["model"], r["latency"]["runtime"]) for r in rows] == [
        ("mycode:Net", "onnxruntime"),
        ("net.onnx", "onnxruntime"),
    ]
    assert all(r["latency"]["batch"] == 3 and r["latency"]["threads"] == 1 and r["latency"]["runs"] == 5 for r in rows)
    assert "1.00x" in call(*arguments).stdout.splitlines()[2]


def test_speedup_is_over_the_first_network_on_the_same_runtime() -> None:
    def row(median: float) -> Latency:
        return Latency(
            median_ms=median,
            q1_ms=1,
            q3_ms=9,
            min_ms=1,
            runs=5,
            runtime="torch",
            version="1",
            device="cpu",
            threads=1,
            batch=1,
            dtype="float32",
        )

    found = {
        ("a", "torch"): row(6.0),
        ("b", "torch"): row(2.0),
        ("a", "openvino"): row(4.0),
        ("b", "openvino"): row(8.0),
    }
    speedups = {key: _bench_row("a", found, *key)[-1] for key in found}
    assert list(speedups.values()) == ["1.00x", "3.00x", "1.00x", "0.50x"]


def test_inspect_shows_shares_that_add_up(trained: Path) -> None:
    lines = call("inspect", trained).stdout.splitlines()[2:]
    shares = [float(line.split()[-2]) for line in lines]
    assert shares[-1] == 100 and abs(sum(shares[:-1]) - 100) < 0.1 * len(shares)


def test_analyze_counts_every_layer_and_shows_what_is_coupled(user: Path) -> None:
    found = document("analyze", "mycode:Net", "--input", "1x1x8x8")
    assert [layer["macs"] for layer in found["layers"] if layer["macs"]] == [8 * 9 * 64, 8 * 8 * 9 * 64, 8 * 2]
    assert all(group["size"] == 8 for group in found["groups"] if group["reason"] is None)
    assert found["resolutions"] == [{"size": [8, 8], "first": "0", "last": "4"}]
    shown = call("analyze", "mycode:Net", "--input", "1x1x8x8").stdout
    assert "for students and teachers: 4 (8x8)" in shown
    assert "4,608" in shown and "Groups: channels that are cut together" in shown and "yes" in shown


@pytest.mark.slow
def test_analyze_advises(user: Path) -> None:
    words = ("analyze", "mycode:Net", "--input", "1x1x8x8", "--advise", "--gain", "macs")
    found = document(*words)["advice"]
    assert {row["scheme"] for row in found} >= {"narrower layers", "low rank", "cheaper blocks"}
    shown = call(*words).stdout
    assert "What each scheme alone could save in multiply-adds" in shown
    assert "nothing here saves multiply-adds" in shown or "times less" in shown
    assert "unknown gain 'speed'" in call(*words[:-1], "speed", status=2).stderr


@pytest.mark.slow
def test_analyze_times_layers_and_draws_the_sensitivity(trained: Path) -> None:
    arguments = (
        "mycode:Net",
        "--data",
        "mycode:task",
        "--weights",
        trained,
        "--runtime",
        "onnxruntime",
        "--sensitivity",
    )
    found = document("analyze", *arguments, "--threads", 1, "--batch", 2, "--out", "new/curves.html")
    assert all(time > 0 for time in found["times_ms"].values()) and len(found["times_ms"]) >= 3
    groups = {row["group"] for row in found["sensitivity"]}
    assert groups == {group["name"] for group in found["groups"] if group["reason"] is None}
    assert all(group in (trained.parent / "new/curves.html").read_text() for group in groups)


@pytest.mark.slow
def test_analyze_scores_two_networks_under_distortions(trained: Path) -> None:
    words = ("analyze", "mycode:Net", "--data", "mycode:task", "--weights", trained, "--robustness")
    other = trained.with_name("other.safetensors")
    other.write_bytes(trained.read_bytes())
    found = document(*words, "--against", other)["robustness"]
    first, second = found.values()
    assert first == second and len(first) == 2 * len(PROJECTIONS)
    page = (trained.parent / "robustness.html").read_text()
    assert "Distorted weights" in page and "stochastic sign" in page and "other.safetensors" in page
    assert "ask for one at a time" in call(*words, "--sensitivity", status=2).stderr
    assert "add --data" in call("analyze", "mycode:Net", "--robustness", status=2).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_compress_from_the_command_line_to_the_folder_and_back(trained: Path) -> None:
    arguments = ("mycode:Net", "--data", "mycode:task", "--weights", trained, "--max-drop", 60, "--macs", "45k")
    found = document(
        "compress", *arguments, "--epochs", 1, "--lr", 0.05, "--threads", 1, "--batch", 4, "--out", "result"
    )
    assert found["document"]["met"] and found["folder"] == str(trained.parent / "result")
    assert found["document"]["command"].startswith("gossamer")
    listed = document("inspect", "result")
    assert listed["files"]["model.onnx"] == Path("result/model.onnx").stat().st_size
    assert 0 <= document("evaluate", "result", "--data", "mycode:task")["value"] <= 100


def test_methods_lists_all_and_shows_a_page() -> None:
    lines = call("methods").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(catalogue()) and all(len(line.split()) > 2 for line in lines)
    page = call("methods", "distill.recover").stdout
    assert "Needs besides the network: training data with labels." in page
    assert document("methods", "prune.magnitude")["needs"] == "weights"
    assert "Source: Hinton" in page and "temperature" in page and "(0, 1000]" in page


def test_a_page_shows_the_default_of_every_option() -> None:
    options = {row["option"]: row["default"] for row in document("methods", "prune.channels")["options"]}
    assert options["widths"] == {} and options["criterion"] == "l2" and options["sparsity"] is None


def test_a_page_explains_shared_options_and_names_the_choices() -> None:
    page = call("methods", "lowrank.spatial").stdout
    assert "filters between" in page and "energy: the least fraction" in page
    admitted = {row["option"]: row["admitted"] for row in document("methods", "lowrank.spatial")["options"]}
    assert admitted["data"] == "none | inputs | accumulated" and admitted["layers"] == "list of str"
    assert admitted["ranks"] == "str: int | list of int | none" and admitted["energy"] == "float | none in (0, 1)"


def test_recipes_are_listed_and_copied(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (user / "one.yaml").write_text(Recipe(name="one", model="resnet20", claims={"top1": 93.2}).to_yaml())
    monkeypatch.setattr("gossamer.jobs.recipe.shipped", lambda: {"one": user / "one.yaml"})
    assert document("recipes", "list")["one"]["claims"] == {"top1": 93.2}
    assert "top1: 93.2" in call("recipes", "list").stdout
    call("recipes", "copy", "one", "new/mine.yaml")
    call("recipes", "copy", "one", "mine.yaml")
    assert (user / "mine.yaml").read_text() == (user / "new/mine.yaml").read_text()
    assert (user / "mine.yaml").read_text() == (user / "one.yaml").read_text()
    assert "exists already" in call("recipes", "copy", "one", "mine.yaml", status=2).stderr
    assert "did you mean 'one'" in call("recipes", "copy", "on", "b.yaml", status=2).stderr


def test_models_are_listed_with_the_weights_that_come_with_them() -> None:
    found = document("models")
    assert found["resnet20"]["trained"]["fashion-mnist"] > 90 and found["resnet20"]["made_for"] == [3, 32, 32]
    assert found["resnet110"]["trained"] == {}
    assert "3x224x224" in call("models").stdout


def test_of_many_names_an_error_gives_the_nearest_and_the_command_that_lists_all() -> None:
    said = call("evaluate", "qqq", "--data", "digits", status=2).stderr
    assert "unknown model 'qqq'" in said and "`gossamer models` lists them" in said and len(said) < 200
    said = call("methods", "qqq", status=2).stderr
    assert "`gossamer methods` lists them" in said and len(said) < 200
    said = call("evaluate", "resnet110", "--data", "digits", status=2).stderr
    assert "no trained weights of resnet110 come with gossamer" in said and "--weights" in said


# Interruption


INTERRUPTED = """
import dataclasses, os, signal

class Ending(list):
    given = 0
    def __iter__(self):
        for batch in super().__iter__():
            Ending.given += 1
            if Ending.given == 20:  # in the fifth epoch
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

def interrupted():
    return dataclasses.replace(task(), train=Ending(task().train))
"""


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_go_on_and_goes_on(user: Path) -> None:
    own = user / "mycode.py"
    own.write_text(own.read_text() + INTERRUPTED)
    # What a shell runs in the background ignores interrupts, and so does all that it starts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom gossamer.cli import main; main()"
    )
    words = "train mycode:Net --data mycode:interrupted --epochs 9 --lr 0.1 --out net.safetensors"
    job = subprocess.run([sys.executable, "-c", code, *words.split()], stderr=subprocess.PIPE, text=True)
    said = job.stderr
    assert job.returncode == 130, said
    assert "To continue, run the same command:\n  gossamer train mycode:Net" in said and "Traceback" not in said
    assert (user / "net.ckpt").exists() and not (user / "net.safetensors").exists()


# Output


def test_numbers_that_json_has_not_become_null() -> None:
    assert _plain({"a": (float("nan"), float("inf"), 1.5), "b": Path("x")}) == {"a": [None, None, 1.5], "b": "x"}


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_progress_passes_the_items_on(kind: type[Lines] | type[Bars], capsys: pytest.CaptureFixture[str]) -> None:
    progress = kind()
    assert list(progress.bar(iter("abc"), label="letters", total=3)) == list("abc")
    with progress.busy("thinking"):
        progress.say("a thought")
    captured = capsys.readouterr()
    assert captured.out == "" and "a thought" in captured.err and "letters" not in captured.err


def test_a_bar_shows_only_after_two_seconds() -> None:
    bars, clock = Bars(), [0.0]
    bars._bars.get_time = lambda: clock[0]
    with bars.busy("thinking"):
        clock[0] = 1.9
        assert list(bars._bars.get_renderables()) == []
        clock[0] = 2.1
        assert len(list(bars._bars.get_renderables())) == 1


def test_a_bar_that_is_left_early_is_gone() -> None:
    bars = Bars()
    for _ in bars.bar(range(10), label="outer"):
        for _ in bars.bar(range(10), label="inner"):
            break
        break
    assert bars._bars.tasks == []


def test_plain_lines_name_what_takes_long_and_how_much_is_left() -> None:
    work = _Work("epoch", 8, began=100.0)
    assert not work.due(101.9) and work.due(102.1)
    assert work.line(102.1) == "epoch: 2.1 s so far"
    work.said, work.done = 102.1, 2
    assert not work.due(117.0) and work.due(117.2)
    assert work.line(120.0) == "epoch: 2/8, 20.0 s so far, about 1 min 00 s left"
    assert _Work("export", None, began=0.0, done=3).line(4.0) == "export: 3, 4.0 s so far"


def test_plain_lines_speak_of_the_innermost_work_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word from the work itself. The outer work may be spoken of before the inner one begins, not within."""
    monkeypatch.setattr("gossamer.cli.console.LATE", 0.0)
    lines, of_inner = Lines(), threading.Event()
    heard: list[str] = []

    def say(text: str) -> None:
        heard.append(text)
        if text.startswith("inner: "):
            of_inner.set()

    monkeypatch.setattr(lines, "say", say)
    with lines.busy("outer"), lines.busy("inner"):
        of_inner.wait()
    assert next(text for text in heard if text.startswith("inner: ")).endswith(" so far")
    in_turn = [name for name, _ in itertools.groupby(text.split(":")[0] for text in heard)]
    assert in_turn in (["inner", "outer"], ["outer", "inner", "outer"])


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_progress_is_heard_while_an_exporter_is_silenced(
    kind: type[Lines] | type[Bars], capsys: pytest.CaptureFixture[str]
) -> None:
    progress, swallowed = kind(), io.StringIO()
    with redirect_stderr(swallowed):
        progress.say("exporting")
    assert "exporting" in capsys.readouterr().err and not swallowed.getvalue()


def test_plain_lines_are_silent_of_what_is_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.cli.console.LATE", math.inf)  # nothing on this machine takes that long
    list(Lines().bar(range(6), label="epoch"))
    assert capsys.readouterr().err == ""


def test_json_console_prints_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.table("title", ("a",), [(1,)])
    console.line("text")
    console.document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}
