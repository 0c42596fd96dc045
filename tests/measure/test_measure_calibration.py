"""Whether a classifier is as sure as it is right."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.measure.calibration import (
    best_temperature,
    calibration_error,
    logits_and_labels,
    negative_log_likelihood,
    reliability,
)


def honest(samples: int = 20000) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_the_error_is_its_definition() -> None:
    logits, labels = (x[:200] for x in honest())
    p = logits.softmax(1).numpy()
    total = 0.0
    for i in range(10):
        inside = [n for n in range(200) if i / 10 < p[n].max() <= (i + 1) / 10]
        if inside:
            right = np.mean([p[n].argmax() == int(labels[n]) for n in inside])
            total += len(inside) / 200 * abs(np.mean([p[n].max() for n in inside]) - right)
    assert calibration_error(logits, labels, bins=10) == pytest.approx(total, rel=1e-9)


def test_a_classifier_that_is_right_as_often_as_it_says_has_no_error() -> None:
    logits, labels = honest()
    assert calibration_error(logits, labels) < 0.015
    assert calibration_error(4 * logits, labels) > 0.15
    assert best_temperature(logits, labels) == pytest.approx(1, abs=0.03)


def test_the_temperature_undoes_what_made_it_too_sure() -> None:
    logits, labels = honest(2000)
    one, three = best_temperature(logits, labels), best_temperature(3 * logits, labels)
    assert three == pytest.approx(3 * one, rel=1e-4)
    for other in (0.97, 1.03):
        assert negative_log_likelihood(logits / one, labels) < negative_log_likelihood(logits / (one * other), labels)


def test_a_sure_mistake_costs_its_logit() -> None:
    assert negative_log_likelihood(torch.tensor([[50.0, 0.0]]), torch.tensor([1])) == pytest.approx(50)
    assert negative_log_likelihood(torch.zeros(3, 4), torch.arange(3)) == pytest.approx(np.log(4))


def test_every_sample_is_in_one_bin_with_its_ends_where_they_belong() -> None:
    logits = torch.tensor([[0.7, 0.3], [0.5, 0.5], [1.0, 1e-30]], dtype=torch.float64).log()
    rows = reliability(logits, torch.tensor([0, 1, 0]), bins=4)
    assert [row.samples for row in rows] == [0, 1, 1, 1]
    assert [row.accuracy for row in rows] == [0, 0, 1, 1]
    assert [(row.low, row.high) for row in rows] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert rows[2].confidence == pytest.approx(0.7)


def test_outputs_are_gathered_in_order() -> None:
    batches = [(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(3)]
    logits, labels = logits_and_labels(nn.Identity(), batches)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and logits.dtype == torch.float64
    torch.testing.assert_close(logits[:, 0], labels.double())
    assert negative_log_likelihood(logits, labels % 3) == pytest.approx(float(F.cross_entropy(logits, labels % 3)))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_what_is_no_classifier_is_refused(logits: Tensor, labels: Tensor) -> None:
    for function in (negative_log_likelihood, calibration_error, best_temperature):
        with pytest.raises(BadInput, match="needs logits"):
            function(logits, labels)
    with pytest.raises(BadInput, match="bins = 0"):
        reliability(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), bins=0)
    with pytest.raises(BadInput, match="no batches"):
        logits_and_labels(nn.Identity(), [])
