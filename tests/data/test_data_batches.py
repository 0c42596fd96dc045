"""Batches: what comes out depends on seed, epoch and batch index, and on nothing else."""

import threading
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.data.batches import Augmentation, Batches, Normalisation, ahead, augment
from gossamer.errors import BadInput

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))


def numbered(n: int = 20, **options: Any) -> Batches:
    """Image i has the value i everywhere, and the label i."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return Batches(images, torch.arange(n), **{"batch_size": 6, "normalisation": PLAIN, **options})


def labels(batches: Any) -> list[int]:
    return [int(y) for _, ys in batches for y in ys]


def equal(a: Any, b: Any) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) and all(torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b))


def test_in_order_and_complete_without_shuffling() -> None:
    batches = numbered()
    assert [len(y) for _, y in batches] == [6, 6, 6, 2]
    assert labels(batches) == list(range(20))
    assert len(batches) == 4
    assert all(torch.equal((x[:, 0, 0, 0] * 255).round().long(), y) for x, y in batches)


def test_drop_last_leaves_the_incomplete_batch_out() -> None:
    batches = numbered(drop_last=True)
    assert [len(y) for _, y in batches] == [6, 6, 6]
    assert len(batches) == 3


def test_an_index_selects_and_orders() -> None:
    assert labels(numbered(index=torch.tensor([7, 3, 11]))) == [7, 3, 11]
    assert numbered(index=torch.tensor([7, 3, 11])).samples == 3


def test_without_labels_a_batch_is_one_tensor() -> None:
    batches = Batches(torch.zeros(3, 1, 2, 2), None, batch_size=2, normalisation=PLAIN)
    assert [tuple(x.shape) for x in batches if isinstance(x, Tensor)] == [(2, 1, 2, 2), (1, 1, 2, 2)]


def test_shuffling_is_a_permutation_that_changes_with_epoch_and_seed_only() -> None:
    batches = numbered(shuffle=True)
    first = labels(batches)
    assert sorted(first) == list(range(20))
    assert first != list(range(20))
    torch.rand(3)  # the global generator plays no part
    assert labels(batches) == first
    batches.set_epoch(1)
    assert labels(batches) != first
    batches.set_epoch(0)
    assert labels(batches) == first
    assert labels(numbered(shuffle=True, seed=1)) != first


def test_every_batch_is_augmented_differently() -> None:
    images = torch.arange(32).float().view(1, 1, 4, 8).expand(32, 1, 4, 8).contiguous()
    augmentation = Augmentation(pad=2, flip=True)
    first, second = Batches(images, None, batch_size=16, normalisation=PLAIN, augmentation=augmentation)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert not torch.equal(first, second)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(numbered(shuffle=True, augmentation=Augmentation(pad=1, flip=True)))
    assert torch.equal(torch.rand(1), expected)


@settings(max_examples=40)
@given(
    n=st.integers(1, 30), size=st.integers(1, 9), skip=st.integers(0, 8), epoch=st.integers(0, 3), drop=st.booleans()
)
def test_starting_at_a_batch_gives_what_going_there_gives(n: int, size: int, skip: int, epoch: int, drop: bool) -> None:
    augmentation = Augmentation(pad=2, flip=True)
    batches = numbered(n, batch_size=size, shuffle=True, augmentation=augmentation, drop_last=drop)
    batches.set_epoch(epoch)
    assert equal(batches.start(skip), islice(batches, skip, None))


@settings(max_examples=40)
@given(n=st.integers(12, 40), size=st.integers(4, 12), world=st.integers(1, 4))
def test_the_shards_of_a_batch_are_the_batch(n: int, size: int, world: int) -> None:
    size -= size % world
    batches = numbered(n, batch_size=size, shuffle=True, drop_last=True, augmentation=Augmentation(pad=1, flip=True))
    batches.set_epoch(2)
    shards = [batches.shard(rank, world) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(batches)}
    for whole, *parts in zip(batches, *shards):
        assert len({len(y) for _, y in parts}) == 1
        for rank, (x, y) in enumerate(parts):
            assert torch.equal(x, whole[0][rank::world])
            assert torch.equal(y, whole[1][rank::world])


def test_sharding_leaves_the_original_whole() -> None:
    batches = numbered()
    batches.shard(1, 2)
    assert labels(batches) == list(range(20))


@pytest.mark.parametrize(
    ("options", "rank", "world", "message"),
    [
        ({}, 2, 2, r"rank = 2 must be in 0..1"),
        ({}, -1, 2, r"rank = -1"),
        ({"drop_last": True}, 0, 4, "batch_size = 6 cannot be shared equally by 4"),
        ({}, 0, 3, "the smallest batch has 2 samples"),
    ],
)
def test_shards_that_cannot_be_equal_are_refused(options: Any, rank: int, world: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        numbered(**options).shard(rank, world)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}])
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(BadInput, match="batch_size = "):
        numbered(**options)


def slow_augment(x: Tensor, pad: int, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    _, channels, height, width = x.shape
    for n in range(len(x)):
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    source = width - 1 - column if mirrored[n] else column
                    r, q = row + int(tops[n]) - pad, source + int(lefts[n]) - pad
                    if 0 <= r < height and 0 <= q < width:
                        result[n, c, row, column] = x[n, c, r, q]
    return result


@settings(max_examples=20)
@given(pad=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 99), channels=st.integers(1, 3))
def test_augmentation_is_the_obvious_loop(pad: int, flip: bool, seed: int, channels: int) -> None:
    x = torch.randint(1, 255, (5, channels, 4, 6), dtype=torch.uint8)
    replay = torch.Generator().manual_seed(seed)
    tops = lefts = torch.zeros(5)
    if pad:
        tops = torch.randint(2 * pad + 1, (5,), generator=replay)
        lefts = torch.randint(2 * pad + 1, (5,), generator=replay)
    mirrored = torch.rand(5, generator=replay) < 0.5 if flip else torch.zeros(5, dtype=torch.bool)
    result = augment(x, Augmentation(pad=pad, flip=flip), torch.Generator().manual_seed(seed))
    assert torch.equal(result, slow_augment(x, pad, tops, lefts, mirrored))


def test_augmentation_reaches_every_shift_and_both_mirror_images() -> None:
    x = torch.zeros(2000, 1, 5, 5)
    x[:, :, 2, 1] = 1.0
    found = augment(x, Augmentation(pad=1, flip=True), torch.Generator().manual_seed(0))[:, 0].nonzero()
    places, counts = found[:, 1:].unique(dim=0, return_counts=True)  # type: ignore[no-untyped-call]
    assert places.tolist() == [[r, c] for r in (1, 2, 3) for c in (0, 1, 2, 3, 4)]
    # Column 2 is where a shift by one from either side ends: twice as likely as the others.
    share = counts.view(3, 5).sum(0) / 2000
    torch.testing.assert_close(share, torch.tensor([1, 1, 2, 1, 1]) / 6, rtol=0, atol=0.04)


def test_bytes_and_floats_are_normalised_to_the_same_values() -> None:
    x = torch.randint(256, (3, 2, 4, 4), dtype=torch.uint8)
    normalise = Normalisation(mean=(0.3, 0.6), std=(0.2, 0.5))
    expected = (x.double() / 255 - torch.tensor([0.3, 0.6]).view(2, 1, 1)) / torch.tensor([0.2, 0.5]).view(2, 1, 1)
    torch.testing.assert_close(normalise(x), expected.float())
    torch.testing.assert_close(normalise(x / 255), expected.float())


def test_normalising_does_not_change_the_data_set() -> None:
    images = torch.ones(4, 1, 2, 2)
    list(Batches(images, None, batch_size=4, normalisation=Normalisation(mean=(0.5,), std=(0.5,))))
    assert torch.equal(images, torch.ones(4, 1, 2, 2))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_ahead_change_nothing_in_the_batches(workers: int) -> None:
    plain = numbered(shuffle=True, augmentation=Augmentation(pad=1, flip=True))
    ahead = numbered(shuffle=True, augmentation=Augmentation(pad=1, flip=True))
    ahead.workers = workers
    for epoch in range(2):
        plain.set_epoch(epoch)
        ahead.set_epoch(epoch)
        assert equal(plain, ahead) and equal(plain.start(2), ahead.start(2))


def test_batches_of_an_epoch_that_has_begun_stay_of_that_epoch() -> None:
    ahead = numbered(shuffle=True)
    expected = labels(ahead)
    ahead.workers = 2
    begun = iter(ahead)
    found = [next(begun)]
    ahead.set_epoch(5)
    assert labels([*found, *begun]) == expected != labels(ahead)


def test_threads_are_really_ahead_and_end_with_whoever_stops_early() -> None:
    made: list[int] = []
    before = threading.active_count()
    results = ahead(lambda n: (made.append(n), n)[1], range(100), 3)
    assert next(results) == 0
    assert {0} < set(made) <= {0, 1, 2, 3}
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before and len(made) <= 4


def test_an_error_in_a_thread_comes_out_where_its_batch_is_asked_for() -> None:
    results = ahead(lambda n: 1 // (2 - n), range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
