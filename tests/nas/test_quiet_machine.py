"""No training of a machine takes a step while a time is measured there."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossamer.core.progress import Quiet
from gossamer.nas.quiet_machine import QuietMachine


def is_free(folder: Path, how: int) -> bool:
    """Whether the room could be had now."""
    with QuietMachine(folder)._opened("room") as room:
        try:
            fcntl.flock(room, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_trainings_share_the_machine_and_a_measurement_has_it_alone(tmp_path: Path) -> None:
    one, other = QuietMachine(tmp_path), QuietMachine(tmp_path)
    with one.training() as pauses, other.training():
        pauses()
        assert is_free(tmp_path, fcntl.LOCK_SH) and not is_free(tmp_path, fcntl.LOCK_EX)
    with one.measuring(Quiet()):
        assert not is_free(tmp_path, fcntl.LOCK_SH)
    assert is_free(tmp_path, fcntl.LOCK_EX)


def test_a_measurement_gets_in_between_two_steps_and_keeps_trainings_out(tmp_path: Path) -> None:
    machine, free = QuietMachine(tmp_path), list[bool]()

    def measure() -> None:
        with QuietMachine(tmp_path).measuring(Quiet()):
            free.append(is_free(tmp_path, fcntl.LOCK_SH))

    thread = threading.Thread(target=measure)
    with machine.training() as pauses:
        thread.start()
        while not free:  # steps of a training that goes on as long as nobody has measured
            pauses()
        thread.join()
        assert free == [False] and not is_free(tmp_path, fcntl.LOCK_EX)


@pytest.mark.parametrize("how", [QuietMachine.training, lambda machine: machine.measuring(Quiet())])
def test_the_lock_of_a_process_that_is_killed_is_gone(tmp_path: Path, how: Callable[..., Any]) -> None:
    pid = os.fork()
    if not pid:
        with how(QuietMachine(tmp_path)):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert is_free(tmp_path, fcntl.LOCK_EX)
