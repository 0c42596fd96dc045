"""Exact foldings: the folded network gives what the original gave."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import task, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.graph.tracer import trace
from gossamer.methods.restructure.fold import Folding
from gossamer.modules.cost import total_params
from gossamer.modules.folding import NotAffine, as_one_convolution, idle_relus


def lively(model: nn.Module) -> nn.Module:
    """Nothing left at its initial constant; double precision, eval mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double().eval()


def images(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def toy(x: Tensor) -> Task:
    return Task(name="toy", train=[], validation=[], test=[], calibration=[x], example_inputs=(x,))


class RepVGG(nn.Module):
    """3x3, 1x1 and identity, each with a batch norm, and a ReLU."""

    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, out, 3, stride, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.conv1 = nn.Sequential(nn.Conv2d(channels, out, 1, stride, groups=groups), nn.BatchNorm2d(out))
        self.bn0 = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.conv1(x)
        if self.bn0 is not None:
            y = y + self.bn0(x)
        return F.relu(y)


class Asymmetric(nn.Module):
    """3x3 + 3x1 + 1x3 + a 1x1 after a 3x3 + the input itself, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.c = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False)
        self.d = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1))
        self.e = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + self.c(x) + self.d(x) + self.e(x) + x  # type: ignore[no-any-return]


BRANCHED = [
    RepVGG(4, 4),
    RepVGG(4, 6, stride=2),
    RepVGG(4, 4, groups=2),
    RepVGG(4, 4, groups=4),
    Asymmetric(),
]


@pytest.mark.parametrize("block", BRANCHED)
def test_a_branched_block_is_one_convolution(block: nn.Module) -> None:
    block = lively(block)
    one = as_one_convolution(block, images())
    assert one is not None
    [conv] = [m for m in one.modules() if isinstance(m, nn.Conv2d)]
    assert conv.groups == getattr(getattr(block, "conv3", None), "groups", 1)
    assert tuple(conv.kernel_size) == (3, 3)
    torch.testing.assert_close(one(images()), block(images()), rtol=1e-11, atol=1e-11)


def test_what_is_not_one_convolution_is_not_taken_for_one() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x))) + x  # type: ignore[no-any-return]

    class Border(nn.Module):
        """The bias of the first is cut off where the second one pads."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)) + x  # type: ignore[no-any-return]

    for block in (Residual(), Border()):
        with pytest.raises(NotAffine):
            as_one_convolution(lively(block), images())
    assert as_one_convolution(lively(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))), images()) is None


def test_the_method_folds_branches_norms_and_relus_and_proves_it() -> None:
    model = lively(
        nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            RepVGG(4, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5, 6),
            nn.BatchNorm1d(6),
        )
    )
    context = Context()
    result = Folding().apply(model, toy(images()), context)
    torch.testing.assert_close(result(images()), model(images()), rtol=1e-11, atol=1e-11)
    kinds = [type(module).__name__ for module in result.children()]
    idle = ["Identity", "MaxPool2d", "Identity"]
    assert kinds == ["Conv2d", "Identity", "Sequential", *idle, "Conv2d", "ReLU", "Flatten", "Linear", "Identity"]
    assert {edit.target for edit in context.log.edits} == {"0", "2", "3", "5", "9"}
    assert all(edit.proof is not None and edit.proof < 1e-10 for edit in context.log.edits)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    partly = Folding(layers=("2", "9"), ignore=("9",))(model, toy(images()), Context()).model
    assert [i for i, (a, b) in enumerate(zip(partly, model)) if type(a) is not type(b)] == [2]


def test_norms_in_functional_networks_are_found_and_their_parameters_are_gone() -> None:
    model = tiny()
    result = Folding()(model, task(), Context()).model
    x = task().example_inputs[0]
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)
    assert total_params(result) == total_params(model) - 6 * 8  # two vectors each are one bias


def test_norms_that_are_not_alone_behind_their_layer_stay() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.again, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.batch = nn.BatchNorm2d(4, track_running_stats=False)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = self.one(y) + self.two(y)
            y = self.bn(self.again(self.bn(self.again(y))))
            return self.batch(self.last(y))  # type: ignore[no-any-return]

    with pytest.raises(NoEffect, match="no branches, no batch norms behind layers and no idle ReLUs"):
        Folding()(lively(Shared()), toy(images()), Context())


def test_a_relu_is_idle_only_if_all_its_inputs_are_not_negative() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.avg_pool2d(self.a(self.conv(x)), 2))
            return self.c(self.c(y) - 1)  # type: ignore[no-any-return]

    model = lively(Net())
    assert idle_relus(model, trace(model, images())) == ["b"]


def test_held_weights_are_refused() -> None:
    model: Any = tiny()
    held = constrain(model, {"body.0.conv1.weight": Mask(model.body[0].conv1.weight > 0)})
    with pytest.raises(BadInput, match="materialize"):
        Folding()(held, task(), Context())
