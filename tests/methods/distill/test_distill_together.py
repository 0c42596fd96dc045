"""Students that learn from peers, from their past, from one another, from specialists, and other forms of teacher."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.losses import combined_opinion, dustbin, kd_loss
from gossamer.losses.specialists import in_group
from gossamer.methods.distill._student import reinitialized
from gossamer.methods.distill.bayesian import BayesianDarkKnowledge
from gossamer.methods.distill.born_again import BornAgain
from gossamer.methods.distill.bottleneck import LinearBottleneck, factored
from gossamer.methods.distill.gradients import GradientAttention, GradientTerm
from gossamer.methods.distill.mutual import DeepMutualLearning, MutualTerm
from gossamer.methods.distill.neurons import NeuronSelection
from gossamer.methods.distill.self import MeanTeacherTerm, SelfDistillation
from gossamer.methods.distill.specialists import Enriched, SpecialistEnsemble, Specialists, confused
from gossamer.train import Distillation, TrainingStep

IMAGES, LABELS = next(iter(task().train))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


def on_cpu(teacher: nn.Module | None = None, folder: Path | None = None) -> Context:
    return Context(accelerator="cpu", teacher=teacher, folder=folder)


def score(model: nn.Module) -> float:
    return float(stripes().metric.score(model.eval(), stripes().test))


def test_fresh_weights_are_others_and_the_same_for_the_same_seed() -> None:
    model = learned()
    one, same, other = (reinitialized(model, seed, method="x") for seed in (1, 1, 2))
    convolution = "body.0.conv1.weight"
    weights = [net.state_dict()[convolution] for net in (model, one, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert not one.state_dict()["body.0.bn1.running_mean"].any()


class Own(nn.Module):
    """A parameter that nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def test_weights_that_cannot_be_drawn_anew_are_named() -> None:
    with pytest.raises(BadInput, match=r"x: 1\.scale cannot be drawn again"):
        reinitialized(nn.Sequential(nn.Linear(2, 2), Own()), 0, method="x")
    held = constrain(tiny(), {"head.weight": Mask(torch.ones(3, 8, dtype=torch.bool))})
    with pytest.raises(BadInput, match=r"head\.weight is constrained by Mask"):
        reinitialized(held, 0, method="x")


def test_peers_learn_from_the_task_and_all_learn_from_each_other() -> None:
    peers = [network(1), network(2)]
    term = MutualTerm(peers, task(), alpha=0.3, temperature=2.0)
    outputs = network(0)(IMAGES)
    a, b, c = outputs, peers[0](IMAGES), peers[1](IMAGES)
    soft = sum((kd_loss(x, y, 2.0) + kd_loss(x, z, 2.0)) / 2 for x, y, z in ((a, b, c), (b, a, c), (c, a, b)))
    hard = F.cross_entropy(b, LABELS) + F.cross_entropy(c, LABELS)
    torch.testing.assert_close(term((IMAGES,), outputs, LABELS), 0.7 * soft + 0.3 * hard)


def test_nobody_learns_through_what_the_others_say() -> None:
    """The gradient of a peer is that of its own terms alone."""
    peer, own = network(1), network(0)(IMAGES)
    term = MutualTerm([peer], task(), alpha=0.0, temperature=1.0)
    torch.autograd.backward(term((IMAGES,), own, LABELS))
    alone = copy.deepcopy(peer)
    alone.zero_grad()
    torch.autograd.backward(kd_loss(alone(IMAGES), own.detach(), 1.0))
    for p, q in zip(peer.parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.slow
def test_a_student_among_peers_learns() -> None:
    history = on_cpu()
    result = DeepMutualLearning(epochs=4, lr=0.05, peers=2).apply(tiny(), stripes(), history)
    assert score(result) > 0.9 and result.state_dict().keys() == tiny().state_dict().keys()


def test_the_mean_of_the_past_follows_slower_and_slower() -> None:
    student, mean = network(0), network(1).requires_grad_(False)
    term = MeanTeacherTerm(mean, alpha=0.5, temperature=2.0, decay=0.75)
    before = {name: t.clone() for name, t in mean.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for number, d in ((1, 1 / 11), (10, 0.5), (1000, 0.75)):
        term.follow(TrainingStep(model=student, optimizer=optimizer, number=number, steps=1000))
        for name, t in mean.state_dict().items():
            before[name] = d * before[name] + (1 - d) * student.state_dict()[name]
            torch.testing.assert_close(t, before[name])
    outputs = torch.randn(8, 3)
    torch.testing.assert_close(term((IMAGES,), outputs, LABELS), 0.5 * kd_loss(outputs, mean(IMAGES), 2.0))


@pytest.mark.slow
def test_a_student_that_learns_from_its_past_learns() -> None:
    assert score(SelfDistillation(epochs=4, lr=0.05)(tiny(), stripes(), on_cpu()).model) > 0.9


class Stop(Exception):
    """A kill."""


class Broken:
    """Batches that end in a kill in the second epoch."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.times = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        self.times += 1
        yield from self.batches[:2]
        if self.times == 2:
            raise Stop
        yield from self.batches[2:]


@pytest.mark.parametrize("method", [DeepMutualLearning, SelfDistillation, BayesianDarkKnowledge])
@pytest.mark.slow
def test_a_killed_training_goes_on_with_all_that_learns_beside_the_student(method: Any, tmp_path: Path) -> None:
    options = {"burn_in": 0, "sampler_lr": 0.01} if method is BayesianDarkKnowledge else {}
    wanted = method(epochs=3, lr=0.01, **options)
    whole = wanted(tiny(), task(), on_cpu(tiny())).model
    with pytest.raises(Stop):
        data = replace(task(), train=Broken(list(task().train)))
        if method is BayesianDarkKnowledge:
            next(iter(data.train))  # as the method does, to see the size of a batch
            data.train.times = -1  # type: ignore[attr-defined]
        wanted(tiny(), data, on_cpu(tiny(), tmp_path))
    again = wanted(tiny(), task(), on_cpu(tiny(), tmp_path)).model
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


@pytest.mark.slow
def test_every_generation_teaches_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers, history = [], on_cpu(learned())

    def noted(self: BornAgain, teacher: nn.Module) -> Distillation:
        teachers.append(teacher)
        return Distillation(teacher, self.temperature, self.alpha)

    monkeypatch.setattr(BornAgain, "distillation", noted)
    result = BornAgain(epochs=3, lr=0.05, generations=3).apply(tiny(), stripes(), history)
    assert teachers[0] is history.teacher and len({id(t) for t in [*teachers, result]}) == 4
    assert [edit.target for edit in history.log.edits] == [f"all weights of generation {n}" for n in (1, 2, 3)]
    assert score(result) > 0.9


def test_a_bottleneck_of_full_rank_is_the_layer_and_a_narrower_one_the_nearest() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(factored(layer, 4)(x), layer(x))
    two: Any = factored(layer, 2)
    values = torch.linalg.svdvals(layer.weight)
    missed = (two[1].weight @ two[0].weight - layer.weight).norm()
    torch.testing.assert_close(missed, values[2:].norm())
    assert factored(nn.Linear(6, 4, bias=False), 2)[1].bias is None


def test_only_linear_layers_that_become_smaller_are_replaced() -> None:
    history = on_cpu(learned())
    result: Any = LinearBottleneck(rank=2, epochs=2, lr=0.02).apply(learned(), stripes(), history)
    assert [tuple(p.weight.shape) for p in result.head] == [(2, 8), (3, 2)]
    assert [(edit.kind, edit.target) for edit in history.log.edits] == [("swap", "head"), ("train", "all weights")]
    assert score(result) > 0.9
    with pytest.raises(NoEffect, match="rank = 3 makes no linear layer"):
        LinearBottleneck(rank=3)(tiny(), task(), on_cpu(tiny()))


def test_a_student_is_as_sensitive_as_its_teacher_where_their_gradients_agree() -> None:
    teacher, student = network(1), network(0)
    term = GradientTerm(Distillation(teacher, temperature=2.0, alpha=0.25), task(), weight=3.0)
    student.register_forward_pre_hook(term.begin)
    student.register_forward_hook(term.end)
    got = term((IMAGES,), student.train()(IMAGES), LABELS)

    def jacobian(model: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of each sample's own loss, one by one."""
        rows = []
        for image, label in zip(IMAGES, LABELS):
            x = image[None].clone().requires_grad_()
            rows.append(torch.autograd.grad(F.cross_entropy(model(x), label[None]), x)[0])
        return torch.cat(rows)

    own, other = jacobian(network(0)), jacobian(teacher)
    relative = (own - other).pow(2).sum() / (own.pow(2).sum() + other.pow(2).sum())
    soft = 0.75 * kd_loss(network(0)(IMAGES), teacher(IMAGES), 2.0)
    torch.testing.assert_close(got, 3 * relative + soft)
    same = GradientTerm(Distillation(teacher, alpha=0.25), task(), weight=3.0)
    twin = copy.deepcopy(teacher)
    twin.register_forward_pre_hook(same.begin)
    twin.register_forward_hook(same.end)
    assert float(same((IMAGES,), twin.train()(IMAGES), LABELS).detach()) == pytest.approx(0, abs=1e-10)


@pytest.mark.slow
def test_sensitivity_is_taught_and_hooks_are_gone() -> None:
    result = GradientAttention(epochs=3, lr=0.05)(tiny(), stripes(), on_cpu(learned())).model
    assert score(result) > 0.9 and not result._forward_hooks and not result._forward_pre_hooks


def test_a_dustbin_holds_the_probability_of_all_other_classes() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    p, q = logits.softmax(1), dustbin(logits, [2, 0]).softmax(1)
    torch.testing.assert_close(q, torch.stack([p[:, 2], p[:, 0], p[:, 1] + p[:, 3]], 1))
    assert in_group(torch.tensor([0, 1, 2, 3]), [2, 0]).tolist() == [1, 2, 0, 2]


def opinions(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(5, n, generator=generator, dtype=torch.float64)).softmax(1) for n in sizes]


def test_the_combined_opinion_has_the_least_sum_of_divergences() -> None:
    general, one, other = opinions(6, 3, 4)
    groups = [[0, 3], [1, 2, 3]]  # which overlap
    got = combined_opinion(general, [one, other], groups)
    logits = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        divergence = F.kl_div(logits.log_softmax(1), general, reduction="sum")
        for p, group in zip((one, other), groups):
            divergence = divergence + F.kl_div(dustbin(logits, group).log_softmax(1), p, reduction="sum")
        torch.autograd.backward(divergence)
        return divergence

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(got, logits.softmax(1).detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got.sum(1), torch.ones(5, dtype=torch.float64))


def test_of_one_specialist_the_combined_opinion_is_the_mean() -> None:
    general, one = opinions(4, 3)
    got = combined_opinion(general, [one], [[1, 2]])
    torch.testing.assert_close(got[:, 1:3], (general[:, 1:3] + one[:, :2]) / 2)
    torch.testing.assert_close(got[:, 0] / got[:, 3], general[:, 0] / general[:, 3])


def test_specialists_that_learned_nothing_say_what_the_generalist_says() -> None:
    net = tiny()
    team = SpecialistEnsemble(net, [net, net], [[0], [1, 2]], [0.0, 0.0])
    torch.testing.assert_close(team(IMAGES).softmax(1), net(IMAGES).softmax(1))
    shifted = SpecialistEnsemble(net, [net, net], [[0], [1, 2]], [9.0, 0.0])
    assert bool((shifted(IMAGES).softmax(1)[:, 0] < net(IMAGES).softmax(1)[:, 0]).all())


def test_half_the_samples_are_of_the_group() -> None:
    images = torch.arange(20.0).view(20, 1)
    labels = torch.arange(20) % 5
    [(inputs, target)] = list(Enriched([(images, labels)], [1, 3]))
    assert int(torch.isin(target, torch.tensor([1, 3])).sum()) == 8
    assert len(target) == 16 and torch.equal(inputs[0][:, 0].long() % 5, target)
    [(_, none)] = list(Enriched([(images, labels)], [7]))
    assert len(none) == 2


def test_classes_that_are_confused_with_each_other_are_a_group() -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 8 * x

    torch.manual_seed(0)
    pairs = torch.tensor([[1.0, 1, 0, 0], [0.0, 0, 1, 1]])[torch.randint(2, (200,))]
    data = replace(task(), calibration=[pairs + 0.05 * torch.randn(200, 4)])
    groups, shares = confused(Says(), data, 2, seed=0)
    assert sorted(groups) == [[0, 1], [2, 3]]
    torch.testing.assert_close(shares.float(), torch.full((4,), 0.25), rtol=0.2, atol=0)
    with pytest.raises(BadInput, match="more classes than the 4 specialists"):
        confused(Says(), data, 4, seed=0)


@pytest.mark.slow
def test_specialists_are_trained_and_teach_together() -> None:
    history = on_cpu(learned())
    result = Specialists(epochs=3, lr=0.05, count=2, specialist_epochs=1).apply(tiny(), stripes(), history)
    targets = [edit.target for edit in history.log.edits]
    assert targets == ["all weights of specialist 1", "all weights of specialist 2", "all weights"]
    assert score(result) > 0.9


class Embedder(nn.Module):
    """Neurons of a layer: each pixel of the middle rows, and each of them again."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Identity(), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        middle = x[:, :, 2:4].flatten(1)
        return self.head(self.embedding(torch.cat([middle, middle], 1)))  # type: ignore[no-any-return]


def test_planted_duplicates_are_dropped() -> None:
    method = NeuronSelection(share=0.25, layers={"body": "embedding"})
    chosen = method.select(Embedder(), "embedding", stripes())
    assert len(chosen) == 6 and len({k % 12 for k in chosen.tolist()}) == 6
    doubled = NeuronSelection(share=0.25, beta=0.0).select(Embedder(), "embedding", stripes())
    assert len({k % 12 for k in doubled.tolist()}) == 3


def test_a_student_learns_the_chosen_neurons_then_the_outputs() -> None:
    history = on_cpu(learned())
    result = NeuronSelection(epochs=3, hint_epochs=1, lr=0.05, layers={"body": "body"}).apply(
        tiny(), stripes(), history
    )
    assert [edit.target for edit in history.log.edits] == ["all weights on hints", "all weights"]
    assert score(result) > 0.9


def test_of_landmarks_those_neurons_are_selected_that_tell_where_they_are() -> None:
    torch.manual_seed(0)
    points = torch.rand(64, 2, 2) * 20
    points[5, 1] = torch.nan  # not annotated
    x = torch.cat([points.nan_to_num(10.0).flatten(1), torch.rand(64, 8) * 20], 1)
    known = {"points": points, "lengths": torch.ones(64)}
    for target in (points, known):
        task = SimpleNamespace(train=[(x, target)])
        method = NeuronSelection(share=0.25, layers={"body": "0"})
        assert method.select(torch.nn.Sequential(torch.nn.Identity()), "0", task).amax() < 4  # type: ignore[arg-type]


def test_neurons_are_selected_in_one_layer_with_classes_or_attributes() -> None:
    with pytest.raises(BadInput, match="layers has 2 entries"):
        NeuronSelection(layers={"body": "body", "stem": "stem"})(tiny(), task(), on_cpu(tiny()))
    method = NeuronSelection()
    assert method.labels(torch.tensor([[0.0, 1.0]])).tolist() == [[0, 1]]
    for wrong in (torch.tensor([0.5, 0.25]), torch.tensor([[0, 2]]), None):
        with pytest.raises(BadInput, match="classes"):
            method.labels(wrong)
