"""A teacher's answers on disk, mixed images, schedules."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_toy import batches, linear, on_cpu, task, training

from gossamer.core.batches import cross_entropy
from gossamer.errors import BadInput, CorruptFile
from gossamer.jobs.teachers import external_teacher
from gossamer.losses import kd_loss
from gossamer.train import Distillation, fit
from gossamer.train.mixup import Mixed, MixedTarget, mixed, pasted
from gossamer.train.objective import Objective
from gossamer.train.teacher_outputs import TeacherOutputs, teacher_identity


class Counting(torch.nn.Module):
    """Counts the samples it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.asked = linear(0), 0

    def forward(self, x: torch.Tensor) -> Any:
        self.asked += len(x)
        return self.inner(x)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_answers_are_asked_for_once_whatever_the_order_and_are_the_same_every_time(tmp_path: Path) -> None:
    teacher, x = Counting(), batches(12, seed=0, size=12)[0][0]
    answers = TeacherOutputs(tmp_path)
    first = answers((x,), teacher)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(answers((x[order],), teacher), first[order]) and teacher.asked == 12
    # Finer than float16: 16 bits of the largest of each row.
    bound = teacher.inner(x).abs().amax(1, keepdim=True) / 32_767
    assert bool(((first - teacher.inner(x)).abs() <= 0.51 * bound).all())
    half = torch.cat([x[:6], noise(6, *x.shape[1:])])
    assert torch.equal(answers((half,), teacher)[:6], first[:6]) and teacher.asked == 18
    answers.flush()
    again = TeacherOutputs(tmp_path)
    assert len(again) == 18 and torch.equal(again((x,), None), first)


def test_logits_that_are_there_already_are_a_teacher(tmp_path: Path) -> None:
    x, logits = noise(10, 3), noise(10, 4, seed=1)
    answers = TeacherOutputs(tmp_path)
    for part in (slice(0, 4), slice(2, 10)):  # some of them twice
        answers.keep((x[part],), logits[part])
    answers.flush()
    teacher = external_teacher(tmp_path)
    assert teacher is not None
    torch.testing.assert_close(teacher(x.flip(0)), logits.flip(0), rtol=0, atol=1e-4)
    with pytest.raises(BadInput, match="every output for each sample"):
        answers.keep((x,), logits[:3])


def test_structures_other_types_and_equal_samples_come_back(tmp_path: Path) -> None:
    x = noise(5, 3)
    x[4] = x[0]
    given = {"boxes": (noise(5, 2, 4), torch.arange(5)), "sure": [noise(5).abs() < 1]}
    given["boxes"][0][4], given["boxes"][1][4], given["sure"][0][4] = given["boxes"][0][0], 0, given["sure"][0][0]
    answers = TeacherOutputs(tmp_path)
    answers((x,), lambda _: given)
    answers.flush()
    found = TeacherOutputs(tmp_path)((x,), None)
    torch.testing.assert_close(found["boxes"][0], given["boxes"][0], rtol=0, atol=1e-3)
    assert torch.equal(found["boxes"][1], given["boxes"][1]) and isinstance(found["sure"], list)
    assert torch.equal(found["sure"][0], given["sure"][0])


def test_what_is_missing_other_or_damaged_is_said(tmp_path: Path) -> None:
    answers, x = TeacherOutputs(tmp_path), noise(4, 3)
    answers((x,), lambda a: a)
    with pytest.raises(BadInput, match="no answer for 4 of 4 samples"):
        answers((x + 1,), None)
    with pytest.raises(BadInput, match="another form"):
        answers((x + 1,), lambda a: a[:, :2])
    with pytest.raises(BadInput, match="every output for each sample"):
        TeacherOutputs(tmp_path / "a")((x,), lambda a: a.sum())
    with pytest.raises(BadInput, match="not finite"):
        TeacherOutputs(tmp_path / "b")((x,), lambda a: a / 0)
    with pytest.raises(BadInput, match="not of str"):
        TeacherOutputs(tmp_path / "c")((x,), lambda a: "a")
    with pytest.raises(BadInput, match="samples in their first dimension"):
        answers((x, 3), None)
    answers.flush()
    shard = next(tmp_path.glob("shard-*.npy"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CorruptFile, match="damaged outputs"):
        TeacherOutputs(tmp_path)


def test_answers_take_few_bytes(tmp_path: Path) -> None:
    answers = TeacherOutputs(tmp_path)
    answers((noise(1000, 784),), lambda x: x[:, :10])
    answers.flush()
    size = sum(f.stat().st_size for f in tmp_path.glob("shard-*"))
    assert size <= 1000 * (16 + 4 + 2 * 10) + 1000


def test_a_training_with_kept_answers_asks_once_and_gives_the_same_bits_the_second_time(tmp_path: Path) -> None:
    def taught() -> torch.nn.Module:
        student, term = linear(1), Distillation(linear(0))
        term.cache_outputs(tmp_path)
        fit(student, task(), training(epochs=2), on_cpu(), loss_terms=[term])
        assert term.cached_outputs is not None
        term.cached_outputs.flush()
        return student

    first = taught()
    files = sorted(tmp_path.rglob("shard-*"))
    second = taught()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert sorted(tmp_path.rglob("shard-*")) == files
    assert [f.name for f in tmp_path.iterdir()] == [teacher_identity(linear(0))]


def test_another_teacher_has_other_answers() -> None:
    assert teacher_identity(linear(0)) == teacher_identity(copy.deepcopy(linear(0))) != teacher_identity(linear(1))


def test_shards_are_written_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.train.teacher_outputs.SHARD_ROWS", 8)
    answers, x = TeacherOutputs(tmp_path), noise(20, 3)
    for part in torch.split(x, 6):
        answers((part,), lambda a: a)
    assert len(list(tmp_path.glob("shard-*"))) == 3
    answers.flush()
    rows = [np.load(f) for f in tmp_path.glob("shard-*")]
    assert sum(map(len, rows)) == 20
    torch.testing.assert_close(TeacherOutputs(tmp_path)((x,), None), x, rtol=0, atol=1e-3)


# Mixed images


def test_mixup_mixes_images_and_their_loss_by_the_same_share() -> None:
    x, y = noise(6, 1, 4, 4), torch.arange(6) % 3
    torch.manual_seed(3)
    (inputs, target) = Mixed([(x, y)], mixup=1.0, cutmix=0.0).mix((x, y))
    torch.manual_seed(3)
    order = torch.randperm(6)
    share = target.share
    torch.testing.assert_close(inputs[0], share * x + (1 - share) * x[order])
    assert torch.equal(target.second, y[order]) and 0.5 <= float(share) <= 1
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    data = mixed(task(), mixup=1.0)
    expected = share * cross_entropy(net, (inputs, y)) + (1 - share) * cross_entropy(net, (inputs, y[order]))
    torch.testing.assert_close(data.loss(net, (inputs, target)), expected)
    assert mixed(data) is data


def test_cutmix_pastes_a_rectangle_and_says_how_much_is_left() -> None:
    torch.manual_seed(0)
    for share in (0.5, 0.77, 1.0):
        x, kept = pasted(torch.ones(2, 1, 10, 10), torch.zeros(2, 1, 10, 10), torch.tensor(share))
        assert float(x.mean()) == pytest.approx(float(kept)) and abs(float(kept) - share) < 0.1
    with pytest.raises(BadInput, match="needs images"):
        pasted(torch.ones(2, 3), torch.ones(2, 3), torch.tensor(0.5))


def test_mixed_loaders_keep_their_place(tmp_path: Path) -> None:
    class Loader(list):  # type: ignore[type-arg]
        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def start(self, index: int) -> Any:
            return iter(self[index:])

    loader = Loader(batches(48, seed=0))
    wrapped = Mixed(loader, mixup=0.5, cutmix=0.5)
    wrapped.set_epoch(4)
    later = list(wrapped.start(1))  # type: ignore[no-untyped-call]
    assert loader.epoch == 4 and len(wrapped) == 3 and len(later) == 2
    assert isinstance(next(iter(wrapped))[1], MixedTarget)
    with pytest.raises(BadInput, match="one tensor of inputs"):
        wrapped.mix(loader[0][0])


def test_student_and_teacher_see_the_same_mixture_and_the_dominant_label_counts() -> None:
    student, teacher, data = linear(1), linear(0), mixed(task(), mixup=1.0)
    torch.manual_seed(0)
    batch = next(iter(data.train))
    total = Objective(student, data, [Distillation(teacher, 3.0, 0.25)], torch.no_grad)(batch)
    soft = kd_loss(student(*batch[0]), teacher(*batch[0]), 3.0)
    torch.testing.assert_close(total, 0.25 * data.loss(student, batch) + 0.75 * soft)


# Schedules


def test_temperature_and_weight_go_linearly_to_their_ends() -> None:
    student, teacher, data = linear(1), linear(0), task()
    term = Distillation(teacher, 4.0, 0.2, temperature_end=2.0, alpha_end=0.6)
    goal = Objective(student, data, [term], torch.no_grad)
    batch = next(iter(data.train))
    for progress, temperature, alpha in ((0.0, 4.0, 0.2), (0.5, 3.0, 0.4), (1.0, 2.0, 0.6)):
        goal.at(progress)
        expected = alpha * cross_entropy(student, batch)
        expected = expected + (1 - alpha) * kd_loss(student(batch[0]), teacher(batch[0]), temperature)
        torch.testing.assert_close(goal(batch), expected)


def test_a_training_follows_the_schedule_from_its_first_to_its_last_step() -> None:
    seen: list[float] = []

    class Noted(Distillation):
        def at(self, progress: float) -> None:
            seen.append(progress)

    fit(linear(1), task(), training(epochs=2), on_cpu(), loss_terms=[Noted(linear(0))])
    steps = 2 * len(task().train)
    assert seen == [step / steps for step in range(steps)]
