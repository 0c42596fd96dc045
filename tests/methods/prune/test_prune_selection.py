"""Channels chosen by reconstruction: targets, exact cuts, residual corrections, refusals."""

import pytest
import torch
from nets import stripes, tiny
from torch import nn

from gossamer.calibration.weight_reconstruction import layer_system
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.prune._selection import ChannelSelection
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.lasso import LassoChannels
from gossamer.methods.prune.osscar import Osscar
from gossamer.methods.prune.thinet import ThiNet
from gossamer.modules.cost import total_macs
from gossamer.modules.shortcuts import shortcut_errors

TASK = stripes()
KINDS: list[type[ChannelSelection]] = [LassoChannels, ThiNet, Osscar]
each = pytest.mark.parametrize("kind", KINDS)


def wide() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 60), nn.ReLU(), nn.Linear(60, 3)).eval()


@torch.no_grad()
def distance(model: nn.Module, original: nn.Module) -> float:
    """Relative to the original's outputs, on the training inputs."""
    one, other = (torch.cat([net(x) for x, _ in TASK.train]) for net in (model, original))
    return float((one - other).norm() / other.norm())


@each
@pytest.mark.parametrize("field", ["speedup", "macs", "params"])
@pytest.mark.slow
def test_it_lands_within_two_per_cent_of_the_target(kind: type[ChannelSelection], field: str) -> None:
    macs, params = total_macs(wide(), TASK.example_inputs), sum(p.numel() for p in wide().parameters())
    target = {"speedup": 2.5, "macs": macs // 3, "params": params // 3}[field]
    smaller, _ = kind(**{field: target})(wide(), TASK)
    left, kept = total_macs(smaller, TASK.example_inputs), sum(p.numel() for p in smaller.parameters())
    got = {"speedup": macs / left, "macs": left, "params": kept}[field]
    assert got == pytest.approx(target, rel=0.02)


@each
def test_channels_that_say_the_same_as_others_go_without_loss(kind: type[ChannelSelection]) -> None:
    model = wide()
    with torch.no_grad():
        conv = model.get_submodule("3")
        for part in (conv.weight, conv.bias):
            part[16:] = 2 * part[:16]  # twice as much of the same, which the ReLU keeps
    smaller, _ = kind(sparsity=0.5, layers=("3",))(model, TASK)
    assert smaller.get_submodule("3").out_channels == 16
    assert distance(smaller, model) < {LassoChannels: 0.9, ThiNet: 0.9, Osscar: 2e-3}[kind]


@each
@pytest.mark.slow
def test_outputs_stay_nearer_than_with_a_random_cut_and_the_same_fit(kind: type[ChannelSelection]) -> None:
    random = ChannelPruning(sparsity=0.5, criterion="random")(wide(), TASK).model
    smaller, edits = kind(sparsity=0.5)(wide(), TASK)
    assert 0 < distance(smaller, wide()) < distance(random, wide())
    assert all(edit.proof is not None and edit.proof < 1e-5 for edit in edits if edit.kind == "resize")


def test_the_last_layer_of_a_block_corrects_its_shortcut() -> None:
    """Added to what the norm makes of the correction, the sum is that of the original."""
    model, other = tiny(), tiny()
    shortcuts = shortcut_errors(model, TASK.example_inputs)
    assert sorted(shortcuts) == ["body.0.conv2", "body.1.conv2", "body.2.conv2"]
    one = shortcuts["body.1.conv2"]
    assert (one.block, one.norm) == ("body.1", "body.1.bn2")
    with torch.no_grad():
        other.get_submodule("stem").weight.mul_(0.9)
        missing = one(other, model, TASK.train[0])
        inputs: list[torch.Tensor] = []
        for net in (other, model):
            net.get_submodule("body.1").register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            net(TASK.train[0][0])
        norm = other.get_submodule("body.1.bn2")
        correction = norm(missing) - norm(torch.zeros_like(missing))
    torch.testing.assert_close(inputs[0] + correction, inputs[1], rtol=1e-4, atol=1e-5)
    plain = layer_system(other, model, "body.1.conv2", TASK.train, None)
    more = layer_system(other, model, "body.1.conv2", TASK.train, None, one)
    assert plain is not None and more is not None and not torch.allclose(plain[1], more[1])


@each
def test_widths_are_kept_and_have_the_shape_of_the_cut_alone(kind: type[ChannelSelection]) -> None:
    method = kind(widths={"3": 20})
    smaller, plain = method(wide(), TASK).model, method.shape_only()(wide(), TASK).model
    assert smaller[3].out_channels == 20 and smaller[0].out_channels == 24
    assert [p.shape for p in smaller.parameters()] == [p.shape for p in plain.parameters()]
    assert torch.equal(plain[3].weight, wide()[3].weight[:20])


def test_it_says_what_it_was_given_and_what_it_needs() -> None:
    with pytest.raises(BadInput, match=r"give one of sparsity, speedup, macs, params, widths, not none"):
        Osscar()
    with pytest.raises(BadInput, match=r"did you mean 'stem'"):
        Osscar(widths={"stam": 2})(tiny(), TASK)
    with pytest.raises(BadInput, match=r"widths of 'stem' = 9: must be in \[1, 8\]"):
        Osscar(widths={"stem": 9})(tiny(), TASK)
    with pytest.raises(BadInput, match=r"5 multiply-adds cannot be reached"):
        ThiNet(macs=5)(tiny(), TASK)
    with pytest.raises(NoEffect, match="no group of channels gets smaller"):
        LassoChannels(sparsity=0.01)(tiny(), TASK)
    with pytest.raises(NoEffect, match="no channel of the selected layers can be removed"):
        LassoChannels(sparsity=0.5)(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), TASK)
