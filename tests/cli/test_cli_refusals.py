"""Bad input gets one clear message and exit status 2, a bug 1, a missed goal 3, Ctrl-C 130; nothing is lost."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sample_document
import torch
from torch import nn
from typer.testing import CliRunner

from gossamer.cli import app
from gossamer.cli.errors import verdict
from gossamer.core.folder import lock_folder
from gossamer.core.user_code import resolve
from gossamer.errors import BadInput

NET = ("mycode:Net", "--data", "mycode:task")
GOAL = ("--speedup", "2")


def said(*words: object, status: int = 2) -> str:
    """What stands on stderr, in one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="gossamer")
    assert result.exit_code == status, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())


# Names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compres",), "No such command 'compres'"),
        (("compress", "resnet20", "--sped", "2"), "No such option: --sped"),
        (("compress", "resnt20", "--data", "digits", *GOAL), "unknown model 'resnt20'; did you mean 'resnet20'?"),
        (("compress", *NET[:1], "--data", "digts", *GOAL), "'digts'; did you mean 'digits'?"),
        (("compress", *NET, *GOAL, "--runtime", "openvin"), "unknown runtime 'openvin'; did you mean 'openvino'?"),
        (("compress", *NET, "--recipe", "nowhere.yaml"), "nowhere.yaml"),
        (("evaluate", *NET, "--split", "tests"), "unknown split 'tests'; did you mean 'test'?"),
        (("evaluate", *NET, "--runtime", "torh"), "unknown runtime 'torh'; did you mean 'torch'?"),
        (("bench", "mycode:Net", "--input", "1x1x8x8", "--runtime", "torh"), "unknown runtime 'torh'"),
        (("methods", "distil.recover"), "unknown method 'distil.recover'; did you mean 'distill.recover'?"),
        (("inspect", "nowhere.onnx"), "nowhere.onnx: no such file"),
        (("inspect", "mycode.py"), "can look into .gsr, .onnx, .pt2, .safetensors"),
        (("bench", "mycode.py"), "mycode.py: a file of Python code is named as a module: mycode:NAME"),
        (("evaluate", "sub/net.py:make", "--data", "mycode:task"), "net:make, run in sub or with it in PYTHONPATH"),
        (("evaluate", "mycode:Net", "--data", "mycode.py"), "named as a module: mycode:NAME"),
        (("inspect", "."), "holds no records.json"),
        (("evaluate", ".", "--data", "mycode:task"), "a folder without a model.onnx"),
        (("evaluate", "nowhere.onnx", "--data", "mycode:task"), "nowhere.onnx: no such file"),
        (("export", *NET, "--out", "net.tflite"), "must end in .onnx or .pt2"),
        (("export", "mycode:Net", "--int8", "--out", "a.onnx"), "--int8 writes an .onnx and needs --data"),
        (("train", "mycode:Net"), "which network on which data?"),
        (("train", *NET, "--out", "net.pt"), "trained weights are written as .safetensors"),
        (("train", *NET, "--lr", "-1"), "lr"),
        (("compress", *NET, "--recipe", "train-resnet14-digits"), "has no steps, only a training"),
        (("export", *NET, "--int8", "--out", "a.onnx", "--max-drop", "-5"), "Invalid value for '--max-drop'"),
    ],
)
@pytest.mark.slow
def test_a_wrong_word_is_named_with_the_nearest_right_one(user: Path, words: tuple[str, ...], message: str) -> None:
    assert message in said(*words)


def test_networks_of_different_inputs_are_not_timed_side_by_side(user: Path) -> None:
    message = said("bench", "lenet5", "resnet8", "--runtime", "torch", "--repeats", "1")
    assert "give --data, or time them apart" in message


# Goals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what to gain: at least one of --speedup, --latency-ms, --macs, --params, --file-bytes"),
        (("--max-drop", "1"), "say what to gain"),
        (("--speedup", "0.5"), "--speedup 0.5: must be at least 1"),
        (("--speedup", "2", "--max-drop", "-1"), "--max-drop -1.0: must be at least 0 points"),
        (("--latency-ms", "0"), "--latency-ms 0.0: must be greater than 0"),
        (("--macs", "0"), "--macs 0: must be greater than 0"),
    ],
)
def test_an_impossible_goal_is_refused(user: Path, words: tuple[str, ...], message: str) -> None:
    assert message in said("compress", *NET, *words)
    assert not (user / "out").exists()


# Weights and files


def test_pickled_weights_are_refused_and_not_run(user: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(user / "exploded"),)

    (user / "w.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save(nn.Linear(2, 2), user / "module.pt")
    for name in ("w.pt", "module.pt"):
        said("compress", *NET, *GOAL, "--weights", name)
    assert not (user / "exploded").exists()
    assert "unpickles nothing" in said("compress", *NET, *GOAL, "--weights", "module.pt")


def test_weights_that_do_not_fit_are_named_with_shapes(user: Path) -> None:
    state = resolve("mycode:Net")().state_dict()
    del state["0.bias"]
    torch.save({**state, "0.weight": torch.zeros(8, 3, 3, 3)}, user / "w.pt")
    message = said("compress", *NET, *GOAL, "--weights", "w.pt")
    assert "0.weight has shape (8, 3, 3, 3), the model needs (8, 1, 3, 3)" in message and "0.bias is missing" in message


@pytest.mark.parametrize("name", ["cut.onnx", "cut.pt2", "cut.safetensors"])
def test_a_damaged_file_is_called_so(user: Path, name: str) -> None:
    (user / name).write_bytes(b"\x08\x09truncated")
    assert name in said("inspect", name)
    assert name in said("evaluate", name, "--data", "mycode:task")


def test_a_damaged_result_folder_is_called_so(user: Path) -> None:
    (user / "records.json").write_text('{"format": 1}')
    assert "records.json is damaged" in said("inspect", ".")


# Output folders


@contextmanager
def mounted(folder: Path, size: str, mode: str) -> Iterator[Path]:
    """A file system of its own at the folder; skips the test where that cannot be made."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},{mode}", "gossamer-test", str(folder)])
    if made.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


COMMANDS_THAT_WRITE = [
    ("compress", *NET, *GOAL, "--out"),
    ("train", *NET, "--epochs", "1", "--out"),
    ("export", "mycode:Net", "--input", "2x1x8x8", "--out"),
    ("recipes", "copy", "any"),
]


def target(words: tuple[str, ...], folder: Path) -> Path:
    """The output in the folder that the command can write."""
    return folder / {"compress": "result", "train": "a.safetensors", "export": "a.onnx", "recipes": "a.yaml"}[words[0]]


@pytest.fixture
def any_recipe(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (user / "any.yaml").write_text("name: any\n")
    monkeypatch.setattr("gossamer.jobs.recipe.shipped", lambda: {"any": user / "any.yaml"})


@pytest.mark.usefixtures("any_recipe")
@pytest.mark.parametrize("words", COMMANDS_THAT_WRITE, ids=lambda words: words[0])
def test_a_full_disk_is_said_and_nothing_is_left(user: Path, words: tuple[str, ...]) -> None:
    with mounted(user / "full", "16k", "mode=755") as folder:
        (folder / "filler").write_bytes(b"\0" * 4096)
        with pytest.raises(OSError, match="No space left"), (folder / "more").open("wb") as file:
            for _ in range(100):
                file.write(b"\0" * 4096)
        message = said(*words, target(words, folder))
        assert "the disk is full" in message and str(folder) in message
        assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"filler", "more"}


@pytest.mark.usefixtures("any_recipe")
@pytest.mark.parametrize("words", COMMANDS_THAT_WRITE, ids=lambda words: words[0])
def test_a_folder_that_cannot_be_written_is_said(user: Path, words: tuple[str, ...]) -> None:
    with mounted(user / "readonly", "64k", "ro") as folder:
        message = said(*words, target(words, folder))
        assert str(folder) in message and "read-only file system" in message


@pytest.mark.parametrize("words", COMMANDS_THAT_WRITE[:1], ids=lambda words: words[0])
def test_an_output_folder_that_is_a_file_is_said(user: Path, words: tuple[str, ...]) -> None:
    (user / "taken").write_text("precious")
    assert "taken is a file" in said(*words, "taken")
    assert "taken" in said(*words, "taken/below")
    assert (user / "taken").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "lock"), [(COMMANDS_THAT_WRITE[0], ".lock"), (COMMANDS_THAT_WRITE[1], ".a.safetensors.lock")]
)
def test_a_second_job_in_the_same_place_is_refused(user: Path, words: tuple[str, ...], lock: str) -> None:
    place = target(words, user / "busy")
    with lock_folder(place if words[0] == "compress" else place.parent, lock):
        message = said(*words, place)
    assert f"another job (process {os.getpid()}) works in" in message


def test_the_lock_is_gone_with_the_job_and_so_is_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path / "job"):
            assert [p.name for p in (tmp_path / "job").iterdir()] == [".lock"]
    assert list((tmp_path / "job").iterdir()) == []


# Statuses


def replace_job(monkeypatch: pytest.MonkeyPatch, job: Any) -> None:
    monkeypatch.setitem(sys.modules, "gossamer.jobs.compression", SimpleNamespace(compress=job))


def test_ctrl_c_says_how_to_go_on(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, out: Path, **__: object) -> None:
        out.mkdir(parents=True)
        (out / "state").touch()
        raise KeyboardInterrupt

    replace_job(monkeypatch, interrupted)
    message = said("compress", *NET, *GOAL, status=130)
    assert "stopped; out/Net-bright keeps what is done. To continue, run the same command: gossamer" in message


def test_options_of_the_training_reach_it(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On built-in data: the rate, the length, and the batches with the threads that prepare them."""
    seen: dict[str, Any] = {}

    def job(model: Any, task: Any, **options: Any) -> Any:
        seen.update(options, task=task)
        raise KeyboardInterrupt

    replace_job(monkeypatch, job)
    options = ("--lr", "0.3", "--epochs", "7", "--batch-size", "32", "--workers", "2")
    said("compress", "resnet8", "--random", "--data", "digits", "--macs", "1M", *options, status=130)
    train = seen["task"].train
    assert (seen["lr"], seen["epochs"], train.batch_size, train.workers) == (0.3, 7, 32, 2)
    said("compress", "resnet8", "--random", "--data", "digits", "--macs", "1M", status=130)
    train = seen["task"].train
    assert (seen["lr"], seen["epochs"], train.batch_size, train.workers) == (None, None, 128, 0)


@pytest.mark.parametrize("option", ["--batch-size", "--workers"])
@pytest.mark.parametrize(
    "command",
    [
        ("train", "mycode:Net", "--data", "mycode:task"),
        ("compress", "mycode:Net", "--random", "--data", "mycode:task", "--macs", "1M"),
        ("distill", "--teacher", "mycode:Net", "--student", "mycode:Net", "--data", "mycode:task"),
    ],
)
def test_batches_of_the_users_own_are_left_to_the_user(user: Path, command: tuple[str, ...], option: str) -> None:
    assert f"{option}: mycode:task makes its own batches; set it there" in said(*command, option, "4")


@pytest.mark.parametrize("option", ["--lr", "--epochs"])
def test_the_steps_of_a_recipe_have_their_own_rate_and_length(user: Path, option: str) -> None:
    words = ("compress", "mycode:Net", "--data", "mycode:task", "--recipe", "smallest-lenet5", option, "1")
    assert f"{option} is for planned jobs" in said(*words)


def test_a_bug_is_not_blamed_on_the_user(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    replace_job(monkeypatch, broken)
    message = said("compress", *NET, *GOAL, status=1)
    assert "ZeroDivisionError: division by zero" in message and "This is a bug of gossamer" in message
    assert "Traceback" not in message
    assert "Traceback" in said("compress", *NET, *GOAL, "--traceback", status=1)


@pytest.mark.parametrize("words", [("models",), ("models", "--json"), ("methods", "distill.kd")])
@pytest.mark.slow
def test_a_reader_that_leaves_early_gets_no_message(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from gossamer.cli import main; main()", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "")


def test_a_pipe_that_breaks_between_processes_is_no_reader_that_left(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    replace_job(monkeypatch, broken)
    result = CliRunner().invoke(app, ["compress", *NET, *GOAL], prog_name="gossamer")
    assert result.exit_code == 1 and "BrokenPipeError" in result.stderr


def test_traceback_also_comes_with_bad_input(user: Path) -> None:
    assert "Traceback" in said("--traceback", "evaluate", *NET, "--split", "x")


def test_a_missed_goal_is_status_3_and_still_shows_the_result(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = sample_document.missed()
    calls: list[dict[str, Any]] = []

    def job(*_: object, **options: Any) -> SimpleNamespace:
        calls.append(options)
        return SimpleNamespace(document=document, folder=options["out"])

    replace_job(monkeypatch, job)
    words = [
        "compress",
        *NET,
        "--speedup",
        "3",
        "--file-bytes",
        "30kB",
        "--max-drop",
        "1.5",
        "--threads",
        "1",
        "--out",
        "there",
        "--seed",
        "5",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3, result.output
    assert f"missed: {document.missed[0]}" in result.stderr
    assert "before" in result.stdout and "Goal missed" in result.stdout and "report.html" in result.stdout
    goal = calls[0]["goal"]
    assert (goal.speedup, goal.file_bytes, goal.threads, goal.max_drop) == (3, 30_000, 1, 1.5)
    assert calls[0]["out"] == Path("there") and calls[0]["context"].seed == 5
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["document"]["missed"] == document.missed


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/0"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognised_whoever_reports_it(error: Exception) -> None:
    status, message = verdict(error)
    assert status == 2 and "the disk is full" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_out_of_memory_is_no_bug(error: Exception) -> None:
    status, message = verdict(error)
    assert status == 2 and "out of memory" in message


def test_notes_on_an_error_are_shown() -> None:
    error = BadInput("wrong")
    error.add_note("in step 2")
    assert verdict(error) == (2, "error: wrong\n  in step 2")


@pytest.mark.parametrize(
    "command",
    [
        ("compress", "MODEL", *GOAL),
        ("quantize", "MODEL"),
        ("evaluate", "MODEL"),
        ("train", "MODEL"),
        ("bench", "mycode:Net", "MODEL"),
        ("analyze", "MODEL"),
        ("export", "MODEL", "--out", "a.onnx"),
        ("distill", "--teacher", "MODEL", "--student", "resnet8"),
        ("distill", "--teacher", "resnet14", "--student", "MODEL"),
        ("distill", "--teacher", "resnet14", "--student", "auto", "--macs", "1M", "--assistant", "MODEL"),
        ("compress", "mycode:Net", "--teacher", "MODEL", *GOAL),
    ],
)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet2O", "unknown model 'resnet2O'; did you mean 'resnet20'?"),
        ("nowhere.onnx", "nowhere.onnx: no such file"),
        ("nowhere.gsr", "nowhere.gsr: no such file"),
        ("mycode:Nets", "'Nets'"),
        ("empty", "empty is a folder without a model.onnx"),
    ],
)
def test_a_wrong_name_is_refused_before_data_are_loaded(
    user: Path, command: tuple[str, ...], model: str, message: str
) -> None:
    (user / "empty").mkdir()
    (user / "never.py").write_text("def task():\n    raise AssertionError('the data were loaded')\n")
    words = [model if word == "MODEL" else word for word in command]
    assert message in said(*words, "--data", "never:task")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "resnet14", "--weights", "nowhere.pt"), "nowhere.pt: no such file"),
        (("evaluate", "resnet14", "--runtime", "torh"), "unknown runtime 'torh'"),
        (("analyze", "resnet14", "--runtime", "torh"), "unknown runtime 'torh'"),
        (("analyze", "resnet14", "--robustness", "--against", "nowhere.pt"), "nowhere.pt: no such file"),
        (("bench", "resnet14", "--runtime", "torh"), "unknown runtime 'torh'"),
        (("train", "resnet14", "--weights", "mycode.py"), "weights are a .safetensors, .pt, .pth file"),
        (("distill", "--teacher", "resnet14=nowhere.pt", "--student", "resnet8"), "nowhere.pt: no such file"),
    ],
)
def test_wrong_files_and_runtimes_are_refused_before_data_are_loaded(
    user: Path, words: tuple[str, ...], message: str
) -> None:
    (user / "never.py").write_text("def task():\n    raise AssertionError('the data were loaded')\n")
    assert message in said(*words, "--data", "never:task")


def test_a_folder_of_the_name_of_a_network_hides_nothing(user: Path) -> None:
    (user / "resnet8").mkdir()
    result = CliRunner().invoke(app, ["evaluate", "resnet8", "--random", "--data", "digits", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["n"] > 100


@pytest.mark.parametrize("name", ["net.onnx", "net.gsr", "net.pt2", "result"])
def test_a_network_without_code_is_not_trained_into_a_file_of_weights(user: Path, name: str) -> None:
    folder = user / "result"
    folder.mkdir()
    for path in (folder / "model.pt2", folder / "model.onnx", *((user / name,) if name != "result" else ())):
        path.write_bytes(b"never read")
    (user / "never.py").write_text("def task():\n    raise AssertionError('the data were loaded')\n")
    told = said("train", name, "--data", "never:task")
    assert f"{name} holds a network without the code that makes it" in told and "requires_grad" not in told


def test_a_path_that_is_not_there_is_no_misspelt_network(user: Path) -> None:
    assert said("evaluate", "out/small", "--data", "mycode:task") == "error: out/small: no such file or folder"
