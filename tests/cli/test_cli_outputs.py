"""Outputs that cannot be: files, folders and streams. One message, exit status 2, and nothing of the user's is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gossamer
from gossamer.cli import app
from gossamer.core.folder import disk_trouble, make_folder
from gossamer.errors import BadInput
from gossamer.search.checkpoint_store import CheckpointStore

NET = ("mycode:Net", "--data", "mycode:task")
PAIR = ("--teacher", "mycode:Net", "--student", "mycode:Net", "--data", "mycode:task")
WRITING = {
    "compress": (("compress", *NET, "--random", "--macs", "45k", "--out"), ""),
    "distill": (("distill", *PAIR, "--out"), ""),
    "distill --cache": (("distill", *PAIR, "--cache"), ""),
    "train": (("train", *NET, "--out"), ".safetensors"),
    "export": (("export", "mycode:Net", "--input", "2x1x8x8", "--out"), ".onnx"),
    "analyze": (("analyze", *NET, "--sensitivity", "--out"), ".html"),
    "recipes copy": (("recipes", "copy", "train-resnet14-digits"), ".yaml"),
}
IMPOSSIBLE = {
    "below /proc": "/proc/x",
    "below a file": "taken/x",
    "the null device": "/dev/null",
    "below the null device": "/dev/null/x",
    "the wrong kind": "occupied",
    "too long a name": "x" * 300,
    "too long a path": "/" + "d/" * 3000 + "x",
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_is_one_message(user: Path, command: str, kind: str) -> None:
    words, ending = WRITING[command]
    (user / "taken").write_text("precious")
    place = IMPOSSIBLE[kind] + (ending if kind != "the null device" else "")
    if kind == "the wrong kind" and ending:
        (user / place).mkdir()
    elif kind == "the wrong kind":
        (user / place).write_text("precious")
    before = sorted(user.rglob("*"))
    result = CliRunner().invoke(app, [*words, place], prog_name="gossamer")
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == "" and result.stderr.count("\n") == 1 and "error: " in result.stderr, result.stderr
    assert [one for one in sorted(user.rglob("*")) if "__pycache__" not in str(one)] == before
    assert (user / "taken").read_text() == "precious"


def test_names_from_python_that_no_file_can_have() -> None:
    with pytest.raises(BadInput, match=r"no file can be written in 'a\\x00b': embedded null"):
        make_folder(Path("a\0b"))


def test_a_broken_disk_is_said() -> None:
    assert "the device reports an error" in str(disk_trouble(OSError(5, "Input/output error"), Path("x")))


def test_a_folder_of_the_users_is_not_taken_for_a_jobs_work(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match=r"work holds files that are not of a job of gossamer"):
        CheckpointStore(work, "a")
    assert [one.name for one in work.iterdir()] == ["thesis.tex"]


def test_a_refused_distillation_leaves_the_users_folder(user: Path) -> None:
    (user / "work").mkdir()
    (user / "work/thesis.tex").write_text("precious")
    words = ["distill", "--teacher", "mycode:Net", "--student", "mycode:one_output", "--data", "mycode:task"]
    assert CliRunner().invoke(app, [*words, "--out", "."]).exit_code == 2
    assert (user / "work/thesis.tex").read_text() == "precious"


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text('{"results"')
    with pytest.raises(gossamer.GossamerError, match=r"journal\.json is damaged.*to start over"):
        CheckpointStore(tmp_path, "a")


# Streams


def shell(line: str, **more: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a line for bash, in which `gossamer` is the program."""
    env = os.environ | {"PYTHONPATH": str(Path(gossamer.__file__).parents[1])} | more
    script = f'gossamer() {{ "{sys.executable}" -m gossamer "$@"; }}; set -o pipefail; {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("more", [["--json"], []])
def test_what_the_users_code_prints_is_no_result(user: Path, more: list[str]) -> None:
    (user / "talking.py").write_text(
        "from mycode import Net, task\nprint('imported')\n\ndef net():\n    print('made')\n    return Net()\n"
    )
    found = CliRunner().invoke(app, ["evaluate", "talking:net", "--data", "talking:task", *more])
    assert found.exit_code == 0 and "made" in found.stderr
    assert "imported" not in found.stdout and "made" not in found.stdout
    assert json.loads(found.stdout) if more else "top-1" in found.stdout


def test_the_package_runs_as_a_module() -> None:
    status, out, err = shell("gossamer --version")
    assert (status, err) == (0, "") and out.startswith("gossamer 0.")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("gossamer models >&-", 2, "error: standard output is closed"),
        ("gossamer --help >&-", 2, "error: standard output is closed"),
        ("gossamer models > /dev/full", 2, "error: the disk is full"),
        ("gossamer --help > /dev/full", 2, "error: the disk is full"),
        ("gossamer --help | true", 2, ""),
        ("gossamer models qqq 2>&-", 2, ""),
        ("gossamer models qqq 2> /dev/full", 2, ""),
        ("gossamer models qqq >&- 2>&-", 2, ""),
        ("gossamer --help <&- 2>&- > /dev/null", 0, ""),
    ],
)
@pytest.mark.slow
def test_streams_that_are_closed(line: str, status: int, message: str) -> None:
    found, _, err = shell(line)
    assert found == status and err.count("\n") == (1 if message else 0) and err.startswith(message), err


@pytest.mark.slow
def test_closed_messages_do_not_go_into_the_next_file_nor_end_the_work(user: Path) -> None:
    words = "train mycode:Net --data mycode:task --epochs 1 --out net.safetensors"
    status, out, _ = shell(f"gossamer {words} 2>&-", PYTHONPATH=f"{user}:{Path(gossamer.__file__).parents[1]}")
    assert status == 0 and "weights: net.safetensors" in out
    assert CliRunner().invoke(app, ["evaluate", *NET, "--weights", "net.safetensors"]).exit_code == 0


def test_a_terminal_without_a_sign_is_no_error() -> None:
    code = "from gossamer.cli.streams import open_streams; open_streams(); print('4.06\\u00d7', '\\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and done.stdout == b"4.06\\xd7 \\udcff\n"
