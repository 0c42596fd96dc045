"""The tiny task and network of the examples."""

import torch

from gossamer.data import tiny_network, tiny_task
from gossamer.task import check


def test_the_tiny_task_and_network_fit_and_are_the_same_every_time() -> None:
    check(tiny_task(), tiny_network())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(tiny_task().train, tiny_task().train))
    first, second = tiny_network().state_dict(), tiny_network().state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_tiny_network_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    tiny_network()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
