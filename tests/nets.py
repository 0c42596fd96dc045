"""Networks and tasks for tests: tiny, and the same every time."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.runtime.threads import torch_threads


class Block(nn.Module):
    """A residual block without a change of shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        return F.relu(x_NCHW + self.bn2(self.conv2(y_NCHW)))


class Tiny(nn.Module):
    """A stem, blocks, a head. It runs its children, as some networks do: nothing else may be among them."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.body = nn.Sequential(*(Block(8) for _ in range(blocks)))
        self.head = nn.Linear(8, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stem, body, head = self.children()
        return head(body(F.relu(stem(x_NCHW))).mean((2, 3)))  # type: ignore[no-any-return]


def tiny(blocks: int = 3) -> nn.Module:
    """The same network every time, with nothing left at its initial constant."""
    torch.manual_seed(0)
    model = Tiny(blocks)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def task() -> Task:
    """Noise: for what must run, not learn."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(4)
    ]
    return Task(
        name="toy",
        train=batches,
        validation=batches[:2],
        test=batches[2:],
        calibration=[x for x, _ in batches],
        example_inputs=(batches[0][0],),
    )


def stripes() -> Task:
    """Three kinds of stripes under noise, which `Tiny` learns to tell apart in a few steps."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.stack([torch.eye(6)[:, None, i::3].sum((1, 2)).expand(6, 6) for i in range(3)])

    def batches(count: int) -> list[tuple[Tensor, Tensor]]:
        labels = torch.arange(16 * count) % 3
        images = 2 * kinds[labels][:, None] + 0.7 * torch.randn(16 * count, 1, 6, 6, generator=generator)
        return list(zip(images.split(16), labels.split(16)))

    train = batches(12)
    return Task(
        name="stripes",
        train=train,
        validation=batches(6),
        test=batches(6),
        calibration=[images for images, _ in train[:2]],
        example_inputs=(train[0][0][:4],),
        classes=("a", "b", "c"),
        preprocessing=Preprocessing(size=6, channels=1, mean=(0.5,), std=(0.25,), range=(0.0, 1.0)),
    )


def learned() -> nn.Module:
    """`Tiny`, trained on stripes: a copy of its own for whoever asks."""
    model = tiny()
    model.load_state_dict(learned_weights())
    return model


@functools.cache
def learned_weights() -> dict[str, Tensor]:
    """To the same bits in every process, so on one thread."""
    model, data = tiny(), stripes()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    model.train()
    with torch_threads(1):
        for _ in range(4):
            for images, labels in data.train:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
    return model.state_dict()
