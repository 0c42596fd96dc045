"""Normalized errors of landmarks."""

from typing import Any

import pytest
import torch

from gossamer.detection.landmarks import LandmarkError, LandmarkFailures, landmark_errors
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
