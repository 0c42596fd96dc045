"""Tasks from arrays and from built-in data sets: splits that never mix, and data that cannot be used."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.core.task import Task
from gossamer.data import (
    Augmentation,
    DataSplit,
    Normalisation,
    default_task,
    load_task,
    make_task,
)
from gossamer.data.arrays import cut
from gossamer.data.catalog import DATASETS
from gossamer.data.load import SYSTEM_FOLDER, roots
from gossamer.errors import BadInput

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))


def numbered(start: int, n: int) -> DataSplit:
    """Floating-point image i has the value start + i everywhere."""
    images = torch.arange(start, start + n).float().view(n, 1, 1, 1).expand(n, 1, 3, 3).contiguous()
    return DataSplit(images=images, labels=torch.arange(n) % 3)


TRAIN, TEST = numbered(0, 60), numbered(1000, 20)
make = partial(make_task, "toy", classes=("a", "b", "c"), normalisation=PLAIN, validation=15, batch_size=8)


def values(loader: Any) -> list[int]:
    """The numbers of the images that come."""
    batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in loader]
    return [round(float(v)) for x in batches for v in x[:, 0, 1, 1]]


def tensor(split: DataSplit) -> Tensor:
    assert isinstance(split.images, Tensor)
    return split.images.clone()


def test_the_splits_do_not_mix_and_nothing_is_lost() -> None:
    task = make(train=TRAIN, test=TEST)
    train, validation = set(task.train.index.tolist()), values(task.validation)  # type: ignore[attr-defined]
    assert train.isdisjoint(validation)
    assert train | set(validation) == set(range(60))
    assert len(validation) == 15
    assert values(task.test) == list(range(1000, 1020))
    assert set(values(task.train)) <= train


def test_calibration_is_unlabelled_training_samples_without_augmentation() -> None:
    task = make(train=TRAIN, test=TEST, calibration=10, augmentation=Augmentation(pad=3))
    assert all(isinstance(batch, Tensor) for batch in task.calibration)
    seen = values(task.calibration)
    assert len(seen) == len(set(seen)) == 10
    assert set(seen) <= set(task.train.index.tolist())  # type: ignore[attr-defined]
    for x in task.calibration:
        assert torch.equal(x, x[:, :, 1:2, 1:2].expand_as(x))
    every = make(train=TRAIN, test=TEST, calibration=999)
    assert len(values(every.calibration)) == 45


def test_only_training_is_shuffled_and_augmented() -> None:
    task = make(train=TRAIN, test=TEST, augmentation=Augmentation(pad=1, flip=True))
    assert values(task.validation) == sorted(values(task.validation))
    assert values(task.validation) == values(task.validation)
    first = values(task.train)
    assert first != sorted(first)
    assert len(first) == 40  # whole batches only
    assert any(not torch.equal(x, x[:, :, 1:2, 1:2].expand_as(x)) for x, _ in task.train)


def test_the_seed_changes_the_order_and_not_the_splits() -> None:
    a, b = make(train=TRAIN, test=TEST, seed=0), make(train=TRAIN, test=TEST, seed=1)
    assert values(a.train) != values(b.train)
    assert values(a.validation) == values(b.validation)
    assert values(a.calibration) == values(b.calibration)


def test_a_split_of_its_own_serves_as_validation() -> None:
    task = make(train=TRAIN, test=TEST, validation=numbered(500, 6))
    assert values(task.validation) == list(range(500, 506))
    assert len(task.train.index) == 60  # type: ignore[attr-defined]


def test_the_example_is_the_beginning_of_the_validation_split() -> None:
    task = make(train=TRAIN, test=TEST)
    (example,) = task.example_inputs
    assert torch.equal(example, next(iter(task.validation))[0][:8])


def test_fewer_samples_than_a_batch_still_train() -> None:
    assert len(make(train=TRAIN, test=TEST, batch_size=512).train) == 1


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(lambda c: sum(c) >= 4),
    share=st.floats(0.05, 0.9),
)
def test_a_cut_takes_the_asked_number_and_each_class_by_its_share(counts: list[int], share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    size = max(1, min(len(labels) - 1, round(share * len(labels))))
    kept, taken = cut(labels, size, "here")
    assert len(taken) == size
    assert sorted([*kept.tolist(), *taken.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    for label, count in enumerate(counts):
        assert abs(int((labels[taken] == label).sum()) - count * size / len(labels)) <= len(counts)
    several = [label for label, count in enumerate(counts) if count > 1]
    if size >= len(several):
        assert set(several) <= set(labels[taken].tolist())


def test_a_rare_class_is_in_every_split_and_the_only_sample_of_one_is_kept() -> None:
    labels = torch.tensor([0] * 60 + [1] * 3 + [2])
    kept, taken = cut(labels, 9, "here")
    assert labels[taken].bincount(minlength=3).tolist() == [8, 1, 0]
    assert labels[kept].bincount().tolist() == [52, 2, 1]


def test_a_cut_of_equal_classes_is_exact_and_always_the_same() -> None:
    labels = torch.arange(100) % 10
    _, taken = cut(labels, 30, "here")
    assert labels[taken].bincount().tolist() == [3] * 10
    assert torch.equal(taken, cut(labels, 30, "here")[1])


@pytest.mark.parametrize("size", [0, 60, 61, -1])
def test_a_cut_that_leaves_nothing_is_refused(size: int) -> None:
    with pytest.raises(BadInput, match=rf"toy, validation: cannot cut {size} samples from 60"):
        make(train=TRAIN, test=TEST, validation=size)


def broken(**changes: Any) -> DataSplit:
    images, labels = tensor(TRAIN), TRAIN.labels.clone()
    if "nan" in changes:
        images[changes["nan"], 0, 2, 2] = float("nan")
    if "label" in changes:
        labels[changes["label"][0]] = changes["label"][1]
    return DataSplit(images=images, labels=labels)


COLOUR = DataSplit(images=torch.zeros(20, 3, 3, 3), labels=TEST.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": broken(nan=[7, 9])}, "toy, train: 2 images hold NaN or infinite values, the first is 7"),
        ({"train": broken(label=(4, 3))}, r"toy, train: the label of image 4 is 3, must be in 0\.\.2"),
        ({"train": broken(label=(5, -1))}, "the label of image 5 is -1"),
        ({"test": DataSplit(images=TEST.images, labels=TEST.labels * 0)}, "toy, test: all 20 images are of class 0"),
        (
            {"train": DataSplit(images=torch.zeros(0, 1, 3, 3), labels=TRAIN.labels[:0])},
            "toy, train: there are no images",
        ),
        (
            {"train": DataSplit(images=TRAIN.images, labels=TRAIN.labels[1:])},
            r"labels \(N,\), got \(60, 1, 3, 3\) and \(59,\)",
        ),
        (
            {"train": DataSplit(images=tensor(TRAIN)[:, 0], labels=TRAIN.labels)},
            r"shape \(N, channels, height, width\)",
        ),
        (
            {"test": COLOUR},
            r"test images have \(channels, height, width\) = \(3, 3, 3\), the training images \(1, 3, 3\)",
        ),
        ({"validation": COLOUR}, "validation images have"),
        (
            {"normalisation": Normalisation(mean=(0, 0, 0), std=(1, 1, 1))},
            "images have 1 channels, the normalisation 3",
        ),
        ({"calibration": 0}, "calibration = 0"),
    ],
)
def test_data_that_cannot_be_used_says_what_and_where(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make(**{"train": TRAIN, "test": TEST, **changes})


# Built-in data sets


def check_built_in(task: Task) -> None:
    data = DATASETS[task.name]
    (example,) = task.example_inputs
    assert example.shape[1:] == (data.channels, data.size, data.size)
    assert len(task.classes) == data.classes
    validation = torch.cat([y for _, y in task.validation])
    assert len(validation) == data.validation
    assert validation.bincount().max() - validation.bincount().min() <= 3
    batches = torch.cat(list(task.calibration))
    assert len(batches) == 512
    # The statistics of the catalogue are those of the training images.
    torch.testing.assert_close(batches.mean((0, 2, 3)), torch.zeros(data.channels), rtol=0, atol=0.06)
    torch.testing.assert_close(batches.std((0, 2, 3)), torch.ones(data.channels), rtol=0, atol=0.06)


def test_digits_are_always_there_at_28_pixels() -> None:
    task = load_task("digits")
    check_built_in(task)
    assert task.example_inputs[0].shape == (8, 1, 28, 28)
    assert sum(len(y) for _, y in task.test) == 400


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist")
@pytest.mark.slow
def test_fashion_mnist_of_debians_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)
    task = load_task("fashion-mnist", download=False)
    check_built_in(task)
    assert len(task.train.index) == 55_000  # type: ignore[attr-defined]
    assert sum(len(y) for _, y in task.test) == 10_000
    assert task.classes[9] == "Ankle boot"
    # The first images of the official test set: ankle boot, pullover, two trousers.
    assert next(iter(task.test))[1][:4].tolist() == [9, 2, 1, 1]
    assert default_task(download=False)[1] == "data: Fashion-MNIST"


def test_data_are_looked_for_in_the_cache_of_the_desktop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)
    monkeypatch.setenv("HOME", "/home/her")
    for cache, first in (("/scratch/cache", "/scratch/cache/gossamer"), ("relative", "/home/her/.cache/gossamer")):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert roots()[0] == Path(first) and Path("/home/her/.cache/gossamer") in roots()


def test_an_account_without_a_home_finds_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a number that has no account
    monkeypatch.setenv("GOSSAMER_DATA", "~/data")
    assert roots() == [Path("~/data"), SYSTEM_FOLDER]
    with pytest.raises(BadInput, match=r"^~no-account/x is not a folder"):
        load_task("~no-account/x")


def test_what_is_missing_names_the_package_the_files_and_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        load_task("fashion-mnist", root=tmp_path, download=False)
    for part in (str(tmp_path / "fashion-mnist"), "dataset-fashion-mnist", "https://", "$GOSSAMER_DATA"):
        assert part in str(caught.value)


def test_the_default_falls_back_to_digits_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gossamer.data.load.roots", lambda root=None: [tmp_path])
    task, note = default_task(download=False)
    assert task.name == "digits"
    assert "digits, because Fashion-MNIST" in note


def test_the_variable_and_the_home_folder_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.data.load import roots

    monkeypatch.setenv("GOSSAMER_DATA", "/some/where")
    monkeypatch.setenv("HOME", "/home/me")
    assert roots() == [Path("/some/where"), Path("/home/me/.cache/gossamer"), Path("/usr/share/datasets")]
    assert roots("/given") == [Path("/given")]


def test_unknown_names_name_the_nearest_and_missing_folders_are_called_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'cifar10'"):
        load_task("cifar-10")
    with pytest.raises(BadInput, match=r"none is not a folder; give a folder of images, or one of: cifar10"):
        load_task(tmp_path / "none")
