"""The loop: it learns, keeps the right weights, and leaves nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_toy import Forbidden, Notes, batches, distance, linear, net, on_cpu, same, task, training

from gossamer.core.batches import cross_entropy
from gossamer.core.metric import PerSample
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.train import TrainingResult, fit
from gossamer.train.batches import Placement, batches_of_epoch, takes_channels_last
from gossamer.train.hyperparameters import evaluated_every, learning_rate, make_optimizer
from gossamer.train.state import TrainingState, weights


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 0.01}, {"precision": "bf16-mixed"}, {"ema": 0.5}])
def test_it_learns(options: dict[str, Any]) -> None:
    model, toy = net(), task()
    before = toy.metric.score(model.eval(), toy.validation)
    fitted = fit(model, toy, training(epochs=8, **options), on_cpu())
    assert fitted.model is model and not model.training
    assert fitted.score == pytest.approx(toy.metric.score(model, toy.validation))
    assert fitted.score is not None and fitted.score > before + 0.3
    assert fitted.history[-1].loss < fitted.history[0].loss / 1.5


def hand_written(model: nn.Module, toy: Task, epochs: int, clip: float | None, decay: float) -> dict[str, Tensor]:
    """The loop that one would write: plain SGD with Nesterov momentum, cosine, clipped, averaged."""
    plan = training(epochs=epochs)
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = epochs * len(toy.train)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(plan, step, steps)
        loss = cross_entropy(model, list(toy.train)[step % len(toy.train)])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if clip is not None:
            norm = sum(float(p.grad.pow(2).sum()) for p in model.parameters() if p.grad is not None) ** 0.5
            for p in model.parameters():
                assert p.grad is not None
                p.grad.mul_(min(1.0, clip / (norm + 1e-6)))
        optimizer.step()
        d = min(decay, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            mean[name] = d * mean[name] + (1 - d) * p.detach()
    return mean


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_it_is_the_loop_that_one_would_write(clip: float | None, decay: float) -> None:
    toy = task()
    ours, theirs = (nn.Sequential(nn.Flatten(), nn.Linear(72, 4, bias=False)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mean = hand_written(theirs, toy, 2, clip, decay)
    fit(ours, toy, training(epochs=2, clip=clip, ema=decay, keep="last"), on_cpu())
    expected = mean if decay else dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, expected[name], check_dtype=True)


def test_the_running_mean_takes_over_integers_and_averages_statistics() -> None:
    model = net()
    state = TrainingState(
        model, make_optimizer(model.parameters(), training(ema=0.9), torch.device("cpu")), training(ema=0.9)
    )
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.num_batches_tracked is not None
    expected = norm.running_mean.clone()
    for step in range(20):
        norm.running_mean.fill_(float(step))
        norm.num_batches_tracked.fill_(step)
        state.average()
        d = min(0.9, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * step
    torch.testing.assert_close(state.mean["1.running_mean"], expected)
    assert state.mean["1.num_batches_tracked"] == 19
    with state.averaged():
        torch.testing.assert_close(weights(model)["1.running_mean"], expected)
    assert norm.running_mean[0] == 19.0


def with_scores(scores: list[float], *, start: float = 0.05) -> Task:
    """A task whose validation gives these scores, evaluation by evaluation, after that of the start."""
    given = iter([start, *scores])
    return task(metric=lambda model, loader: torch.full((4,), next(given)))


def kept(epoch: int, **options: Any) -> TrainingResult:
    """A training whose weights after `epoch` of 4 epochs are the result."""
    return fit(
        net(),
        with_scores([0.1] * (epoch - 1) + [1.0] + [0.5] * (4 - epoch)),
        training(epochs=4, **options),
        on_cpu(),
    )


def test_the_weights_of_the_best_epoch_are_kept_and_the_latest_of_equals() -> None:
    equal = fit(net(), with_scores([0.2, 0.7, 0.7, 0.6]), training(epochs=4), on_cpu())
    assert equal.best_epoch == 3 and equal.score == pytest.approx(0.7)
    assert same(equal.model, kept(3).model)
    assert not same(equal.model, kept(2).model)
    last = fit(net(), with_scores([0.7, 0.7, 0.6], start=0.2), training(epochs=4, keep="last"), on_cpu())
    assert last.best_epoch == 4 and last.score == pytest.approx(0.6)
    assert same(last.model, kept(4).model)


def test_nothing_is_lost_that_was_there_before_the_first_step() -> None:
    """A training that only does harm gives back what it was given; one that is as good as that counts."""
    harm = fit(net(), with_scores([0.5, 0.6, 0.6], start=0.7), training(), on_cpu())
    assert harm.best_epoch == 0 and harm.score == pytest.approx(0.7) and same(harm.model, net())
    equal = fit(net(), with_scores([0.5, 0.7, 0.6], start=0.7), training(), on_cpu())
    assert equal.best_epoch == 2 and not same(equal.model, net())
    # A method that has to change the weights keeps the last ones, and does not look at the start.
    last = fit(net(), with_scores([0.5, 0.6, 0.6], start=0.7), training(epochs=4, keep="last"), on_cpu())
    assert last.best_epoch == 4 and last.score == pytest.approx(0.6)


def test_a_collapse_below_the_start_is_noticed() -> None:
    fitted = fit(net(), with_scores([0.1, 0.8, 0.8, 0.8], start=0.9), training(), on_cpu())
    assert fitted.backed_off == 1 and fitted.history[0].lr < 0.3 * 0.05


def with_errors(errors: list[float], *, start: float) -> Task:
    """A task by a metric of which lower is better, that gives these values."""
    given = iter([start, *errors])
    function = lambda model, loader: torch.full((4,), next(given))  # noqa: E731
    return task(metric=PerSample(function=function, unit="mm", higher_is_better=False, points=0.1))


def test_of_errors_the_smallest_is_kept_and_one_that_rises_ten_times_is_noticed() -> None:
    fitted = fit(net(), with_errors([0.5, 0.2, 0.3], start=0.9), training(), on_cpu())
    assert fitted.best_epoch == 2 and fitted.score == pytest.approx(0.2)
    harm = fit(net(), with_errors([0.5, 0.6, 0.6], start=0.4), training(), on_cpu())
    assert harm.best_epoch == 0 and same(harm.model, net()) and harm.backed_off == 0
    exploded = fit(net(), with_errors([2.0, 0.1, 0.1, 0.1], start=0.1), training(), on_cpu())
    assert exploded.backed_off == 1


def test_tiny_epochs_are_not_evaluated_each() -> None:
    """20 steps lie between two evaluations, and as many as there are batches of validation data."""
    few = fit(net(), task(), training(epochs=7, evaluate_every=None), on_cpu())  # 8 steps an epoch, 4 batches
    assert [row.epoch for row in few.history if row.score is not None] == [3, 6, 7]
    many = fit(net(), task(validation=batches(800, seed=1)), training(epochs=8, evaluate_every=None), on_cpu())
    assert [row.epoch for row in many.history if row.score is not None] == [7, 8]
    assert evaluated_every(training(evaluate_every=None), 429, 40) == 1
    assert evaluated_every(training(evaluate_every=5), 1, 40) == 5


def test_without_validation_data_the_last_weights_are_kept() -> None:
    fitted = fit(net(), task(validation=[]), training(epochs=4), on_cpu())
    assert (fitted.best_epoch, fitted.score) == (4, None)
    assert same(fitted.model, kept(4).model)
    assert [row.score for row in fitted.history] == [None] * 4


def test_it_ends_after_so_many_evaluations_without_a_new_best() -> None:
    scores = [0.5, 0.6, 0.6, 0.55, 0.9, 0.9]
    fitted = fit(net(), with_scores(scores), training(epochs=6, patience=2), on_cpu())
    assert (len(fitted.history), fitted.best_epoch) == (4, 3)
    patient = fit(net(), with_scores(scores), training(epochs=6, patience=3), on_cpu())
    assert (len(patient.history), patient.best_epoch) == (6, 6)


def test_only_every_so_many_epochs_and_the_last_are_evaluated() -> None:
    fitted = fit(net(), with_scores([0.3, 0.6, 0.5]), training(epochs=5, evaluate_every=2), on_cpu())
    assert [row.score for row in fitted.history] == [
        None,
        pytest.approx(0.3),
        None,
        pytest.approx(0.6),
        pytest.approx(0.5),
    ]
    assert fitted.best_epoch == 4 and fitted.score == pytest.approx(0.6)


def test_a_row_for_each_epoch_and_a_line() -> None:
    notes = Notes()
    fitted = fit(net(), task(), training(epochs=2), on_cpu(progress=notes), label="recover")
    assert [row.epoch for row in fitted.history] == [1, 2]
    assert fitted.history[1].lr == learning_rate(training(), 15, 16)
    first = fit(linear(), task(train=batches(16, seed=0)), training(epochs=1, warmup=0.0), on_cpu()).history[0]
    assert first.loss == pytest.approx(float(cross_entropy(linear(), batches(16, seed=0)[0]).detach()))
    assert notes.said[0].startswith(f"recover: epoch 1 of 2: loss {fitted.history[0].loss:.4f}, top-1 ")


def test_equal_seeds_give_equal_bits_and_others_do_not_whatever_the_caller_drew() -> None:
    models = []
    for seed, drawn in ((0, 3), (0, 4), (1, 3)):
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        models.append(fit(net(dropout=0.5), task(), training(), on_cpu(seed=seed)).model)
        assert torch.equal(torch.get_rng_state(), state)
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_nothing_is_left_in_the_model() -> None:
    model, fresh = net(), net()
    model[0].requires_grad_(False)
    fit(model, task(), training(clip=1.0, ema=0.5), on_cpu())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]
    for module, other in zip(model.modules(), fresh.modules()):
        assert vars(module).keys() == vars(other).keys() and type(module) is type(other)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert not getattr(module, hooks)
    assert all(p.grad is None and p.is_leaf for p in model.parameters())
    assert [p.stride() for p in model.parameters()] == [p.stride() for p in fresh.parameters()]
    assert torch.equal(next(model.parameters()), next(fresh.parameters()))


def test_images_come_channels_last() -> None:
    x = torch.zeros(4, 3, 5, 5)
    (moved, label), weight = Placement(torch.device("cpu"), channels_last=True)((x, torch.zeros(4)))
    assert moved.is_contiguous(memory_format=torch.channels_last) and label.shape == (4,) and weight == 1.0


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv2d(2, 13, 1, stride=2), False),
        (nn.Conv2d(8, 13, 1, stride=2), False),
        (nn.Conv2d(8, 16, 1, stride=2), True),
        (nn.Conv2d(2, 13, 1), True),
        (nn.Conv2d(2, 13, 3, stride=2), True),
    ],
)
def test_a_layout_in_which_a_convolution_breaks_is_not_taken(layer: nn.Module, fits: bool) -> None:
    assert takes_channels_last(nn.Sequential(layer), task()) == fits
    assert not takes_channels_last(nn.Sequential(layer), task(example_inputs=(torch.zeros(1, 2),)))


def test_smoothed_labels_and_the_loss_that_cannot_have_them() -> None:
    batch = batches(16, seed=0)
    fitted = fit(linear(), task(train=batch), training(epochs=1, label_smoothing=0.3), on_cpu())
    (x, y), *_ = batch
    expected = nn.functional.cross_entropy(linear()(x), y, label_smoothing=0.3)
    assert fitted.history[0].loss == pytest.approx(float(expected.detach()))
    with pytest.raises(BadInput, match="label_smoothing needs a task whose loss is cross_entropy"):
        fit(linear(), task(loss=lambda model, b: cross_entropy(model, b)), training(label_smoothing=0.1), on_cpu())


@pytest.mark.parametrize(
    ("loader", "message"),
    [([], "has no batches"), (iter(batches(16, seed=0)), "only once"), ("short", "ended after 1 batches")],
)
def test_loaders_that_cannot_be_trained_on(loader: Any, message: str) -> None:
    class Short(list[Any]):
        def __len__(self) -> int:
            return 2

    loader = Short(batches(16, seed=0)) if loader == "short" else loader
    with pytest.raises(BadInput, match=message):
        fit(linear(), task(train=loader), training(), on_cpu())


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_data_loader_is_shuffled_anew_each_epoch_and_equally_each_time(generator: torch.Generator | None) -> None:
    numbers = torch.arange(32.0).view(32, 1)
    dataset = torch.utils.data.TensorDataset(numbers)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True, generator=generator)

    def order(seed: int, epoch: int, start: int = 0) -> list[float]:
        torch.rand(3)
        return [float(v) for _, (x,) in batches_of_epoch(loader, seed, epoch, start, 0) for v in x.flatten()]

    assert sorted(order(0, 0)) == list(range(32))
    assert order(0, 0) == order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1, start=3) == order(0, 1)[12:]


def test_test_data_are_never_touched() -> None:
    assert isinstance(task().test, Forbidden)
    fit(net(), task(), training(epochs=1), on_cpu())


def test_a_model_with_tied_weights_and_unsaved_buffers_trains() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(72, 72)
            self.two = nn.Linear(72, 72)
            self.two.weight = self.one.weight
            self.head = nn.Linear(72, 4)
            self.register_buffer("scale", torch.tensor(0.5), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.two(self.one(x.flatten(1))) * self.scale)
            return out

    model = Tied()
    fitted = fit(model, task(), training(ema=0.5), on_cpu())
    assert model.one.weight is model.two.weight and float(model.scale) == 0.5  # type: ignore[arg-type]
    assert fitted.history[-1].loss < fitted.history[0].loss
    assert distance(model, Tied()) > 0
