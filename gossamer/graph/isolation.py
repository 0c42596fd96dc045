"""Run a network without leaving a trace in it."""

import contextlib
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)  # OrderedDict: the hooks of modules


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a forward may change: attributes of modules, buffers, and PyTorch's generator.

    Attributes that are containers are restored in their contents too (caches, counters, hooks).
    """
    # The __dict__ has parameters, buffers and hooks, too: all of it is put back as it was, by reference.
    saved = []
    for module in model.modules():
        inner = [(v, v.copy()) for v in module.__dict__.values() if type(v) in CONTAINERS]
        saved.append((module, dict(module.__dict__), inner))
    values = [(b, b.clone()) for b in model.buffers()]
    # Dropout draws numbers: the seed of the user must not notice that the network was traced.
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, attributes, inner in saved:
                # Cleared first: attributes that the forward has added must go, too.
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for container, before in inner:
                    container.clear()
                    container.extend(before) if isinstance(container, list | deque) else container.update(before)
            for buffer, value in values:
                # Not all kernels count what they write, so values are compared; fake tensors hold nothing.
                if not isinstance(buffer, FakeTensor) and not torch.equal(buffer, value):
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(value)


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in training mode, or none."""
    with untouched(model):
        model.train(training)
        yield


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused kernels, which hide their operations, and no log lines about fake tensors.

    Transformers have such kernels, and TorchScript makes them once it has run a few times.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, fast = logger.level, torch.backends.mha.get_fastpath_enabled()
    # Every operation that has no fake kernel is a warning there, and no fault here.
    logger.setLevel(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logger.setLevel(level)


@contextlib.contextmanager
def plain_recurrence() -> Iterator[None]:
    """No fused recurrent layers: their steps are operations of their own, as in double precision on the CPU."""
    mkldnn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # the public switches warn, and set more than this
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)
