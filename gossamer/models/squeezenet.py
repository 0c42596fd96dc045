"""SqueezeNet 1.0 with its two kinds of bypass, and 1.1 (Iandola et al. 2016, arXiv:1602.07360)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_relu

# Channels of the squeeze and of each half of the expand layer, fire2 to fire9.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


class FireBlock(nn.Module):
    """A 1x1 that squeezes, then 1x1 and 3x3 side by side. `bypass` is added to the result: None, identity or a 1x1."""

    def __init__(self, in_channels: int, squeeze: int, expand: int, bypass: nn.Module | None = None) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.bypass = bypass

    def forward(self, x_NCHW: Tensor) -> Tensor:
        s_NCHW = F.relu(self.squeeze(x_NCHW))
        y_NCHW = torch.cat([F.relu(self.expand1(s_NCHW)), F.relu(self.expand3(s_NCHW))], 1)
        return y_NCHW if self.bypass is None else y_NCHW + self.bypass(x_NCHW)


class SqueezeNet(nn.Module):
    """A stem, eight Fire modules, a 1x1 convolution to the classes, global average pool.

    version: "1.0", 7x7-96 first and pools after fire4 and fire8; "1.1", 3x3-64 first and pools after fire3 and fire5.
    bypass: None; "simple", shortcuts around the Fire modules that keep the channels; "complex", 1x1 convolutions
    around the others as well.
    """

    def __init__(
        self, version: str = "1.0", bypass: str | None = None, *, in_channels: int = 3, classes: int = 1000
    ) -> None:
        super().__init__()
        channels, kernel, pool_after = (96, 7, (2, 6)) if version == "1.0" else (64, 3, (1, 3))
        layers: list[nn.Module] = [
            *conv_relu(in_channels, channels, kernel, 2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        ]
        for number, (squeeze, expand) in enumerate(FIRES):
            way: nn.Module | None = None
            if bypass is not None and channels == 2 * expand:
                way = nn.Identity()
            elif bypass == "complex":
                way = nn.Conv2d(channels, 2 * expand, 1)
            layers.append(FireBlock(channels, squeeze, expand, way))
            channels = 2 * expand
            if number in pool_after:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(channels, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.conv10.weight, std=0.01)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.conv10(self.dropout(self.features(x_NCHW)))).mean((2, 3))
