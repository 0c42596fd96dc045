"""What a recovery trains on: the first batches of every pass, short trainings without augmentation, kept outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gossamer import Context, Task
from gossamer.core.progress import Silent
from gossamer.data.batches import Augmentation, Batches, Normalisation
from gossamer.methods._training import AUGMENTED_FROM, Limited
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.train.batches import batches_of_epoch
from gossamer.train.distillation import kept_outputs

LABELS = torch.arange(32) % 4


def images(*, augment: bool = True) -> Batches:
    """Eight batches of four images, shuffled."""
    return Batches(
        torch.arange(32 * 36).reshape(32, 1, 6, 6).remainder(251).to(torch.uint8),
        LABELS,
        batch_size=4,
        normalisation=Normalisation(mean=(0.5,), std=(0.5,)),
        augmentation=Augmentation(pad=1, flip=True) if augment else None,
        shuffle=True,
    )


def task(train: Any) -> Task:
    inputs = (torch.zeros(4, 1, 6, 6),)
    return Task(
        name="images", train=train, validation=images(augment=False), test=[], calibration=[], example_inputs=inputs
    )


class Samples(list[int]):
    """Numbers of samples, which copies of a network have in common."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Samples":
        return self


class Counting(nn.Module):
    """A linear teacher that counts the samples that it and its copies are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.samples = nn.Linear(36, 4), Samples()

    def forward(self, x: Tensor) -> Tensor:
        self.samples.append(len(x))
        return self.inner(x.flatten(1))

    @property
    def asked(self) -> int:
        return sum(self.samples)


def seen(loader: Any, epoch: int, start: int = 0) -> list[Tensor]:
    return [batch[0] for _, batch in batches_of_epoch(loader, 0, epoch, start, 0)]


@pytest.mark.parametrize(
    "loader",
    [
        images,
        lambda: DataLoader(
            TensorDataset(torch.arange(32.0)), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
    ],
    ids=["batches", "dataloader"],
)
def test_every_pass_of_a_limited_loader_begins_as_without_a_limit(loader: Any) -> None:
    whole, first = loader(), Limited(loader(), 3)
    for epoch in (0, 1, 2):
        assert all(torch.equal(a, b) for a, b in zip(seen(whole, epoch)[:3], seen(first, epoch), strict=True))
    assert not torch.equal(seen(first, 0)[0], seen(first, 1)[0])
    assert torch.equal(seen(first, 1, start=2)[0], seen(whole, 1)[2])


def test_short_trainings_see_samples_as_they_are_and_long_ones_augmented() -> None:
    augmented, plain = images(), images(augment=False)
    short, long = (RecoveryDistillation(epochs=n) for n in (AUGMENTED_FROM - 1, AUGMENTED_FROM))
    assert torch.equal(seen(short.data(task(augmented)).train, 1)[0], seen(plain, 1)[0])
    assert torch.equal(seen(long.data(task(augmented)).train, 1)[0], seen(augmented, 1)[0])
    assert not torch.equal(seen(augmented, 1)[0], seen(plain, 1)[0])
    assert long.repeated(task(augmented)) is None and long.repeated(task(plain)) is plain
    assert short.repeated(task([(torch.zeros(4, 1, 6, 6), LABELS[:4])])) is None  # a user's own: nobody knows


def test_a_teacher_whose_outputs_are_kept_is_not_run_again(tmp_path: Path) -> None:
    teacher, train = Counting(), images()
    assert kept_outputs(teacher, train.unaugmented(), tmp_path, Silent(), most=10_000)
    assert teacher.asked == 32
    student, method = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), RecoveryDistillation(epochs=2, lr=0.01)
    kept, _ = method(student, task(train), Context(original=teacher, cache=tmp_path))
    before = teacher.asked
    assert before <= 32 + 2 * 4  # what is compared before the training
    again, _ = method(student, task(train), Context(original=teacher, cache=tmp_path))
    asked, _ = method(student, task(train), Context(original=teacher))
    for a, b, c in zip(kept.parameters(), again.parameters(), asked.parameters(), strict=True):
        assert torch.equal(a, b) and torch.allclose(a, c, atol=1e-4)


def test_a_long_training_asks_its_teacher_because_its_samples_are_augmented(tmp_path: Path) -> None:
    teacher, train = Counting(), images()
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    RecoveryDistillation(epochs=8, lr=0.01)(student, task(train), Context(original=teacher, cache=tmp_path))
    assert teacher.asked >= 8 * 32 and not list(tmp_path.iterdir())


def test_outputs_that_take_too_much_or_belong_to_no_sample_are_not_kept(tmp_path: Path) -> None:
    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)).mean()

    plain = images(augment=False)
    assert not kept_outputs(Counting(), plain, tmp_path / "large", Silent(), most=100)
    assert not kept_outputs(Mean(36, 4), plain, tmp_path / "mean", Silent(), most=10_000)
