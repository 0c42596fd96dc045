"""Networks out of files, to train on."""

import copy
from typing import Any

from torch import nn


class TrainableExport(nn.Module):
    """A network out of a `.pt2` or `.gsr` file, to train on: its layers stay in eval mode, its weights move."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.training = False
        for parameter in self.network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    def train(self, mode: bool = True) -> "TrainableExport":
        return self


def trainable_export(network: nn.Module) -> nn.Module:
    """The network in train mode, or `TrainableExport` around a copy of one out of a file, which has none."""
    return TrainableExport(network) if getattr(network, "out_of_file", False) else network.train()
