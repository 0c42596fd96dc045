"""Batches of images: indexed, augmented and normalised a whole batch at a time."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput

BATCH = 128
# Numbers of one batch that nobody asked to be as large: what layers make of it is tens of times more.
BATCH_NUMBERS = 8 * 3 * 224 * 224
# What random numbers are drawn for; keeps the order and the augmentation of batch 0 apart.
ORDER, AUGMENTATION = 0, 1

T = TypeVar("T")


class Images(Protocol):
    """All images of a split, indexed by a tensor of positions: a uint8 or float tensor (N, C, H, W), or files."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crops and mirror images of training images.

    Args:
        pad: zeros around an image, in pixels, before a crop of its own size is taken.
        flip: mirror half of the samples.

    Example:
        >>> Augmentation(pad=4, flip=True)
        Augmentation(pad=4, flip=True)
    """

    pad: int = 0
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """(x / 255 - mean) / std for uint8 images, (x - mean) / std for floating-point ones.

    Args:
        mean: one number for each channel, in the scale [0, 1].
        std: one number for each channel, in the same scale.

    Example:
        >>> Normalisation(mean=(0.5,), std=(0.5,))(torch.tensor([[[[1.0]]]])).item()
        1.0
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        scale = 255.0 if x_NCHW.dtype == torch.uint8 else 1.0
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        return x_NCHW.float().mul_(1 / (scale * std)).sub_(mean / std)


def augment(x_NCHW: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Each sample shifted by up to `pad` pixels both ways (zeros come in) and mirrored or not, on its own."""
    n, _, height, width = x_NCHW.shape
    pad = augmentation.pad
    if pad:
        top = torch.randint(2 * pad + 1, (n,), generator=generator)
        left = torch.randint(2 * pad + 1, (n,), generator=generator)
        # A view with every possible crop, of which each sample picks one.
        crops = F.pad(x_NCHW, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
        x_NCHW = crops[torch.arange(n), :, top, left]
    if augmentation.flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        x_NCHW = torch.where(mirrored.view(-1, 1, 1, 1), x_NCHW.flip(3), x_NCHW)
    return x_NCHW


def ahead(make: Callable[[int], T], numbers: Iterable[int], workers: int) -> Iterator[T]:
    """What `make` gives for each number, in order; so many threads, and results, are ahead of what is taken."""
    waiting = deque[Future[T]]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(make, number))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


class Labels(Protocol):
    """What a batch is to give, by numbers of images, such as a tensor."""

    def __getitem__(self, index: Tensor, /) -> Any: ...


def largest_batch(shape: Sequence[int]) -> int:
    """Samples of a batch of images (N, C, H, W), so that what a network makes of them fits into memory."""
    return max(1, BATCH_NUMBERS // math.prod(shape[1:]))


@dataclass(eq=False, repr=False)
class Batches:
    """A split in memory, batch by batch, as often as wanted: `(x_NCHW, y_N)`, or `x_NCHW` alone without labels.

    What comes depends on (seed, epoch, batch index) only, so that a job that was cut off continues with the batches
    that it would have seen: `set_epoch(epoch)`, then `start(batch_index)`. Iterating is `start(0)`.

    `shard(rank, world)` gives one process its part of every batch: the shards of a batch are the batch, so training
    with several processes sees the same samples, equally augmented, as training with one.

    workers: threads that prepare batches ahead of whoever takes them; with 0 each is made when it is asked for. They
    change when a batch is made, not what is in it.

    Attributes:
        images: of the data set; `index` says which of them are in the split.
        labels: class numbers (N,) of the data set, or whatever gives the targets of a batch for numbers of images;
            None: batches are inputs alone.
        batch_size: images of a batch; the last one may have fewer.
        normalisation: mean and deviation by channel.
        index: numbers of the images, in their order; not given: all.
        augmentation: of training images; None: none.
        shuffle: another order in every epoch.
        drop_last: leave out a last batch that is not full.
        seed: of order and augmentation.

    Example:
        >>> import gossamer
        >>> batches = gossamer.load_task("digits", batch_size=100).validation
        >>> x, y = next(iter(batches))
        >>> x.shape, y.shape, len(batches)
        (torch.Size([100, 1, 28, 28]), torch.Size([100]), 3)
    """

    images: Images
    labels: Labels | None
    _: KW_ONLY
    batch_size: int
    normalisation: Normalisation
    index: Tensor = None  # type: ignore[assignment]  # which images, in their order; not given: all
    augmentation: Augmentation | None = None
    shuffle: bool = False
    drop_last: bool = False
    layout: str = "nchw"  # or "nhwc", with the channels last
    seed: int = 0
    epoch: int = field(init=False, default=0)
    rank: int = field(init=False, default=0)
    world: int = field(init=False, default=1)
    workers: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seed < 0:
            raise BadInput(f"batch_size = {self.batch_size} must be at least 1 and seed = {self.seed} at least 0")
        if self.index is None:
            self.index = torch.arange(self.images.shape[0])

    @property
    def samples(self) -> int:
        """Samples of the split, over all shards."""
        return len(self.index)

    def __len__(self) -> int:
        whole = self.samples / self.batch_size
        return math.floor(whole) if self.drop_last else math.ceil(whole)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        return self.start(0)

    def unaugmented(self) -> "Batches":
        """The same samples in the same order, as they are; this loader itself where it does not augment."""
        if self.augmentation is None:
            return self
        plain = copy.copy(self)
        plain.augmentation = None
        return plain

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self.epoch = epoch

    def start(self, batch_index: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """The batches of this epoch from a batch on; the skipped ones cost nothing."""
        order = self.index
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=self._generator(ORDER))]
        numbers = range(batch_index, len(self))
        if not self.workers:
            return (self._batch(order, number) for number in numbers)
        now = copy.copy(self)  # `set_epoch` may be called while batches of this epoch are still being made
        return ahead(lambda number: now._batch(order, number), numbers, self.workers)

    def shard(self, rank: int, world: int) -> "Batches":
        """The part of one process: samples rank, rank + world, ... of every batch, equally many batches for all."""
        if not 0 <= rank < world:
            raise BadInput(f"rank = {rank} must be in 0..{world - 1}")
        rest = self.samples % self.batch_size
        smallest = self.batch_size if self.drop_last or not rest else rest
        if self.drop_last and self.batch_size % world:
            raise BadInput(f"batch_size = {self.batch_size} cannot be shared equally by {world} processes")
        if smallest < world:
            raise BadInput(f"the smallest batch has {smallest} samples, too few for {world} processes")
        part = copy.copy(self)
        part.rank, part.world = rank, world
        return part

    def _batch(self, order: Tensor, number: int) -> tuple[Tensor, Tensor] | Tensor:
        picked = order[number * self.batch_size : (number + 1) * self.batch_size]
        x_NCHW = self.images[picked]
        if self.augmentation is not None:
            x_NCHW = augment(x_NCHW, self.augmentation, self._generator(AUGMENTATION, number))
        if self.world > 1:
            x_NCHW, picked = x_NCHW[self.rank :: self.world], picked[self.rank :: self.world]
        x_NCHW = self.normalisation(x_NCHW)
        x = x_NCHW if self.layout == "nchw" else x_NCHW.permute(0, 2, 3, 1).contiguous()
        return x if self.labels is None else (x, self.labels[picked])

    def _generator(self, purpose: int, number: int = 0) -> torch.Generator:
        mixed = np.random.SeedSequence((self.seed, self.epoch, purpose, number)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))
