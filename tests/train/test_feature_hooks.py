"""Learning from layers inside: hooks, adapters, and that nothing is left of them."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nets import task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.losses import hint_loss, kd_loss
from gossamer.train import Distillation, Training, fit
from gossamer.train.feature_hooks import (
    FeatureHooks,
    FeatureTerm,
    LayerLoss,
    any_shapes,
    hooked,
    of_one_size,
    positions,
    projection,
    regressor,
    stages,
)

IMAGES, LABELS = task().train[0]  # type: ignore[index]
ONE_EPOCH = Training(epochs=1, lr=0.01, precision="32-true")


def narrow(channels: int = 4) -> nn.Sequential:
    """A student in a Sequential, which would run adapters if they were among its children."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, 1, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    )


def halves(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    return hint_loss(student[0], teacher[0])


def hinted(student: nn.Module, teacher: nn.Module, pair: tuple[str, str] = ("2", "body.1"), **options: Any) -> Any:
    term = Distillation(teacher, alpha=options.pop("alpha", 0.1))
    seed = options.pop("seed", 0)
    layers = LayerLoss(halves, options.pop("adapt", regressor), **options)
    return hooked(student, term, [pair], layers, inputs=(IMAGES,), seed=seed)


def traces(network: nn.Module) -> list[str]:
    """Whatever a training may have left behind."""
    hooks = [name for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return hooks + [name for name, _ in network.named_parameters() if "adapter" in name]


def test_adapters_train_with_the_student_and_are_gone_at_the_end() -> None:
    student, teacher = narrow(), tiny()
    before = list(student.state_dict())
    with hinted(student, teacher, weight=10.0) as term:
        first = [p.detach().clone() for p in term.adapters[0].parameters()]
        assert [p.shape for p in first] == [(8, 4, 1, 1), (8,)]
        fit(student, task(), ONE_EPOCH, Context(accelerator="cpu"), loss_terms=[term])
        assert all(not torch.equal(a, b) for a, b in zip(first, term.adapters[0].parameters()))
        assert traces(student)
    assert list(student.state_dict()) == before
    assert not traces(student) and not traces(teacher)


def test_hooks_and_adapters_are_gone_after_an_error() -> None:
    student = narrow()
    with pytest.raises(RuntimeError, match="by hand"), hinted(student, tiny()):
        raise RuntimeError("by hand")
    assert not traces(student)
    with pytest.raises(BadInput, match="unknown layer of the teacher 'bod'"), hinted(student, tiny(), ("2", "bod")):
        pass
    assert not traces(student)


def test_the_term_is_the_weighed_loss_of_the_adapted_features_and_the_soft_loss() -> None:
    student, teacher = narrow().eval(), tiny()
    with hinted(student, teacher, ("1", "body.1"), weight=3.0, alpha=0.25) as term:
        outputs = student(IMAGES)
        got = term((IMAGES,), outputs, LABELS)
        adapter = copy.deepcopy(term.adapters[0])
    # What layer 1 gave before the ReLU behind it worked in place.
    hint = teacher.body[1](teacher.body[0](teacher.stem(IMAGES).relu()))
    expected = 3 * hint_loss(adapter(student[1](student[0](IMAGES))), hint)
    torch.testing.assert_close(got, expected + 0.75 * kd_loss(outputs, teacher(IMAGES), 4.0))


def test_alone_only_the_features_count() -> None:
    student, teacher = narrow(), tiny()
    with hinted(student, teacher, alone=True) as term:
        head = student[5].weight.detach().clone()
        stem = student[0].weight.detach().clone()
        plan = Training(epochs=1, lr=0.01, weight_decay=0.0, precision="32-true")
        fit(student, task(), plan, Context(accelerator="cpu"), loss_terms=[term])
    assert torch.equal(student[5].weight, head) and not torch.equal(student[0].weight, stem)


def test_the_teacher_runs_once_for_a_batch() -> None:
    student, teacher, runs = narrow(), tiny(), []
    teacher.head.register_forward_hook(lambda *_: runs.append(1))
    with hinted(student, teacher) as term:
        runs.clear()
        fit(student, task(), ONE_EPOCH, Context(accelerator="cpu"), loss_terms=[term])
    assert len(runs) == len(task().train)


def test_a_student_that_is_its_teacher_needs_no_adapter_and_has_no_loss() -> None:
    model = tiny()
    with hinted(model, model, ("body", "body"), weight=5.0, alpha=0.0) as term:
        assert not [name for name, _ in model.named_parameters() if "adapter" in name]
        assert float(term((IMAGES,), model(IMAGES), LABELS).detach()) == pytest.approx(0, abs=1e-6)


def test_two_processes_average_the_gradients_of_the_adapters() -> None:
    """The same training as with one, in which the batches are not split."""
    results = []
    for devices in (1, 2):
        student = narrow()
        student[1] = nn.Identity()  # statistics of half a batch are others
        with hinted(student, tiny(), weight=10.0) as term:
            fit(student, task(), ONE_EPOCH, Context(accelerator="cpu", devices=devices), loss_terms=[term])
            results.append([p.detach().clone() for p in student.parameters()])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_killed_training_goes_on_with_its_adapters(tmp_path: Any) -> None:
    results = []
    for _ in range(2):
        student = narrow()
        with hinted(student, tiny(), seed=3) as term:
            fit(student, task(), ONE_EPOCH, Context(accelerator="cpu"), loss_terms=[term], checkpoint=tmp_path / "c")
            results.append({n: p.detach().clone() for n, p in student.named_parameters()})
    assert results[0].keys() == results[1].keys() and any("lent" in name for name in results[0])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((2, 4, 8, 8), (2, 6, 6, 6), nn.Conv2d(4, 6, 3)),
        ((2, 4, 6, 8), (2, 4, 6, 6), nn.Conv2d(4, 4, (1, 3))),
        ((2, 4, 32, 32), (2, 6, 8, 8), nn.Conv2d(4, 6, 1)),
        ((2, 4, 6, 6), (2, 6, 8, 8), nn.Conv2d(4, 6, 1)),
        ((2, 4, 6, 6), (2, 4, 6, 6), nn.Identity()),
        ((2, 4), (2, 6), nn.Linear(4, 6)),
        ((2, 5, 4), (2, 5, 6), nn.Linear(4, 6)),
        ((2, 4, 5), (2, 6, 5), nn.Conv1d(4, 6, 1)),
    ],
)
def test_a_regressor_brings_the_students_shape_to_the_teachers(
    student: tuple[int, ...], teacher: tuple[int, ...], expected: nn.Module
) -> None:
    found = regressor(student, teacher, "here")
    assert repr(found) == repr(expected)
    ours, theirs = of_one_size(found(torch.zeros(student)), torch.zeros(teacher))
    assert ours.shape == theirs.shape


def test_where_only_channels_must_agree_a_projection_keeps_all_positions() -> None:
    assert repr(projection((2, 4, 8, 8), (2, 6, 6, 6), "")) == repr(nn.Conv2d(4, 6, 1))
    assert isinstance(positions((2, 4, 8, 8), (2, 6, 6, 6), ""), nn.Identity)
    assert isinstance(any_shapes((2, 4), (2, 6, 6, 6), ""), nn.Identity)


@pytest.mark.parametrize(
    ("adapt", "student", "teacher"),
    [
        (regressor, (2, 4), (2, 4, 6, 6)),
        (regressor, (2, 4, 5), (2, 6, 7)),
        (regressor, (2, 1, 4, 6, 6), (2, 1, 5, 6, 6)),
        (projection, (2, 4), (2, 4, 6, 6)),
        (positions, (2, 4), (2, 4)),
        (positions, (2, 4, 5), (2, 4, 6)),
    ],
)
def test_layers_that_cannot_be_matched_say_why(adapt: Any, student: Any, teacher: Any) -> None:
    with pytest.raises(BadInput, match=r"layers a and b cannot be matched: shapes \(2, .*\) and \(2, .*\); both must"):
        adapt(student, teacher, "layers a and b")


class Odd(nn.Module):
    """One layer that runs twice, one that gives a tuple, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.several, self.never = nn.Linear(3, 3), nn.LSTM(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.several(self.twice(self.twice(x)))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("twice", "'twice' of the student runs twice"),
        ("several", "'several' of the student gives a tuple"),
        ("never", "'never' of the student did not run"),
        ("tvice", "unknown layer of the student 'tvice'; did you mean 'twice'"),
    ],
)
def test_layers_that_cannot_be_tapped_say_why(layer: str, message: str) -> None:
    network = Odd()
    with pytest.raises(BadInput, match=message):
        taps = FeatureHooks(network, [layer], "student")
        network(torch.zeros(2, 3))
        taps()


def test_a_teacher_without_modules_has_no_layers() -> None:
    with pytest.raises(BadInput, match="give it as a module"), hinted(narrow(), lambda x: x):  # type: ignore[arg-type]
        pass


def test_stages_are_first_and_last_of_each_resolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert stages(model, (IMAGES,)) == {(6, 6): ("0", "1"), (3, 3): ("2", "3")}
    assert stages(tiny(), (IMAGES,)) == {(6, 6): ("stem", "body")}
    assert not traces(model)


def test_a_term_alone_leaves_nothing_to_the_task() -> None:
    with hinted(narrow(), tiny(), alone=True) as alone, hinted(narrow(), tiny(), alpha=0.3) as term:
        assert isinstance(term, FeatureTerm)
        assert (alone.task_weight, term.task_weight) == (0.0, 0.3)
