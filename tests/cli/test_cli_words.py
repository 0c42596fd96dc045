"""What the command line says: help that fits, names that are nearly right, advice in the reader's language."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_document
import typer
from typer.testing import CliRunner

import gossamer
from gossamer.cli import app
from gossamer.core.goal import Goal
from gossamer.core.record import Record
from gossamer.errors import BadInput, unknown
from gossamer.jobs.recipe import parse
from gossamer.report.page import render
from gossamer.report.verdict import sentence, unsteady, warnings

PACKAGE = Path(gossamer.__file__).parent
GROUP: Any = typer.main.get_command(app)
COMMANDS = [(name,) for name in GROUP.commands] + [("recipes", "list"), ("recipes", "copy"), ()]


def said(*words: str, status: int = 2) -> str:
    result = CliRunner().invoke(app, list(words), prog_name="gossamer", env={"COLUMNS": "80"})
    assert result.exit_code == status, (result.output, result.exception)
    return result.stderr if status else result.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_cuts_no_word(words: tuple[str, ...]) -> None:
    lines = said(*words, "--help", status=0).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines[1:] if "…" in line or line.endswith("...")] == []


def test_a_model_is_the_same_in_every_help() -> None:
    helps = {
        (name, param.name): " ".join((param.help or "").split())
        for name, command in GROUP.commands.items()
        for param in command.params
        if (param.name in ("model", "models", "teacher", "student") and name != "compress") or param.name == "model"
    }
    start = "A name of the zoo (resnet20), package.module:factory, timm:NAME"
    assert len(helps) >= 8 and [key for key, text in helps.items() if not text.startswith(start)] == []


@pytest.mark.parametrize(
    ("wrong", "known", "right"),
    [
        ("resnet2O", ["resnet20", "resnet2", "resnet200"], "resnet20"),
        ("resnet2O", ["resnet26", "resnet20", "resnet2"], "resnet20"),
        ("vggl6", ["vgg13", "vgg16", "vgg19", "vgg"], "vgg16"),
        ("lenet6", ["lenet5", "lenet", "lenet66"], "lenet5"),
    ],
)
def test_the_nearest_name_differs_in_one_character(wrong: str, known: list[str], right: str) -> None:
    assert f"did you mean {right!r}?" in str(unknown("model", wrong, known))


def test_methods_of_a_scheme_are_listed() -> None:
    lines = said("methods", "prune", status=0).splitlines()[1:]
    assert len(lines) > 5 and all(line.startswith("prune.") for line in lines)
    assert "did you mean" in said("methods", "prunes")


def test_bench_looks_at_all_arguments_before_it_works(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("gossamer.cli.runners.open_model", works)
    for name in ("missing.onnx", "missing.pt2", "resnet2O"):
        assert name in said("bench", "lenet5", name)
    assert "unknown runtime 'torh'" in said("bench", "lenet5", "--runtime", "torch", "--runtime", "torh")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("prune.magnitude: {sparsity: much}", "sparsity: must be a valid number, got 'much'"),
        ("prune.magnitude: {sparsity: 7}", "sparsity = 7"),
        ("prune.channels: {criterion: 12}", "criterion: must be 'l1'"),
    ],
)
def test_errors_of_options_are_in_gossamers_own_words(step: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(f"name: a\nsteps: [{{{step}}}]")
    assert (
        message in str(error.value) and "Value error" not in str(error.value) and "Input should" not in str(error.value)
    )
    assert ": :" not in str(error.value)


@pytest.mark.slow
def test_advice_outside_the_command_line_speaks_python() -> None:
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    found = []
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts or path.name == "cli/loading.py":  # sources: what the command line's arguments mean
            continue
        tree = ast.parse(path.read_text())
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
                "BadInput",
                "GossamerError",
                "CorruptFile",
            ):
                words = [part for one in call.args for part in ast.walk(one) if isinstance(part, ast.Constant)]
                found += [
                    f"{path.name}: {w.value}" for w in words if isinstance(w.value, str) and option.search(w.value)
                ]
    assert found == []


def test_an_error_has_a_message_for_each_reader() -> None:
    with pytest.raises(BadInput, match=r"^speedup = 0\.5: must be at least 1$") as error:
        Goal(speedup=0.5)
    assert error.value.shell == "--speedup 0.5: must be at least 1"
    with pytest.raises(BadInput, match="load_weights") as missing:
        gossamer.pretrained("resnet110", "digits")
    assert "--weights" not in str(missing.value) and "--weights" in (missing.value.shell or "")


# Losses that chance does not explain


def lost(low: float, value: float, high: float, **more: Any) -> Any:
    document = sample_document.sample()
    drop = Record(
        subject="result int8", what="drop", value=value, unit="points", low=low, high=high, n=9, conditions=more
    )
    return replace(document, goal={}, records=[r for r in document.records if r.what != "drop"] + [drop])


def test_a_loss_far_beyond_chance_is_a_warning_and_red() -> None:
    document = lost(66.0, 68.0, 70.0)
    assert "68.00 points worse on test than the original (95 % interval 66.00 to 70.00)" in warnings(document)[0]
    assert sentence(document).startswith("Recipe done, but far too much is lost: ")
    assert '<h1 class="missed">' in render(document)


@pytest.mark.parametrize(("low", "value"), [(-1.0, 3.0), (1.9, 2.5)])
def test_a_loss_that_may_be_small_is_no_warning(low: float, value: float) -> None:
    document = lost(low, value, 9.0)
    assert warnings(document) == [] and sentence(document).startswith("Recipe done: ")
    assert '<h1 class="met">' in render(document)


def test_the_bound_is_what_the_goal_allows() -> None:
    document = lost(0.6, 0.9, 1.2)
    assert warnings(document) == []
    assert "above 0.5" in warnings(replace(document, goal={"max_drop": 0.5, "macs": 10}))[0]


def test_a_student_is_set_against_its_training_alone() -> None:
    document = lost(2.5, 3.0, 3.5, against="alone")
    assert "than the same student trained alone" in warnings(document)[0]
    assert warnings(lost(1.0, 3.0, 5.0, against="alone")) == []


def test_times_that_scatter_are_said() -> None:
    document = sample_document.sample()
    assert unsteady(document) == ""
    rows = [
        replace(r, high=r.value * 1.3) if r.what == "latency" and r.subject == "original" else r
        for r in document.records
    ]
    assert "the machine was busy" in unsteady(replace(document, records=rows)) and "original on " in unsteady(
        replace(document, records=rows)
    )
