"""Copies of networks."""

import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.copies import copy_network


def test_parameters_without_data_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to("meta")
    with pytest.raises(gossamer.BadInput, match=r"0\.weight has no data \(device meta\)"):
        copy_network(model)
    with pytest.raises(gossamer.BadInput, match="no data"):
        gossamer.prune_channels(model, torch.rand(2, 3))
