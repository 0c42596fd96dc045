"""Normalized errors of landmarks."""

import contextlib
import io
from typing import Any

import pytest
import torch

from gossamer.detection.landmarks import (
    KeypointRecall,
    LandmarkError,
    LandmarkFailures,
    landmark_errors,
    similarities,
)
from gossamer.errors import BadInput

TRUE = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [8.0, 0.0], [0.0, 2.0]]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_is_the_mean_distance_over_the_length(dtype: torch.dtype) -> None:
    given = TRUE.to(dtype).clone()
    given[0, 1] += torch.tensor([3.0, 4.0])  # 5 pixels off, one of three landmarks
    expected = torch.tensor([5 / 3, 0], dtype=dtype)
    torch.testing.assert_close(landmark_errors(given, TRUE, (0, 1)), expected / torch.tensor([4.0, 8.0], dtype=dtype))
    torch.testing.assert_close(landmark_errors(given, TRUE, None), expected / 12**0.5)
    known = {"points": TRUE, "lengths": torch.tensor([10.0, 1.0])}
    torch.testing.assert_close(landmark_errors(given.flatten(1), known, None), expected / 10)


def test_failures_are_errors_above_the_limit() -> None:
    given = TRUE.clone()
    given[0] += 1
    loader = [(torch.zeros(2, 1, 4, 4), TRUE)]
    assert LandmarkFailures(limit=0.3, between=(0, 1)).score(lambda x: given, loader) == 0.5
    assert LandmarkFailures(limit=0.4, between=(0, 1)).score(lambda x: given, loader) == 0
    assert LandmarkError(between=(0, 1)).score(lambda x: given, loader) == pytest.approx(2**0.5 / 8)


@pytest.mark.parametrize(
    ("given", "target", "between", "message"),
    [
        (TRUE[:, :2], TRUE, None, r"they are \(2, 2, 2\) and \(2, 3, 2\)"),
        (TRUE, TRUE, (0, 3), "landmarks 0 to 2"),
        (TRUE, TRUE * 0, None, "length of sample 0 is 0"),
        (TRUE, {"points": TRUE, "lengths": torch.tensor([1.0, torch.nan])}, None, "length of sample 1 is nan"),
    ],
)
def test_landmarks_that_are_none_are_refused(given: Any, target: Any, between: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        landmark_errors(given, target, between)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_landmarks_that_are_not_annotated_count_nothing(dtype: torch.dtype) -> None:
    partly, given = TRUE.to(dtype).clone(), TRUE.to(dtype).clone()
    partly[0, 2] = torch.nan
    given[0, 2] += 100
    given[0, 0] += torch.tensor([3.0, 4.0])
    assert landmark_errors(given, partly, (0, 1)).tolist() == [pytest.approx(5 / 2 / 4), 0]
    output = given.clone().requires_grad_()
    landmark_errors(output, partly, (0, 1)).sum().backward()
    assert output.grad is not None and output.grad[0, 2].tolist() == [0, 0] and not output.grad.isnan().any()
    with pytest.raises(BadInput, match="sample 1 has none that is annotated"):
        landmark_errors(TRUE, torch.stack([TRUE[0], TRUE[1] * torch.nan]), (0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarities_are_those_of_pycocotools(dtype: torch.dtype) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    random = torch.Generator().manual_seed(0)
    true = torch.rand(5, 17, 2, generator=random, dtype=torch.float64) * 100
    given = true + torch.randn(5, 17, 2, generator=random, dtype=torch.float64) * 6
    seen = torch.rand(5, 17, generator=random) < 0.7
    areas = torch.rand(5, generator=random, dtype=torch.float64) * 4000 + 500
    truth, found = coco.COCO(), []
    images = [{"id": n + 1} for n in range(5)]
    rows = []
    for n in range(5):
        flat = torch.cat([true[n], 2.0 * seen[n, :, None]], dim=1).flatten().tolist()
        common = {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": float(areas[n])}
        rows.append(common | {"keypoints": flat, "num_keypoints": int(seen[n].sum()), "iscrowd": 0})
        ones = torch.ones(17, 1)
        found.append(common | {"keypoints": torch.cat([given[n], ones], 1).flatten().tolist(), "score": 0.5})
    truth.dataset = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "person"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judged = cocoeval.COCOeval(truth, truth.loadRes(found), "keypoints")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    expected = [float(judged.ious[n + 1, 1][0, 0]) for n in range(5)]
    target = {"points": torch.where(seen[..., None], true, torch.nan).to(dtype), "lengths": areas.sqrt().to(dtype)}
    within = 1e-5 if dtype == torch.float32 else 1e-9
    assert similarities(given.to(dtype), target).tolist() == pytest.approx(expected, rel=within)
    loader = [(torch.zeros(5, 1, 4, 4), target)]
    assert KeypointRecall().score(lambda x: given, loader) == pytest.approx(judged.stats[5])


def test_other_landmarks_than_deviations_are_refused() -> None:
    with pytest.raises(BadInput, match="2 deviations for 3 landmarks"):
        similarities(TRUE, {"points": TRUE, "lengths": torch.ones(2)}, (0.1, 0.1))
    assert similarities(TRUE, {"points": TRUE, "lengths": torch.ones(2)}).tolist() == [1, 1]
