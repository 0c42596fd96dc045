"""Even ranges in a network's own modules: the same function, and channels that fill one step alike."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.ptq.even_network import even_network


class Mobile(nn.Module):
    """Inverted bottleneck layers whose channels have ranges that differ by powers of two."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act)
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), act)
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.stem[1].weight.copy_(2.0 ** -torch.arange(8))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.depthwise(self.stem(x))).mean((2, 3)))


SAMPLES = [(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(n)),) for n in range(4)]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6()])
def test_the_function_stays_and_the_channels_are_more_even(act: nn.Module) -> None:
    model = Mobile(act).eval()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    even = even_network(model, SAMPLES)
    assert even is not None
    for (x,) in SAMPLES:
        torch.testing.assert_close(even(x), model(x), atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def spread(net: nn.Module) -> float:
        largest = torch.stack([net.get_submodule("stem")(x).amax((0, 2, 3)) for (x,) in SAMPLES]).amax(0)
        return float(largest.max() / largest.min())

    assert spread(even) < 0.5 * spread(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_where_nothing_can_be_scaled_there_is_no_other_network() -> None:
    assert even_network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), [(torch.rand(1, 3, 2, 2),)]) is None
    assert even_network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1)).eval(), SAMPLES) is None
