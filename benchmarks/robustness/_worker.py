"""Runs very many tries in one process of its own, which is watched and started again only where a try ends it."""

import gc
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from gossamer.errors import own_error

SLOW_SECONDS = 10.0
STUCK_SECONDS = 600.0  # by the clock: of a try that waits for ever
MOST_ADDRESSES = 4 << 30  # by which a worker may grow
WRITABLE = 1 << 26  # bytes of the file that a try makes for itself

Attempt = Callable[[int], str | None]


def watched(attempt: Attempt, first: int, last: int) -> list[str]:
    """Faults of the tries number `first` up to `last`.

    A try that takes more than SLOW_SECONDS of the processor's time, that writes into a file by other means than
    `write`, or crashes ends its process and is told; the next one goes on in a new process. Memory is limited, too.

    Args:
        attempt: Does one try; gives what is wrong, or None. Whatever it needs is made before, once.
        first: Number of the first try.
        last: Number after the last try.
    """
    faults = []
    with mmap.mmap(-1, 8) as place:  # where the worker is: shared memory, which costs no switch of processes
        while first < last:
            reading, writing_end = os.pipe()
            process = os.fork()
            if process == 0:
                os.close(reading)
                _work(attempt, first, last, place, writing_end)
            os.close(writing_end)
            with os.fdopen(reading) as answers:
                faults += [line.rstrip("\n") for line in answers]
            status = os.waitpid(process, 0)[1]
            number = struct.unpack("q", place[:])[0]
            if status:
                faults.append(f"{number}: {_end(status)}")
            first = number + 1
    return faults


def _end(status: int) -> str:
    if not status & 127:
        return f"ended by status {status >> 8}"
    name = signal.Signals(status & 127).name
    slow = {"SIGPROF": f"took more than {SLOW_SECONDS} s", "SIGALRM": f"waited for more than {STUCK_SECONDS} s"}
    return slow.get(name, f"ended by {name}")


def _work(attempt: Attempt, first: int, last: int, place: mmap.mmap, answers: int) -> NoReturn:
    """Never comes back: a process of its own."""
    status = 1
    try:
        gc.freeze()
        torch.set_num_threads(1)  # the threads of the process that forked are not there
        sys.dont_write_bytecode = True  # of what is imported late
        # What libraries say of broken files beside refusing them; it would go into a file where output is captured.
        warnings.simplefilter("ignore")
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MOST_ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, WRITABLE))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        for number in range(first, last):
            place[:] = struct.pack("q", number)
            signal.setitimer(signal.ITIMER_PROF, SLOW_SECONDS)  # of the processor's time; the signal ends the process
            signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
            found = attempt(number)
            if found is not None:
                os.write(answers, f"{number}: {found[:300]!r}\n".encode())
        status = 0
    except BaseException as error:
        os.write(answers, f"the fuzzer itself: {own_error(error)!r}\n".encode())
    finally:
        os._exit(status)


def write(path: Path, data: bytes) -> None:
    """A file, from a process in which nothing else may write any."""
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] == WRITABLE:
        resource.setrlimit(resource.RLIMIT_FSIZE, (WRITABLE, WRITABLE))
        path.write_bytes(data)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, WRITABLE))
    else:
        path.write_bytes(data)


def memory(what: str) -> int:
    """A line of this process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) << 10
