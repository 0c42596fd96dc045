"""The two LeNets that pruning and sharing papers report on."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet300(nn.Module):
    """LeNet-300-100: two hidden layers of 300 and 100 units on the pixels (LeCun et al. 1998, section III)."""

    def __init__(self, *, in_channels: int = 1, classes: int = 10, input_size: int = 28) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * input_size**2, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NF = F.relu(self.fc1(x_NCHW.flatten(1)))
        return self.fc3(F.relu(self.fc2(x_NF)))  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant: 20 and 50 filters of 5x5 without padding, 2x2 max-pools, 500 units.

    Caffe has a ReLU after the hidden linear layer only; here both convolutions have one as well, as in most papers
    that prune it. The counts are the same.
    """

    def __init__(self, *, in_channels: int = 1, classes: int = 10, input_size: int = 28) -> None:
        super().__init__()
        side = ((input_size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side**2, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.max_pool2d(F.relu(self.conv1(x_NCHW)), 2)
        x_NCHW = F.max_pool2d(F.relu(self.conv2(x_NCHW)), 2)
        return self.fc2(F.relu(self.fc1(x_NCHW.flatten(1))))  # type: ignore[no-any-return]
