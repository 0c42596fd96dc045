"""Run a network without leaving a trace in it."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a forward may change: attributes of modules, buffers, and PyTorch's generator.

    Attributes that are dictionaries, lists or sets are restored in their contents too (caches, counters).
    """
    saved = []
    for module in model.modules():
        inner = [(v, type(v)(v)) for v in module.__dict__.values() if type(v) in (dict, list, set)]
        saved.append((module, dict(module.__dict__), inner))
    values = [(b, b.clone(), b._version) for b in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, attributes, inner in saved:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for container, before in inner:
                    container.clear()
                    container.extend(before) if isinstance(container, list) else container.update(before)
            with torch.no_grad():
                for buffer, value, version in values:  # unchanged ones are not written: that would count as a change
                    if buffer._version != version:
                        buffer.copy_(value)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused transformer kernels, which hide their operations, and no log lines about fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, fast = logger.level, torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logger.setLevel(level)
