"""Methods that train a student from a teacher."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.progress import Silent
from gossamer.errors import BadInput, Diverged
from gossamer.losses import (
    contrastive_loss,
    dist_loss,
    dkd_loss,
    kd_loss,
    logit_loss,
    standardized,
)
from gossamer.methods.distill._student import Student, pooled_embeddings, regression, relative_hint_loss
from gossamer.methods.distill.attention import AttentionTransfer, attention_losses
from gossamer.methods.distill.bayesian import BayesianDarkKnowledge
from gossamer.methods.distill.crd import CRD
from gossamer.methods.distill.dist import DIST
from gossamer.methods.distill.dkd import DKD
from gossamer.methods.distill.fsp import FSP, relative_fsp_loss
from gossamer.methods.distill.gradients import GradientAttention
from gossamer.methods.distill.hints import FitNets
from gossamer.methods.distill.kd import KD
from gossamer.methods.distill.logits import LogitRegression
from gossamer.methods.distill.mutual import DeepMutualLearning
from gossamer.methods.distill.rkd import RKD
from gossamer.methods.distill.self import SelfDistillation
from gossamer.train import Training, fit

METHODS = (AttentionTransfer, CRD, DKD, RKD, FSP, FitNets, LogitRegression, DIST, KD)


def small() -> nn.Sequential:
    """A student of another shape, with names of its own."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_teacher_it_says_how_to_give_one(method: Any) -> None:
    with pytest.raises(BadInput, match="teacher=network"):
        method()(small(), task(), Context(accelerator="cpu"))


def test_alpha_1_is_plain_training_and_needs_no_teacher() -> None:
    context = Context(accelerator="cpu", seed=5)
    found = KD(epochs=2, lr=0.05, clip=0.1, alpha=1.0).apply(small(), task(), context)
    how = Training(epochs=2, lr=0.05, weight_decay=1e-4, clip=0.1, keep="best")
    expected = fit(small(), task(), how, Context(accelerator="cpu", seed=5)).model
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_weight_that_falls_from_1_asks_the_teacher() -> None:
    with pytest.raises(BadInput, match="teacher=network"):
        KD(alpha=1.0, alpha_end=0.5)(small(), task(), Context(accelerator="cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_any_two_networks_are_taught_and_nothing_is_left_in_the_student(method: Any) -> None:
    context = Context(accelerator="cpu", teacher=tiny())
    student = small()
    result = method(epochs=1, lr=0.01).apply(
        student, replace(task(), validation=[]), context
    )  # else the start may be best
    assert result is not student and result.state_dict().keys() == student.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.modules())
    assert any(not torch.equal(a, b) for a, b in zip(result.parameters(), student.parameters()))
    stages = [edit.target for edit in context.log.edits]
    assert stages == (["all weights on hints", "all weights"] if method in (FSP, FitNets) else ["all weights"])


def test_a_student_learns_from_its_teacher_alone() -> None:
    """alpha = 0 and labels that say nothing."""
    data = stripes()
    blank = replace(data, train=[(x, torch.zeros_like(y)) for x, y in data.train])
    context = Context(accelerator="cpu", teacher=learned())
    result = KD(epochs=3, lr=0.05, alpha=0.0).apply(tiny(), blank, context).eval()
    assert float(data.metric.score(result, data.test)) > 0.9


def test_regressions_are_taught_too() -> None:
    def squares(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).pow(2).mean()

    def close(model: Any, loader: Any) -> Tensor:
        return torch.cat([torch.exp(-(model(x) - y).pow(2).mean(1)) for x, y in loader])

    batches: Sequence[Any] = [(x, maps(8, 3, seed=i)) for i, (x, _) in enumerate(task().train)]
    data = replace(task(), train=batches, validation=batches, loss=squares, metric=close)
    result = KD(epochs=1, lr=0.01)(small(), data, Context(accelerator="cpu", teacher=tiny())).model
    assert result(data.example_inputs[0]).shape == (8, 3)
    with pytest.raises(BadInput, match="integer targets"):
        DKD(epochs=1)(small(), data, Context(accelerator="cpu", teacher=tiny()))


def test_losses_have_the_weights_of_their_method() -> None:
    z, v, y = maps(8, 3), maps(8, 3, seed=1), torch.arange(8) % 3
    decoupled = DKD(temperature=2.0, target_weight=3.0, others_weight=5.0)
    assert torch.equal(decoupled.loss(z, v, y, 2.0), dkd_loss(z, v, y, 2.0, 3.0, 5.0))
    relations = DIST(temperature=2.0, inter_weight=3.0, intra_weight=5.0)
    assert torch.equal(relations.loss(z, v, y, 2.0), dist_loss(z, v, 2.0, 3.0, 5.0))
    soft = KD(temperature=2.0, standardize=True)
    assert torch.equal(soft.standard(z, v, y, 2.0), kd_loss(standardized(z), standardized(v), 2.0))
    assert torch.equal(regression(z, v, y, 2.0), logit_loss(z, v))
    images = maps(8, 3, 2, 2)
    expected = contrastive_loss(images.mean((2, 3)), v, 0.5) + contrastive_loss(z, v, 0.5)
    assert torch.equal(CRD(contrast_temperature=0.5).contrast([images, z], [v, v]), expected)


class Caught(Exception):
    """Ends a method before it trains; holds its terms."""


@pytest.mark.parametrize(
    "method", (*METHODS, BayesianDarkKnowledge, GradientAttention, DeepMutualLearning, SelfDistillation)
)
def test_every_term_follows_the_schedules_of_its_method(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(self: Any, loss_terms: Any, *args: Any, **more: Any) -> Any:
        raise Caught(*loss_terms)

    monkeypatch.setattr(Student, "train_with", caught)
    options = {"temperature": 4.0, "temperature_end": 2.0, "alpha": 0.2, "alpha_end": 0.6}
    with pytest.raises(Caught) as found:
        method(**options)(small(), task(), Context(accelerator="cpu", teacher=tiny()))
    [term] = found.value.args
    term.at(0.5)
    soft = getattr(term, "distillation", term)
    assert soft.task_weight == pytest.approx(0.4)
    assert soft.temperature == pytest.approx(1.0 if method is BayesianDarkKnowledge else 3.0)


@pytest.mark.slow
def test_a_plain_network_learns_from_a_sure_teacher_and_without_a_limit_on_gradients_explodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gossamer.train.processes.computes_in_bfloat16", lambda device: False)  # there it does not

    class Notes(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, message: str) -> None:
            self.said.append(message)

    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)
    )
    sure, data = learned(), stripes()
    with torch.no_grad():
        for p in sure.get_submodule("head").parameters():
            p.mul_(20)
    went: dict[float | None, tuple[float, bool]] = {}
    for clip in (5.0, None):
        notes = Notes()
        method = KD(epochs=3, clip=clip, temperature=20.0)
        with suppress(Diverged):
            result = method(student, data, Context(accelerator="cpu", teacher=sure, progress=notes)).model.eval()
        score = float(data.metric.score(result, data.test))
        went[clip] = score, any("back to the last good state" in line for line in notes.said)
    assert KD().clip == 5.0
    assert went[5.0][0] > 0.9 and not went[5.0][1] and went[None][1], went


def test_terms_of_layers_do_not_depend_on_the_size_of_the_teachers_features() -> None:
    student, teacher = [maps(2, 3, 4, 4, seed=i) for i in (0, 1)], [maps(2, 3, 4, 4, seed=i) for i in (2, 3)]
    for loss in (relative_hint_loss, relative_fsp_loss):
        scaled = loss([7 * x for x in student], [7 * x for x in teacher])
        torch.testing.assert_close(scaled, loss(student, teacher))
        assert float(loss([torch.zeros_like(x) for x in student], teacher)) == pytest.approx(1)
    one, other = (attention_losses([s], [t]) for s, t in zip(student, teacher))
    torch.testing.assert_close(attention_losses(student, teacher), one + other)


def test_relations_of_a_rotated_embedding_are_the_same() -> None:
    x = maps(6, 4)
    rotation = torch.linalg.qr(maps(4, 4, seed=2)).Q
    assert float(RKD().relations([x @ rotation], [x])) == pytest.approx(0, abs=1e-5)
    only = RKD(angle_weight=0.0).relations([x], [maps(6, 5)])
    torch.testing.assert_close(2 * only, RKD(angle_weight=0.0, distance_weight=50.0).relations([x], [maps(6, 5)]))
    torch.testing.assert_close(pooled_embeddings(maps(2, 3, 4, 4)), maps(2, 3, 4, 4).mean((2, 3)))


def test_layers_are_paired_by_resolution_where_none_are_named() -> None:
    context = Context(teacher=tiny())
    assert RKD().pairs(small(), task(), context) == [("3", "body")]
    assert RKD().pairs(small(), task(), context, firsts=True) == [("0", "stem"), ("3", "body")]
    assert RKD(layers={"0": "body.2"}).pairs(small(), task(), context) == [("0", "body.2")]


def test_resolutions_that_all_differ_are_paired_in_their_order() -> None:
    def maps_of(*strides: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Conv2d(1, 1, 1, stride) for stride in strides))

    data = replace(task(), example_inputs=(torch.randn(1, 1, 24, 24),))
    context = Context(teacher=maps_of(2, 2, 1))  # 12, 6, 6
    assert RKD().pairs(maps_of(3, 1, 2), data, context) == [("1", "0"), ("2", "2")]  # 8, 8, 4
    assert RKD().pairs(maps_of(4, 2, 1), data, context) == [("0", "2")]  # 6, 3, 3: one is equal
    with pytest.raises(BadInput, match="no layers of equal resolution"):
        RKD().pairs(maps_of(3), data, context)  # as many would be needed


def test_networks_without_equal_resolutions_are_asked_for_names() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    shown = r"the student's last of each are none, the teacher's body \(6x6\); name pairs in `layers`"
    with pytest.raises(BadInput, match=shown):
        AttentionTransfer()(flat, task(), Context(accelerator="cpu", teacher=tiny()))


def test_impossible_options_are_named() -> None:
    with pytest.raises(BadInput, match="layers has 1 entries"):
        FSP(layers={"0": "stem"})(small(), task(), Context(accelerator="cpu", teacher=tiny()))
    with pytest.raises(BadInput, match="both 0"):
        RKD(distance_weight=0.0, angle_weight=0.0)(small(), task(), Context(accelerator="cpu", teacher=tiny()))
