"""Inside-Outside Net: recurrent layers over maps, pooling of regions, proposals, and the whole network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer
from gossamer.data.arrays import DataSplit
from gossamer.data.composed import ComposedScenes
from gossamer.detection.losses import detection_loss
from gossamer.detection.metrics import CocoAP
from gossamer.methods.prune.channels import prune_channels
from gossamer.models.ion import PAPER_SCALE, InsideOutsideNet, SkipPooling, ion_on_csp, ion_on_vgg16
from gossamer.models.irnn import IRNN, context_layers, identity_scan
from gossamer.models.layers import conv_bn


def small(classes: int = 3) -> InsideOutsideNet:
    torch.manual_seed(0)
    return ion_on_csp(0.125, 0.33, in_channels=1, classes=classes)


class PlainBody(torch.nn.Module):
    """Three maps of three convolutions, for exports: the body of the zoo is exported with `AnchorFreeDetector`, in the
    tests of suppression, and takes most of the time."""

    channels = (8, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.AvgPool2d(pooled), conv_bn(before, after, 3, 2))
            for before, after, pooled in ((1, 8, 4), (8, 16, 1), (16, 16, 1))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stages[0](x)]
        for stage in self.stages[1:]:
            maps.append(stage(maps[-1]))
        return maps


def on_a_plain_body() -> InsideOutsideNet:
    torch.manual_seed(0)
    scales = ((0.1, 0.2), (0.3, 0.45), (0.6, 0.85))
    return InsideOutsideNet(PlainBody(), scales, joined=8, hidden=32, start=None, classes=3, proposals=32)


def slow_states(x_L: list[float]) -> list[float]:
    """One step after the other."""
    states, h = [], 0.0
    for x in x_L:
        h = max(h + x, 0.0)
        states.append(h)
    return states


@pytest.mark.parametrize(("dim", "backwards"), [(2, False), (2, True), (3, False), (3, True)])
def test_states_are_those_of_a_slow_loop(dim: int, backwards: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for n, c, at in ((n, c, at) for n in range(2) for c in range(3) for at in range(7 if dim == 2 else 5)):
        place = (n, c, slice(None), at) if dim == 2 else (n, c, at, slice(None))
        line = x[place].flip(0) if backwards else x[place]
        states = torch.tensor(slow_states(line.tolist()), dtype=torch.float64)
        expected[place] = states.flip(0) if backwards else states
    torch.testing.assert_close(identity_scan(x, dim, backwards=backwards), expected, rtol=0, atol=1e-12)
    assert (expected == 0).any() and (expected > 0).any()


def test_of_inputs_that_are_not_negative_states_are_running_sums() -> None:
    x = torch.rand(1, 2, 3, 4)
    torch.testing.assert_close(identity_scan(x, 3), x.cumsum(3))
    torch.testing.assert_close(identity_scan(x, 2, backwards=True), x.flip(2).cumsum(2).flip(2))


def test_gradients_of_states() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: identity_scan(x, 3, backwards=True), x)
    assert torch.autograd.gradcheck(lambda x: identity_scan(x, 2), x)


def test_four_directions_lie_side_by_side() -> None:
    layer = IRNN(2, 3)
    x = torch.randn(1, 2, 4, 5)
    inner, states = layer.inner(x), layer(x).chunk(4, 1)
    assert states[0].shape == (1, 3, 4, 5)
    for found, at in zip(states, ((..., 0), (..., -1), (..., 0, slice(None)), (..., -1, slice(None)))):
        torch.testing.assert_close(found[at], inner[at].relu())  # where a direction begins, there is one step


def test_every_pixel_of_the_context_has_seen_the_whole_map() -> None:
    torch.manual_seed(0)
    layers = context_layers(2, 8).double()
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(layers(x)[0, :, 4, 0].sum(), x)
    assert gradient[0].abs().amax(0).gt(0).all()


def test_normalized_features_have_the_norm_of_their_scale() -> None:
    pooling = SkipPooling((4, 6), 5, start=7.0, samples=1)
    maps = [torch.rand(2, 4, 8, 8) + 0.1, 100 * torch.rand(2, 6, 4, 4) + 0.1]
    seen = list[Tensor]()
    pooling.join.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [2.0, 2.0, 6.0, 8.0], [0.0, 4.0, 4.0, 6.0]]]).repeat(2, 1, 1)
    assert pooling(maps, boxes, 8, 8).shape == (2, 3, 5 * 49)
    for part in seen[0].split([4, 6], 1):
        torch.testing.assert_close(part.norm(dim=1), torch.full((2, 3 * 7, 7), 7.0))


def test_scales_begin_at_the_norm_of_batch_norms() -> None:
    model = small()
    last = model.body.channels[-1]
    features = torch.randn(10_000, last).relu().norm(dim=1).mean()
    scales = torch.cat([one.weight.detach() for one in model.skip.scales])
    torch.testing.assert_close(scales, features.expand_as(scales), rtol=0.01, atol=0)


def test_scales_begin_at_a_thousand_on_vgg16_as_in_the_paper() -> None:
    with torch.device("meta"):
        model = ion_on_vgg16()
    assert PAPER_SCALE == 1000.0 and [one.weight.numel() for one in model.skip.scales] == [256, 512, 512, 512]
    assert model.layers[0].in_features == 512 * 7 * 7


def test_a_region_is_a_row_of_what_the_layers_see() -> None:
    """Regions do not get mixed: each gives the same alone."""
    model = small().eval()
    maps = [torch.rand(2, c, s, s) for c, s in zip((*model.body.channels, model.body.channels[-1]), (8, 4, 2, 2))]
    boxes = torch.rand(2, 5, 2).mul(30).repeat(1, 1, 2) + torch.tensor([0.0, 0.0, 20.0, 30.0])
    together = model.skip(maps, boxes, 64, 64)
    alone = torch.cat([model.skip(maps, boxes[:, i : i + 1], 64, 64) for i in range(5)], 1)
    torch.testing.assert_close(together, alone)


def scenes() -> tuple[Tensor, dict[str, Tensor]]:
    """Four canvases with bars of three classes."""
    images = torch.zeros(12, 1, 28, 28, dtype=torch.uint8)
    images[::3, :, 4:24, 8:20] = 220
    images[1::3, :, 10:20, 2:26] = 220
    images[2::3, :, 12:20, 8:20] = 220
    made = ComposedScenes(DataSplit(images=images, labels=torch.arange(12) % 3), 4, 1)
    found = [made.objects(i) for i in range(4)]
    boxes = torch.nn.utils.rnn.pad_sequence([one.boxes for one in found], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence([one.labels for one in found], batch_first=True, padding_value=-1)
    return (made[torch.arange(4)].float() / 255 - 0.16) / 0.25, {"boxes": boxes, "labels": labels}


@pytest.mark.slow
def test_it_begins_to_learn_four_scenes_by_heart() -> None:
    model, batch = small(), scenes()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(detection_loss(model.train(), batch))
        optimizer.step()
    model.eval()
    for module in model.modules():  # statistics of four images say little
        module.training = isinstance(module, torch.nn.BatchNorm2d)
    with torch.no_grad():
        assert CocoAP(which="AP50").score(model, [batch]) > 0.1


def test_every_parameter_learns() -> None:
    model = small().train()
    model.proposals = 256  # some of them on an object, before anything has learned
    objects = torch.tensor([[[4.0, 4.0, 90.0, 92.0], [10.0, 20.0, 50.0, 50.0], [60.0, 60.0, 75.0, 74.0]]])
    target = {"boxes": objects, "labels": torch.tensor([[0, 1, 2]])}
    torch.autograd.backward(detection_loss(model, (torch.rand(1, 1, 96, 96), target)))
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.slow
def test_it_is_cut_with_proof() -> None:
    model, x = small().eval(), torch.rand(2, 1, 64, 64)
    result = prune_channels(model, x, 0.5)
    assert not result.skipped and result.proof is not None and result.proof.max_relative < 1e-4
    for name in ("context.0.inner", "context.1.inner", "skip.join", "heads.inner.0.0", "layers.0"):
        before, after = result.widths[name]
        assert after == before // 2
    assert {k: v.shape for k, v in result.model(x).items()} == {k: v.shape for k, v in model(x).items()}
    assert all(torch.isfinite(v).all() for v in result.model.train()(x).values())


def stored(model: torch.nn.Module, x: Tensor, folder: Path) -> torch.nn.Module:
    gossamer.save(model, folder / "ion.gsr", (x,))
    return gossamer.load(folder / "ion.gsr", into=small()).eval()


def exported(model: torch.nn.Module, x: Tensor, folder: Path) -> gossamer.measure.Runner:
    return gossamer.open_runner("onnxruntime", gossamer.export_onnx(model, x, folder / "ion.onnx"), threads=1)


@pytest.mark.parametrize(("make", "file"), [(small, stored), (on_a_plain_body, exported)])
@pytest.mark.slow
def test_files_give_the_same(make: Callable[[], InsideOutsideNet], file: Callable[..., Any], tmp_path: Path) -> None:
    model, x = make().eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = model(x)
    found = file(model, x, tmp_path)(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)
    assert F.softmax(model.train()(x)["logits"], -1)[..., 1:].shape == expected["scores"].shape
