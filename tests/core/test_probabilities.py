"""Networks with a softmax at their end give probabilities: they are judged, trained and learned from as such."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer
from gossamer.core.batches import as_logits, cross_entropy
from gossamer.measure import calibration
from gossamer.train import Distillation

LOGITS = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_become_logits_of_the_same_softmax(dtype: torch.dtype) -> None:
    given = LOGITS.softmax(1).to(dtype)
    assert torch.allclose(as_logits(given).float().softmax(1), given.float(), atol=0.01)
    images = LOGITS.reshape(2, 4, 5, 5).permute(0, 2, 1, 3).softmax(1)
    assert torch.allclose(as_logits(images).softmax(1), images, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [LOGITS, LOGITS.abs(), torch.zeros(4, 3), LOGITS.softmax(1)[:1], torch.ones(6, 1), torch.eye(3, dtype=torch.int64)],
)
def test_what_is_none_stays_as_it_is(given: Tensor) -> None:
    assert as_logits(given) is given


def test_loss_calibration_and_distillation_are_those_of_the_logits() -> None:
    plain, ended = nn.Identity(), nn.Softmax(1)
    batch = LOGITS, LABELS
    assert float(cross_entropy(ended, batch)) == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)), rel=1e-5)
    for name, value in calibration.confidence(plain, [batch]).items():
        assert calibration.confidence(ended, [batch])[name] == pytest.approx(value, rel=1e-5)
    worse = LOGITS + torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    found = [Distillation(net)((LOGITS,), net(worse), LABELS) for net in (plain, ended)]
    assert float(found[0]) > 0 and float(found[1]) == pytest.approx(float(found[0]), rel=1e-4)


def test_a_network_with_a_softmax_learns_as_fast_as_one_without() -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(2))
    batches = [(x, x.argmax(1))]
    task = gossamer.Task.from_loaders(batches, batches)
    scores = []
    for end in ([], [nn.Softmax(1)]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 5), *end)
        found = gossamer.fit(net, task, gossamer.Training(epochs=40, lr=0.5, keep="last"), gossamer.Context())
        scores.append(found.history[-1].loss)
    assert scores[1] == pytest.approx(scores[0], rel=0.05)  # some processors train in bfloat16
