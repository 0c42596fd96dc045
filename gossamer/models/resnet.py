"""Residual networks for 32x32 images (He et al. 2016, arXiv:1512.03385, section 4.2) and their wide variant."""

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels filled with zeros. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_NCHW, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that is the identity unless the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif option == "A":
            self.shortcut = PadShortcut(in_channels, out_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        return F.relu(self.bn2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class ResNet(nn.Module):
    """6n+2 weighted layers: a 3x3 stem, three stages of n blocks (`widths` channels), a linear head."""

    block = BasicBlock

    def __init__(
        self,
        blocks: int,
        *,
        option: str = "B",
        widths: tuple[int, int, int] = (16, 32, 64),
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        width, stages = widths[0], []
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for out_channels, stride in zip(widths, (1, 2, 2)):
            stage = [self.block(width, out_channels, stride, option=option)]
            stage += [self.block(out_channels, out_channels, 1, option=option) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            width = out_channels
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.stage3(self.stage2(self.stage1(x_NCHW)))
        return self.fc(x_NCHW.mean((2, 3)))  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut convolution, where shapes change, sees the activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(x_NCHW))
        shortcut_NCHW = x_NCHW if self.shortcut is None else self.shortcut(y_NCHW)
        y_NCHW = self.conv2(F.relu(self.bn2(self.conv1(y_NCHW))))
        return y_NCHW + shortcut_NCHW  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-k (Zagoruyko and Komodakis 2016, arXiv:1605.07146): depth 6n+4, widths 16k, 32k, 64k."""

    def __init__(self, depth: int, widen: int, *, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        width, stages = 16, []
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            out_channels = base * widen
            stage = [PreActBlock(width, out_channels, stride)]
            stage += [PreActBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            width = out_channels
        self.stage1, self.stage2, self.stage3 = stages
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.stage3(self.stage2(self.stage1(self.conv1(x_NCHW))))
        return self.fc(F.relu(self.bn(x_NCHW)).mean((2, 3)))  # type: ignore[no-any-return]
