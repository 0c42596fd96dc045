"""The squared hinge loss against its sum, and its zero."""

import pytest
import torch

from gossamer.errors import BadInput
from gossamer.losses import square_hinge_loss


def test_each_class_stands_against_the_others() -> None:
    logits = torch.tensor([[0.5, -2.0, 3.0], [1.5, 0.0, -1.0]], dtype=torch.float64)
    rows = [(1 - 0.5) ** 2 + 0 + (1 + 3.0) ** 2, (1 + 1.5) ** 2 + (1 - 0.0) ** 2 + 0]
    assert float(square_hinge_loss(logits, torch.tensor([0, 1]))) == pytest.approx(sum(rows) / 6)


def test_margins_of_one_cost_nothing() -> None:
    assert float(square_hinge_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))) == 0.0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"logits \[2, 3\] and labels \[1\] must be"):
        square_hinge_loss(torch.zeros(2, 3), torch.zeros(1, dtype=torch.long))
