"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): residual networks that train with some blocks left out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.models.resnet import BasicBlock, ResNet


class StochasticBlock(BasicBlock):
    """A residual block whose branch runs with probability `survival` for each batch while training.

    In eval mode the branch always runs, times `survival`: its mean while training. The shortcut is followed by the ReLU
    either way.
    """

    survival: float = 1.0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut_NCHW = self.shortcut(x_NCHW)
        if self.training and float(torch.rand(())) >= self.survival:
            return F.relu(shortcut_NCHW)
        y_NCHW = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_NCHW)))))
        return F.relu((y_NCHW if self.training else self.survival * y_NCHW) + shortcut_NCHW)


class StochasticResNet(ResNet):
    """A residual network for 32x32 images in which block l of L survives with probability 1 - l / L (1 - last).

    Same parameters, by the same names, as the network that always runs all blocks.
    """

    block = StochasticBlock

    def __init__(
        self, blocks: int, *, last: float = 0.5, option: str = "A", in_channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__(blocks, option=option, in_channels=in_channels, classes=classes)
        self.drop_path = 1 - last

    @property
    def drop_path(self) -> float:
        """The probability with which the last block is left out; a network that is evaluated needs the one that it was
        trained with."""
        return self._drop_path

    @drop_path.setter
    def drop_path(self, value: float) -> None:
        self._drop_path = value
        found = [module for module in self.modules() if isinstance(module, StochasticBlock)]
        for number, block in enumerate(found, start=1):
            block.survival = 1 - number / len(found) * value
