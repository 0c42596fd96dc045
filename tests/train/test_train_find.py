"""The learning rate that nobody gave: found by short trials, the same every time, and nothing else is changed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from train_toy import Ending, Notes, Stop, batches, linear, net, on_cpu, same, task, training

from gossamer.core.batches import cross_entropy
from gossamer.core.task import Task
from gossamer.methods._training import LEAST_STEPS
from gossamer.methods.prune.gradual import GradualPruning
from gossamer.train import fit
from gossamer.train.hyperparameters import passes
from gossamer.train.rate_search import FACTORS, HIGHEST, RateTrial, chosen_rate, has_few_data, trial_steps


def trial(lr: float, error: float, loss: float = 1.0) -> RateTrial:
    return RateTrial(lr, 1 - error, error, loss, {})


def test_the_largest_rate_that_is_good_enough_for_the_length_is_taken() -> None:
    tried = [trial(0.1, 0.2), trial(0.03, 0.11), trial(0.01, 0.1), trial(0.003, 0.12)]
    assert chosen_rate(tried, 1).lr == 0.01
    assert chosen_rate(tried, 3).lr == 0.03  # 3^0.1 = 1.116
    assert chosen_rate(tried, 900).lr == 0.03
    assert chosen_rate(tried, 1100).lr == 0.1  # 1100^0.1 = 2.014
    assert chosen_rate([trial(0.1, 0.1), trial(0.03, 0.1)], 1).lr == 0.1
    assert chosen_rate([trial(0.1, math.inf), trial(0.03, math.inf)], 1000).lr == 0.03


def test_of_few_data_the_lowest_loss_decides_among_the_rates_that_are_good_enough() -> None:
    tried = [trial(0.1, 0.55, 4.0), trial(0.03, 0.39, 2.8), trial(0.01, 0.39, 2.1), trial(0.003, 0.45, 1.9)]
    assert chosen_rate(tried, 1, few_data=True).lr == 0.01
    assert chosen_rate(tried, 1).lr == 0.03
    assert chosen_rate(tried, 5, few_data=True).lr == 0.003  # 5^0.1 = 1.175


class Unsized:
    """A loader of so many batches of 1,024 samples that does not say how many samples it has."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        return (torch.zeros(1024, 1) for _ in range(self.batches))


def test_few_data_are_few_samples_whatever_the_batch() -> None:
    def few(samples: int, size: int, passes: int) -> bool:
        loader = DataLoader(TensorDataset(torch.zeros(samples, 1)), batch_size=size, drop_last=True)
        return has_few_data(loader, 0, passes * len(loader))

    assert few(1800, 32, 3) and not few(1800, 32, 2)  # the second is seen twice only
    assert [few(1800, size, 3) for size in (1, 8, 1024)] == [True] * 3
    assert [few(50_000, size, 12) for size in (1, 128, 1024, 50_000)] == [False] * 4  # 49 steps of 1,024 a pass
    assert has_few_data([torch.zeros(5000, 1)] * 2, 0, 6) and not has_few_data([torch.zeros(5001, 1)] * 2, 0, 6)
    assert has_few_data(Unsized(9), 0, 27) and not has_few_data(Unsized(10), 0, 30)


def test_a_trial_is_a_small_share_of_the_training() -> None:
    assert [trial_steps(total) for total in (3, 30, 600, 1700, 10**6)] == [3, 20, 30, 40, 40]


def steep(factor: float) -> nn.Sequential:
    """A network that steps of the usual size destroy: its inputs are far too large."""

    class Scale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return factor * x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), Scale(), nn.Linear(72, 32), nn.ReLU(), nn.Linear(32, 4))


def test_what_is_steep_gets_a_small_rate_and_learns() -> None:
    found = fit(steep(1.0), task(), training(epochs=5, lr=None, keep="last"), on_cpu())
    small = fit(steep(30.0), task(), training(epochs=5, lr=None, keep="last"), on_cpu())
    assert small.lr < found.lr and small.lr in [f * HIGHEST["sgd"] for f in FACTORS]
    assert small.backed_off == 0 and small.score is not None and small.score > 0.6


def test_the_search_changes_nothing_but_the_rate() -> None:
    """Training with the rate that was found gives the same bits as training with it from the beginning."""
    ours, theirs = net(dropout=0.3), net(dropout=0.3)
    found = fit(ours, task(), training(lr=None, keep="last", ema=0.5), on_cpu())
    given = fit(theirs, task(), training(lr=found.lr, keep="last", ema=0.5), on_cpu())
    assert same(ours, theirs) and found.history == tuple(
        type(row)(**{**vars(row), "seconds": mine.seconds}) for row, mine in zip(given.history, found.history)
    )


def test_a_killed_training_does_not_look_for_its_rate_again(tmp_path: Path) -> None:
    whole = net()
    fit(whole, task(), training(lr=None), on_cpu(seed=3))
    loader, notes = Ending(task().train, epoch=2, at=5), Notes()  # the trials end before that batch
    model = net()
    with pytest.raises(Stop):
        fit(model, task(train=loader), training(lr=None), on_cpu(seed=3), checkpoint=tmp_path / "c")
    resumed = net()
    fit(resumed, task(), training(lr=None), on_cpu(seed=3, progress=notes), checkpoint=tmp_path / "c")
    assert same(resumed, whole)
    assert not [line for line in notes.said if "trials" in line]


def test_without_validation_data_the_loss_decides() -> None:
    fitted = fit(steep(30.0), task(validation=[]), training(lr=None), on_cpu())
    assert fitted.lr < 0.1 and fitted.history[-1].loss < 1.0


def spoilt_after(steps: int) -> Task:
    """A task whose labels are turned round after so many training steps: all training does harm from then on."""
    done = [0]

    def loss(model: Any, batch: Any) -> torch.Tensor:
        done[0] += 1
        x, y = batch
        return cross_entropy(model, (x, y if done[0] <= steps else (y + 1) % 4))

    return task(loss=loss)


def test_what_a_trial_left_counts_where_the_training_does_harm() -> None:
    notes = Notes()
    fitted = fit(net(), spoilt_after(20), training(lr=None, epochs=5), on_cpu(progress=notes))
    told = next(line for line in notes.said if "after trials of 20 steps" in line)
    first = float(told.split("0.1: ")[1].split(" %")[0])
    assert fitted.best_epoch == 0 and 100 * fitted.score == pytest.approx(first, abs=0.01) and first > 60


def test_few_data_get_more_passes_and_what_is_asked_for_is_done() -> None:
    assert passes(400, 1000, usual=12) == 12
    assert passes(400, 9, usual=12) == 45
    few, many = task(train=batches(16, seed=0)), task(train=batches(16 * 60, seed=0))
    assert GradualPruning(sparsity=0.5).passes(few) == LEAST_STEPS
    assert GradualPruning(sparsity=0.5).passes(many) == 12
    assert GradualPruning(sparsity=0.5, epochs=3).passes(few) == 3


@pytest.mark.parametrize("size", [1, 5, 7])
def test_batches_of_one_sample_and_smaller_last_ones(size: int) -> None:
    """5 and 7 leave a last batch of one sample. Without batch norms any of them trains."""
    fitted = fit(linear(), task(train=batches(36, seed=0, size=size)), training(epochs=2), on_cpu())
    assert math.isfinite(fitted.history[-1].loss)
