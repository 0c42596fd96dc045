"""Copies of networks."""

from pathlib import Path

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


def test_lazy_layers_without_a_shape_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    for use in (
        lambda: gossamer.prune_channels(model, torch.rand(2, 3)),
        lambda: gossamer.save(model, tmp_path / "net.gsr"),
        lambda: gossamer.export_onnx(model, torch.rand(2, 3), tmp_path / "net.onnx"),
        lambda: gossamer.analyze(model, torch.rand(2, 3)),
    ):
        with pytest.raises(
            gossamer.BadInput, match=r"0\.weight of a lazy layer has no shape yet; run the network once"
        ):
            use()
        assert isinstance(model[0], nn.LazyLinear)
    model(torch.rand(2, 3))
    assert gossamer.prune_channels(model, torch.rand(2, 3)).model[0].out_features == 2
