"""A small residual network that has learnt to tell four textures apart, for the tests of deploying."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.task import Task

CLASSES = 4


class Textures(nn.Module):
    """Stem, one residual block, a strided parameter-free shortcut, a norm behind a sum, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, 2, 1)
        self.conv4 = nn.Conv2d(16, 16, 3, 1, 1)
        self.bn4 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = F.relu(self.bn2(self.conv2(x_NCHW)) + x_NCHW)
        shortcut_NCHW = F.pad(x_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x_NCHW = self.conv4(F.relu(self.conv3(x_NCHW))) + shortcut_NCHW
        return self.fc(F.relu(self.bn4(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]


def images(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Flat, rows, columns or checkerboard, under noise; shapes (samples, 1, 12, 12) and (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (samples,), generator=generator)
    row, column = torch.meshgrid(torch.arange(12) % 2, torch.arange(12) % 2, indexing="ij")
    patterns = torch.stack([torch.ones(12, 12), row, column, (row + column) % 2]).float()
    noise = torch.randn(samples, 1, 12, 12, generator=generator)
    return patterns[target][:, None] * 0.6 + noise, target


def batches(samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 64."""
    x, y = images(samples, seed)
    return list(zip(x.split(64), y.split(64), strict=True))


@functools.cache
def task() -> Task:
    """1280 validation samples; the test split is the same size."""
    return Task(
        name="textures",
        train=batches(1280, 0),
        validation=batches(1280, 1),
        test=batches(1280, 2),
        calibration=batches(256, 3),
        example_inputs=(images(2, 4)[0],),
    )


@functools.cache
def _state() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Textures()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        for x, y in task().train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.state_dict()


def trained() -> Textures:
    """A fresh copy of the trained network, in eval mode."""
    model = Textures()
    model.load_state_dict(_state())
    return model.eval()
