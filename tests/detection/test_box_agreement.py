"""Detectors judged by the boxes of the original."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.core.task import Task
from gossamer.detection.agreement import BoxAgreement
from gossamer.detection.metrics import CocoAP
from gossamer.errors import BadInput
from gossamer.measure import evaluate


class Maps(nn.Module):
    """A map of scores, and one of sizes: what a file of a detector without anchors gives."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.size = nn.Conv2d(3, 1, 8, 8), nn.Conv2d(3, 2, 8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x).sigmoid(), 4 + 4 * self.size(x).sigmoid()


def decoded(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    score, size = outputs
    height, width = score.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = 8 * torch.stack([x, y]).flatten(1) + 4
    half = size.flatten(2)
    boxes = torch.cat([centre - half, centre + half], 1).transpose(1, 2)
    return boxes, score.flatten(2).transpose(1, 2)


@pytest.fixture
def photos() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 32, 32) for _ in range(3)]


def test_the_value_is_the_ap_with_the_boxes_of_the_original_as_targets(photos: list[Tensor]) -> None:
    original, other = Maps().eval(), Maps().eval()
    other.size.load_state_dict(original.size.state_dict())
    metric = BoxAgreement(reference=original, decode=decoded, sure=0.5, max_overlap=1.0)
    labelled = []
    with torch.no_grad():
        for x in photos:
            boxes, scores = decoded(original(x))
            labels = torch.where(scores[..., 0] > 0.5, 0, -1)
            labelled.append((x, {"boxes": boxes, "labels": labels}))
    expected = CocoAP(max_overlap=1.0).score(lambda x: decoded(other(x)), labelled)
    assert 0.2 < expected < 0.95
    assert metric.score(other, photos) == pytest.approx(expected)
    assert metric.score(original, photos) == 1.0


def test_its_loss_is_the_error_of_the_outputs_and_needs_no_labels(photos: list[Tensor]) -> None:
    original, other = Maps().eval(), Maps().eval()
    task = Task.from_loaders(photos, photos, metric=BoxAgreement(reference=original, decode=decoded))
    assert task.loss(original, photos[0]).item() == 0.0
    assert task.loss(other, photos[0]).item() > 0.1
    assert evaluate(original, task).value == 1.0


def test_photographs_without_anything_to_find_are_refused(photos: list[Tensor]) -> None:
    metric = BoxAgreement(reference=Maps().eval(), decode=decoded, sure=1.0)
    with pytest.raises(BadInput, match=r"no box with a score above 1 .* a lower sure="):
        metric.score(Maps().eval(), photos)
