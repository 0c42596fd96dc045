"""Learning from a teacher."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import tiny
from torch import nn
from train_toy import batches, linear, net, on_cpu, same, task, training

from gossamer.core.batches import cross_entropy
from gossamer.errors import BadInput
from gossamer.losses import multi_label_loss
from gossamer.train import Distillation, fit, kd_loss, output_loss
from gossamer.train.distillation import soft_loss


def slow_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """The definition, sample by sample, in double precision."""
    total = 0.0
    for z, v in zip(student, teacher):
        q = np.exp(z / temperature) / np.exp(z / temperature).sum()
        p = np.exp(v / temperature) / np.exp(v / temperature).sum()
        total += sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p)))
    return temperature**2 * total / len(student)


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.5, 20), st.integers(0, 2**16))
def test_kd_loss_is_its_definition(samples: int, classes: int, temperature: float, seed: int) -> None:
    z, v = np.random.default_rng(seed).normal(size=(2, samples, classes))
    got = kd_loss(torch.tensor(z), torch.tensor(v), temperature)
    assert float(got) == pytest.approx(slow_kd(z, v, temperature), rel=1e-9, abs=1e-12)


def test_kd_loss_of_equal_logits_up_to_a_shift_is_zero() -> None:
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert float(kd_loss(z, z + 3, 4.0)) == pytest.approx(0, abs=1e-6)


def test_kd_loss_at_high_temperature_matches_centred_logits() -> None:
    z, v = torch.randn(2, 64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    expected = centred.pow(2).sum(1).mean() / (2 * 10)
    assert float(kd_loss(z, v, 100.0)) == pytest.approx(float(expected), rel=0.02)


def test_kd_loss_averages_over_positions() -> None:
    z, v = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (z, v)]
    torch.testing.assert_close(kd_loss(z, v, 2.0), kd_loss(flat[0], flat[1], 2.0))


def test_output_loss_is_relative_to_the_variance_of_the_teacher() -> None:
    teacher = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # variance 5
    assert float(output_loss(teacher + 2, teacher)) == pytest.approx(4 / 5)
    nested = {"boxes": (teacher, torch.zeros(1, dtype=torch.long)), "scores": teacher}
    learned = {"boxes": (teacher + 2, torch.ones(1, dtype=torch.long)), "scores": teacher}
    assert float(output_loss(learned, nested)) == pytest.approx(4 / 5 / 2)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        ((torch.zeros(2),), {"a": torch.zeros(2)}),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
        ((torch.zeros(2),), (torch.zeros(2), torch.zeros(2))),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
    ],
)
def test_outputs_that_do_not_match_are_an_error(student: object, teacher: object) -> None:
    with pytest.raises(BadInput, match="distillation"):
        output_loss(student, teacher)


def test_labels_of_which_several_may_be_true_are_taught_as_probabilities() -> None:
    z, v, yes = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    yes = (yes > 0).float()
    several, relative = multi_label_loss(z, v, 2.0), output_loss(z, v)
    assert float(several) != pytest.approx(float(relative))
    for target, expected in (
        (yes, several),
        (yes.long(), several),
        (yes.bool(), several),
        (torch.zeros(5, 4), relative),  # as of samples without labels
        (yes / 2, relative),
        (yes[:, 0], relative),
        (None, relative),
    ):
        torch.testing.assert_close(soft_loss(z, v, target, 2.0), expected)


def test_distillation_weighs_the_soft_loss_and_leaves_alpha_to_the_hard_one() -> None:
    teacher, student = linear(0), linear(1)
    term = Distillation(teacher, temperature=3.0, alpha=0.25)
    (x, y), *_ = batches(16, seed=0)
    assert term.task_weight == 0.25
    torch.testing.assert_close(term((x,), student(x), y), 0.75 * kd_loss(student(x), teacher(x), 3.0))
    # A target that is not a class: the outputs themselves are learned.
    torch.testing.assert_close(term((x,), student(x), x), 0.75 * output_loss(student(x), teacher(x)))


def test_the_teacher_is_a_copy_in_eval_mode_that_nothing_changes() -> None:
    model = net(dropout=0.5).train()
    before = net(dropout=0.5)
    term = Distillation(model)
    fit(model, task(), training(epochs=1), on_cpu(), loss_terms=[term])
    assert model is not term.teacher and isinstance(term.teacher, nn.Module)
    assert not term.teacher.training and same(term.teacher, before) and not same(model, before)
    assert all(p.requires_grad for p in model.parameters())


def test_a_compiled_teacher_is_compiled_once_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    compile_it = torch.compile

    def compiled(module: nn.Module) -> Any:
        asked.append(module)
        return compile_it(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compiled)
    teacher, x = tiny(), torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    term = Distillation(teacher)
    term.compiled = True
    for _ in range(2):
        torch.testing.assert_close(term.expected((x,)), teacher(x))
    assert len(asked) == 1


def test_the_first_of_several_outputs_is_taught_by_a_teacher_with_one() -> None:
    teacher, student = linear(0), linear(1)
    (x, y), *_ = batches(16, seed=0)
    term = Distillation(teacher)
    torch.testing.assert_close(term((x,), (student(x), x), y), term((x,), student(x), y))


def test_the_student_runs_once_for_a_batch() -> None:
    model = linear()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    fit(model, task(validation=[]), training(epochs=1), on_cpu(), loss_terms=[Distillation(linear(1))])
    assert len(calls) == len(task().train)


def test_a_loss_that_runs_the_network_twice_cannot_be_taught() -> None:
    def twice(model: nn.Module, batch: object) -> torch.Tensor:
        return cross_entropy(model, batch) + cross_entropy(model, batch)

    with pytest.raises(BadInput, match="ran the network 2 times"):
        fit(linear(), task(loss=twice), training(), on_cpu(), loss_terms=[Distillation(linear(1))])


def test_a_student_with_alpha_zero_becomes_its_teacher() -> None:
    teacher, student = linear(3), linear(4)
    plan = training(epochs=30, lr=0.1, weight_decay=0.0, keep="last")
    fit(student, task(), plan, on_cpu(), loss_terms=[Distillation(teacher, temperature=1.0, alpha=0.0)])
    (x, _), *_ = batches(64, seed=5, size=64)
    with torch.no_grad():
        after, before = (kd_loss(s(x), teacher(x), 1.0) for s in (student, linear(4)))
    assert after < 0.05 * before


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"alpha": 1.5}, {"alpha": -0.1}])
def test_impossible_options_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=f"distillation: {next(iter(wrong))} = "):
        Distillation(linear(), **wrong)
