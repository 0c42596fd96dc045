"""Some of torchvision's networks, small and fast ones, as they are; `benchmarks/coverage/zoo.py` has all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from patterns import randomized
from test_channels import check, count
from torch import nn
from zoo_shim import torchvision_models

from gossamer.methods.prune.channels import prune_channels

try:
    MODELS: Any = torchvision_models()
except ImportError:
    pytest.skip("torchvision is not installed", allow_module_level=True)


def vit() -> nn.Module:
    return MODELS.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=7)  # type: ignore[no-any-return]


def swin() -> nn.Module:
    return MODELS.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=7)  # type: ignore[no-any-return]


def named(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: MODELS.get_model(name, weights=None, **options)


# name: factory, side of the image, sparsity, parameters left at most
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, float, float]] = {
    "resnet18": (named("resnet18"), 64, 0.5, 0.27),
    "mobilenet_v3_small": (named("mobilenet_v3_small"), 64, 0.37, 0.51),
    "shufflenet_v2_x0_5": (named("shufflenet_v2_x0_5"), 64, 0.5, 0.46),
    "squeezenet1_1": (named("squeezenet1_1"), 64, 0.3, 0.61),
    "googlenet": (named("googlenet", init_weights=False), 96, 0.5, 0.32),
    "vit": (vit, 32, 0.37, 0.49),
    "swin": (swin, 32, 0.3, 0.55),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_networks_as_their_authors_wrote_them(name: str) -> None:
    factory, side, sparsity, left = NETWORKS[name]
    torch.manual_seed(0)
    model = randomized(factory())
    inputs = torch.randn(1, 3, side, side, dtype=torch.float64)
    result = prune_channels(model, inputs, sparsity)
    check(model, inputs, result)
    assert not result.skipped
    assert count(result.model) / count(model) <= left


@pytest.mark.slow
def test_auxiliary_heads_of_googlenet_train_on() -> None:
    torch.manual_seed(0)
    model = randomized(MODELS.googlenet(weights=None, init_weights=False)).float()
    inputs = torch.randn(2, 3, 96, 96)
    small = prune_channels(model, inputs, 0.5).model.train()
    assert [tuple(out.shape) for out in small(inputs)] == [(2, 1000)] * 3


@pytest.mark.parametrize("factory", [vit, swin])
@pytest.mark.slow
def test_whole_heads_of_transformers(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomized(factory())
    inputs = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = prune_channels(model, inputs, 0.5, heads=True)
    check(model, inputs, result)
    assert not result.skipped
    old, new = (
        [m.num_heads for m in net.modules() if hasattr(m, "qkv") or hasattr(m, "in_proj_weight")]
        for net in (model, result.model)
    )
    assert new == [n // 2 for n in old]
