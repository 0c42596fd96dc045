"""What ends a command from outside ends it in order: temporary files go, the status is that of the signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gossamer.cli.errors import Stopped, verdict
from gossamer.cli.jobs import resumable
from gossamer.cli.signals import Ended, ended_in_order
from gossamer.errors import BadInput

ENDING = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Tests that a shell started in the background, or under nohup, inherit signals that are ignored."""
    usual = dict.fromkeys(ENDING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_becomes_an_exception_and_the_handler_goes(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Ended, match=f"ended by {number.name}") as caught, ended_in_order():
        os.kill(os.getpid(), number)
    assert caught.value.status == 128 + number and signal.getsignal(number) == before


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_job_ended_by_a_signal_says_how_it_continues_with_the_status_of_the_signal(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught, resumable(tmp_path):
        raise Ended(signal.SIGTERM)
    status, message = verdict(caught.value)
    assert status == 143 and f"{tmp_path} keeps what is done" in message
    assert verdict(Ended(signal.SIGHUP)) == (129, "\nstopped") and verdict(KeyboardInterrupt()) == (130, "\nstopped")


def test_what_is_not_there_is_not_said_to_be_kept(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped before there was anything to keep"), resumable(tmp_path / "w.ckpt"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_library_swallows_is_told_when_something_else_fails(number: signal.Signals) -> None:
    """torch, interrupted while it imports its parts, goes on and fails later: it was told as a bad network."""
    later = BadInput("module 'torch._dynamo' has no attribute 'exc'")
    with ended_in_order():
        with suppress(BaseException):
            os.kill(os.getpid(), number)
        assert verdict(later) == (128 + number, "\nstopped")
    assert verdict(later)[0] == 2


KILLED = """
import os, signal, torch

class Net(torch.nn.Linear):
    runs = 0

    def forward(self, x):
        Net.runs += 1
        if Net.runs > 1:  # the first run is that of loading; then there is a temporary folder
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)

def net():
    return Net(4, 2)
"""


@pytest.mark.slow
def test_an_export_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    words = [sys.executable, "-m", "gossamer", "export", "killed:net", "--input", "2x4", "--out", "a.onnx", "--quiet"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "\nstopped\n")
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "__pycache__") == ["killed.py"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of threads
def test_a_worker_that_was_forked_dies_of_the_signal() -> None:
    with ended_in_order():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
