"""Two processes train as one does."""

import os
from pathlib import Path
from typing import Any

import lightning_fabric.strategies.ddp  # noqa: F401  importing it sets variables of the environment
import pytest
import torch
from torch import nn
from train_toy import Notes, batches, distance, linear, net, on_cpu, same, task, training

from gossamer.core.batches import cross_entropy
from gossamer.errors import Diverged
from gossamer.train import Distillation, fit
from gossamer.train.batches import Placement


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    # 136 samples: the last batch has 8. No BatchNorm: its statistics are of a part of the batch.
    toy, before = task(train=batches(136, seed=0), validation=batches(72, seed=1)), dict(os.environ)
    loss_terms, plan, notes = [Distillation(linear(3))], training(epochs=2, clip=1.0, ema=0.8), Notes()
    one = fit(linear(), toy, plan, on_cpu(), loss_terms=loss_terms)
    checkpoint = tmp_path / "checkpoint"
    two = fit(linear(), toy, plan, on_cpu(devices=2, progress=notes), loss_terms=loss_terms, checkpoint=checkpoint)
    assert distance(one.model, two.model) < 1e-6
    assert [row.loss for row in two.history] == pytest.approx([row.loss for row in one.history], rel=1e-5)
    assert two.score == one.score
    assert len(notes.said) == 2 and notes.said[1].startswith("training: epoch 2 of 2: loss")
    assert dict(os.environ) == before and not torch.distributed.is_initialized()
    # The checkpoint is that of a finished training.
    again = fit(linear(), toy, plan, on_cpu(devices=2), loss_terms=loss_terms, checkpoint=tmp_path / "checkpoint")
    assert same(again.model, two.model)


def test_both_processes_hold_the_same_weights(tmp_path: Path) -> None:
    def metric(model: nn.Module, loader: Any) -> torch.Tensor:
        torch.save(dict(model.named_parameters()), tmp_path / f"{os.getpid()}.pt")
        return torch.ones(len(list(loader)))

    fit(net(dropout=0.3), task(metric=metric), training(epochs=2), on_cpu(devices=2))
    first, second = (torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt")))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    def nan(model: Any, batch: Any) -> torch.Tensor:
        return cross_entropy(model, batch) * float("nan")

    with pytest.raises(Diverged, match="last good weights are in"):
        fit(linear(), task(loss=nan), training(), on_cpu(devices=2, folder=tmp_path))


def test_parts_of_a_batch_add_up_to_it() -> None:
    x, y = torch.arange(7.0).view(7, 1), torch.arange(7)
    parts = [Placement(torch.device("cpu"), rank=rank, world=3)({"x": (x, y), "n": 5}) for rank in range(3)]
    assert sorted(torch.cat([part["x"][1] for part, _ in parts]).tolist()) == list(range(7))
    mean = sum(float(part["x"][0].mean()) * weight for part, weight in parts) / 3
    assert mean == pytest.approx(3.0)
    alone, weight = Placement(torch.device("cpu"), rank=1, world=8)((x, y))
    assert torch.equal(alone[0], x) and weight == 1.0
