"""ShuffleNet v1 (Zhang et al. 2018, arXiv:1707.01083, table 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.models.layers import conv_bn

# Output channels of stage 2 for each number of groups; later stages double.
STAGE2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
DEPTHS = (4, 8, 4)


def shuffle_groups(x_NCHW: Tensor, groups: int) -> Tensor:
    """Channel i of group j becomes channel j of group i: each group of the next layer sees all groups of this one."""
    n, c, h, w = x_NCHW.shape
    return x_NCHW.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or next to its average pool at stride 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, *, first: bool) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        width = out_channels // 4
        branch = out_channels - in_channels if stride == 2 else out_channels
        # The few channels of the stem are not worth grouping.
        self.conv1 = nn.Conv2d(in_channels, width, 1, groups=1 if first else groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = shuffle_groups(F.relu(self.bn1(self.conv1(x_NCHW))), self.groups)
        y_NCHW = self.bn3(self.conv3(self.bn2(self.conv2(y_NCHW))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x_NCHW, 3, 2, 1), y_NCHW], 1))
        return F.relu(x_NCHW + y_NCHW)


class ShuffleNet(nn.Module):
    """A strided 3x3 stem with a max-pool, three stages of 4, 8, 4 units, global average pool, one linear layer.

    `width` is the paper's s: it scales the channels of all layers, the stem's too. The paper does not say what happens
    where groups then do not divide the channels; here stem and stages are rounded up until they do.
    """

    def __init__(self, groups: int = 3, width: float = 1.0, *, in_channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        channels = _round_up(24 * width, groups)
        self.stem = nn.Sequential(*conv_bn(in_channels, channels, 3, 2), nn.MaxPool2d(3, 2, 1))
        units: list[nn.Module] = []
        out_channels = _round_up(STAGE2[groups] * width, 4 * groups)
        for depth in DEPTHS:
            units.append(ShuffleUnit(channels, out_channels, 2, groups, first=not units))
            units += [ShuffleUnit(out_channels, out_channels, 1, groups, first=False) for _ in range(depth - 1)]
            channels, out_channels = out_channels, 2 * out_channels
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.units(self.stem(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]


def _round_up(channels: float, step: int) -> int:
    """The next multiple of step; channels is a whole number of quarters, so this is exact."""
    return int(-(-channels // step)) * step
