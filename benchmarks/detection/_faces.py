"""Drawn faces with exact landmarks: synthetic, the same for the same seed."""

import math

import torch
from torch import Tensor

SIDE = 32  # pixels
LANDMARKS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
MEAN = torch.tensor([[-0.45, -0.35], [0.45, -0.35], [0.0, 0.1], [-0.35, 0.5], [0.35, 0.5]])  # half sides of a face
STRAY = 4  # strokes that belong to no face
NOISE = 0.08  # standard deviation, of a range of 1


def placed(random: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Landmarks (N, 5, 2) and sizes (N,), in pixels: each face moved, scaled, turned and with features of its own."""

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    size, angle = between(8.0, 13.0), between(-0.5, 0.5)
    center = SIDE / 2 + between(-3.0, 3.0, 2)
    own = MEAN + between(-0.12, 0.12, 5, 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(count, 2, 2)
    return center[:, None] + size[:, None, None] * (own @ turn.transpose(1, 2)), size


def distances(grid: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Of each pixel to a stroke of each image; grid (H, W, 2), start and end (N, 2), the result (N, H, W)."""
    along = (end - start)[:, None, None]
    from_start = grid - start[:, None, None]
    part = (from_start * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)
    return (from_start - part.clamp(0, 1)[..., None] * along).norm(dim=-1)


def faces(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, 1, 32, 32), and their landmarks (N, 5, 2), in pixels: a bright head, dark eyes, nose and mouth
    of random contrast, strokes that belong to no face, a shadow over a part, noise."""
    random = torch.Generator().manual_seed(seed)
    points, size = placed(random, count)
    steps = torch.arange(SIDE) + 0.5
    grid = torch.stack([steps.expand(SIDE, SIDE), steps[:, None].expand(SIDE, SIDE)], -1)
    middle = points.mean(1)
    head = (size[:, None, None] - (grid - middle[:, None, None]).norm(dim=-1)).clamp(-1, 1) / 2 + 0.5
    tone = 0.35 + 0.3 * torch.rand(count, 1, 1, generator=random)
    image = 0.2 + tone * head
    contrast = 0.15 + 0.25 * torch.rand(count, 4, generator=random)
    strokes = [(points[:, 0], points[:, 0]), (points[:, 1], points[:, 1])]
    strokes += [((points[:, 0] + points[:, 1]) / 2, points[:, 2]), (points[:, 3], points[:, 4])]
    for number, (start, end) in enumerate(strokes):
        width = (0.13 if number < 2 else 0.06) * size[:, None, None]
        image = image - contrast[:, number, None, None] * torch.exp(-(distances(grid, start, end) / width).square())
    for _ in range(STRAY):
        start, turned = SIDE * torch.rand(count, 2, generator=random), 2 * math.pi * torch.rand(count, generator=random)
        end = start + 8 * torch.stack([turned.cos(), turned.sin()], 1)
        strength = 0.5 * torch.rand(count, 1, 1, generator=random) - 0.25
        image = image + strength * torch.exp(-distances(grid, start, end).square())
    edge, turned = torch.randn(count, generator=random) * 4, 2 * math.pi * torch.rand(count, generator=random)
    side = ((grid - middle[:, None, None]) * torch.stack([turned.cos(), turned.sin()], 1)[:, None, None]).sum(-1)
    image = image * torch.where(side > edge[:, None, None], 0.6, 1.0)
    image = image + NOISE * torch.randn(image.shape, generator=random)
    return (255 * image).round().clamp(0, 255).to(torch.uint8)[:, None], points
