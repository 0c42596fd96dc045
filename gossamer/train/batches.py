"""Batches on their way to the network: same randomness for the same place, this process's part, device and layout."""

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gossamer.core.batches import Loader, sample_count
from gossamer.core.conditions import own_randomness
from gossamer.errors import BadInput

if TYPE_CHECKING:
    from gossamer.core.task import Task


def seed_everything(*place: int) -> int:
    """Seed torch, numpy and random from the numbers of a place: (seed, epoch, batch, rank). The seed, 32 bits."""
    # 32 bits: all that numpy and torch's Mersenne twister take.
    seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=4).digest())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the user's augmentations may draw from the global generator
    # Not torch.manual_seed, which costs half a millisecond for the devices that are not there.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    return seed


def batches_of_epoch(loader: Loader, seed: int, epoch: int, start: int, rank: int) -> Iterator[tuple[int, Any]]:
    """(index, batch) from index `start` on.

    Every batch is drawn, and its step done, with generators seeded by its place, so that a training that is taken up in
    the middle of an epoch sees what it would have seen. Loaders that know `set_epoch`, and `start`, are told.
    """
    first = seed_everything(seed, epoch)
    holders: tuple[Any, ...] = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    for holder in holders:
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            generator.manual_seed(first)
    skips = hasattr(loader, "start")
    iterator: Iterator[Any] = loader.start(start) if skips else iter(loader)  # type: ignore[attr-defined]
    steps = len(loader)
    for index in range(start if skips else 0, steps):
        seed_everything(seed, epoch, index)
        batch = next(iterator, _END)
        if batch is _END:
            raise BadInput(f"training: the train loader ended after {index} batches, but its length is {steps}")
        if index >= start:
            if rank:  # the same data in all processes, but not the same dropout
                seed_everything(seed, epoch, index, rank)
            yield index, batch


def endless(loader: Loader, seed: int) -> Iterator[Any]:
    """Its batches, epoch after epoch, without end."""
    for epoch in itertools.count():
        for _, batch in batches_of_epoch(loader, seed, epoch, 0, 0):
            yield batch


@dataclass(frozen=True)
class Replayed:
    """The first epoch of a loader as training with this seed would see it, the same every time it is asked for."""

    loader: Loader
    seed: int

    def __iter__(self) -> Iterator[Any]:
        with own_randomness():
            for _, batch in batches_of_epoch(self.loader, self.seed, 0, 0, 0):
                yield batch


_END = object()
VECTOR = 8  # floats in a vector register of the narrowest processor that has fast convolutions


def refuse_nan(loader: Loader, what: str) -> None:
    """Name the first batch that holds NaN: no learning rate helps against that."""
    for index, batch in enumerate(loader):
        if any(x.isnan().any() for x in tree_leaves(batch) if isinstance(x, Tensor)):
            raise BadInput(f"{what}: batch {index} holds NaN")


class Placement:
    """Brings batches to this process: its share of the samples, on the device, images channels-last.

    The share is every `world`-th sample from the `rank`-th on, of every tensor of the batch.
    """

    def __init__(self, device: torch.device, *, rank: int = 0, world: int = 1, channels_last: bool = False) -> None:
        self.device, self.rank, self.world, self.channels_last = device, rank, world, channels_last

    def __call__(self, batch: Any) -> tuple[Any, float]:
        """The part of the batch, and its weight in the mean over all processes (1 where the parts are equal)."""
        samples = batch_size(batch)
        if self.world == 1 or samples < self.world:
            return apply_to_collection(batch, Tensor, self._place), 1.0
        part = apply_to_collection(batch, Tensor, self._part)
        return part, batch_size(part) * self.world / samples

    def _part(self, x: Tensor) -> Tensor:
        return self._place(x[self.rank :: self.world] if x.dim() else x)

    def whole(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Whole batches on the device."""
        for batch in loader:
            yield apply_to_collection(batch, Tensor, self._place)

    def _place(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x


def batch_size(batch: Any) -> int:
    """Size of dim 0 of the first tensor that has one; 0 where there is none."""
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda x: sizes.extend(x.shape[:1]))
    return sizes[0] if sizes else 0


def samples_of_pass(loader: Loader, seed: int) -> int:
    """Samples of one pass; where the loader does not tell them, as many batches as it has of the size of the first."""
    if isinstance(loader, list | tuple):
        return sum(map(batch_size, loader))
    if (known := sample_count(loader)) is not None:
        return known
    first = next(iter(Replayed(loader, seed)), None)
    return len(loader) * batch_size(first)


def takes_channels_last(model: nn.Module, task: "Task") -> bool:
    """Whether images come, in a layout that all convolutions of the network take."""
    images = any(isinstance(x, Tensor) and x.dim() == 4 for x in task.example_inputs)
    return images and not unsafe_channels_last(model)


def unsafe_channels_last(model: nn.Module) -> bool:
    """Whether training this network channels-last could abort the process.

    oneDNN's gradient of a strided 1x1 convolution writes past its memory there when the channels are not a multiple of
    what a vector register holds (6 to 13 channels, 28x28, stride 2, on AVX2: the process is aborted).
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    risky = (m for m in convolutions if max(m.kernel_size) == 1 and max(m.stride) > 1)
    return any(channels % VECTOR for m in risky for channels in (m.in_channels, m.out_channels))


def to_channels_last(model: nn.Module) -> list[nn.Parameter]:
    """Change the layout of the 4-d weights, in place; those that were changed."""
    changed = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous()]
    for p in changed:
        # Not `contiguous(...)`, which leaves a weight of one input channel as it is, and all that follows with it.
        p.data = p.data.to(memory_format=torch.channels_last)
    return changed


@contextmanager
def weights_channels_last(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Hold 4-d weights channels-last, which convolutions on CPU and GPU prefer; put the layout back at the end."""
    changed = to_channels_last(model) if enabled else []
    try:
        yield
    finally:
        for p in changed:
            p.data = p.data.to(memory_format=torch.contiguous_format)
