"""A tiny task and a tiny network, for examples in the documentation and for tests."""

from collections import OrderedDict

import torch
from torch import nn

from gossamer.core.task import Task


def tiny_task() -> Task:
    """Return a task of 64 random 1x8x8 samples of 3 classes, in batches of 8, the same every time.

    It is meant for examples and tests: every method runs on it within a second. The labels are random, so nothing can
    be learned from it.

    Returns:
        A `Task` with 4 batches of training data, 2 of validation data and 2 of test data. The calibration data are the
        training inputs without their labels. The example inputs are one batch, shape (8, 1, 8, 8).

    Example:
        >>> import gossamer
        >>> task = gossamer.data.tiny_task()
        >>> inputs, labels = task.train[0]
        >>> inputs.shape, labels.shape
        (torch.Size([8, 1, 8, 8]), torch.Size([8]))
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.split(torch.randn(64, 1, 8, 8, generator=generator), 8)
    labels = torch.split(torch.randint(3, (64,), generator=generator), 8)
    batches = list(zip(inputs, labels))
    return Task(
        name="tiny",
        train=batches[:4],
        validation=batches[4:6],
        test=batches[6:],
        calibration=list(inputs[:4]),
        example_inputs=(inputs[0],),
    )


def tiny_network() -> nn.Module:
    """Return a small convolutional network for `tiny_task`, in eval mode, with the same random weights every time.

    It is meant for examples and tests. Its layers are called conv1, bn1, relu1, conv2, bn2, relu2, pool, flatten, fc1,
    relu3 and fc2. It maps inputs of shape (N, 1, 8, 8) to logits of shape (N, 3). The global random state of PyTorch
    is left as it was.

    Returns:
        An `nn.Sequential` with 1,619 parameters.

    Example:
        >>> import torch, gossamer
        >>> model = gossamer.data.tiny_network()
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(1, 8, 3, padding=1)),
            ("bn1", nn.BatchNorm2d(8)),
            ("relu1", nn.ReLU()),
            ("conv2", nn.Conv2d(8, 16, 3, padding=1)),
            ("bn2", nn.BatchNorm2d(16)),
            ("relu2", nn.ReLU()),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(16, 16)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(16, 3)),
        ]
        return nn.Sequential(OrderedDict(layers)).eval()
