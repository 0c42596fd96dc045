"""What a caller may have set around a call: it must not change the result, and comes back as it was."""

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

LOG = logging.getLogger("gossamer")
_one_thread = threading.RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """One thread at a time: tracing and exporting replace functions of torch for the whole process, and the global
    generators are there once. Another one waits."""
    if not _one_thread.acquire(blocking=False):
        LOG.info("waiting until a call of gossamer in another thread of this process ends")
        _one_thread.acquire()
    try:
        yield
    finally:
        _one_thread.release()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global generators as they were found."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002


@contextmanager
def own_conditions() -> Iterator[None]:
    """Within: gradients, no inference mode, no autocast and new tensors that have values (not on the device meta),
    whatever the caller has set; then his generators go on where they were. Calls of other threads wait for its end. It
    is a decorator, too.

    Example:
        >>> with torch.no_grad(), own_conditions():
        ...     torch.is_grad_enabled()
        True
    """
    with ExitStack() as conditions:
        conditions.enter_context(_alone())
        conditions.enter_context(own_randomness())
        conditions.enter_context(torch.inference_mode(False))
        conditions.enter_context(torch.enable_grad())
        if torch.get_default_device().type == "meta":
            conditions.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                conditions.enter_context(torch.autocast(device, enabled=False))
        yield
