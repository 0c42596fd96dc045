"""BatchNorm statistics."""

import pytest
import torch
from torch import nn
from train_toy import batches, linear, net, same

from gossamer.core.context import Context
from gossamer.core.progress import Quiet
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.train import Training, fit, recalibrate


def test_the_statistics_are_the_plain_average_over_the_batches() -> None:
    model, loader = net().eval(), batches(96, seed=0)
    weights = [p.detach().clone() for p in model.parameters()]
    conv, norm = model[0], model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    norm.running_mean.fill_(100.0)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.fill_(7)
    assert recalibrate(model, loader)
    y = [conv(x) for x, _ in loader]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in y]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in y]).mean(0))
    assert norm.momentum == 0.1 and not norm.training and not model.training
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights))


def test_only_the_first_batches_count_where_asked() -> None:
    once, twice = net(), net()
    loader = batches(64, seed=0)
    recalibrate(once, loader, batches=2)
    recalibrate(twice, [x for x, _ in loader[:2]])
    assert same(once, twice) and not same(once, net())


def test_dropout_stays_off_and_modes_come_back() -> None:
    model = net(dropout=0.9).train()
    model[1].eval()
    seen: list[bool] = []
    model[4].register_forward_hook(lambda module, *_: seen.append(module.training))
    recalibrate(model, batches(16, seed=0))
    assert seen == [False]
    assert model.training and model[4].training and not model[1].training


def test_nothing_to_do_is_said_and_no_batch_is_an_error() -> None:
    assert recalibrate(linear(), batches(16, seed=0)) is False
    with pytest.raises(BadInput, match="no batch"):
        recalibrate(net(), [])


def test_a_training_moves_statistics_of_norms_with_a_momentum_of_zero() -> None:
    """They stayed those from before the training, while the layers in front of them changed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, momentum=0.0), nn.Linear(8, 2))
    loader = [(torch.rand(16, 3) + 5, torch.randint(2, (16,))) for _ in range(30)]
    task = Task.from_loaders(loader, loader)
    norm = network[1]
    fit(network, task, Training(epochs=3, lr=0.01, keep="last"), Context(progress=Quiet()))
    with torch.no_grad():
        seen = torch.cat([network[0](x) for x, _ in loader]).mean(0)
    assert isinstance(norm, nn.BatchNorm1d) and norm.momentum == 0.0 and norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, seen, atol=0.1, rtol=0.05)
