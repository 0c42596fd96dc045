"""Detectors of the zoo: what they give in both modes, and what they learn."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.data import tiny_task
from gossamer.detection.boxes import pairwise_iou
from gossamer.detection.losses import detection_loss
from gossamer.errors import BadInput
from gossamer.methods.prune.channels import prune_channels
from gossamer.models import ENTRIES, build, build_for
from gossamer.models.anchor_free import AnchorFreeDetector
from gossamer.models.csp import CSPBlock
from gossamer.models.ssd import RATIOS_300, SCALES_300, SSDOnCSP, prior_shapes

DETECTORS = [name for name, entry in ENTRIES.items() if entry.boxes]


def target_of(*boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([boxes]), "labels": torch.arange(len(boxes))[None]}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_gives_boxes_in_eval_mode_and_what_its_loss_needs_while_it_trains(name: str) -> None:
    entry = ENTRIES[name]
    with torch.device("meta"):
        model = build(name, classes=7, input_size=entry.smallest)
        x = torch.empty(2, 3, entry.smallest, entry.smallest)
        found, given = model.eval()(x), model.train()(x)
    places = found["boxes"].shape[1]
    assert found["boxes"].shape == (2, places, 4) and found["scores"].shape == (2, places, 7)
    anchors = {"anchors", "anchor_offsets", "objectness"} & set(given)  # of a detector in two stages
    assert all(one.shape[:2] == (2, places) for name, one in given.items() if name not in anchors)
    assert len({given[name].shape[1] for name in anchors}) == bool(anchors)
    assert given["logits"].shape[2] == (8 if "offsets" in given else 7)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("csp_pan_n", 2.5),
        ("csp_pan_s", 9.9),
        ("ssd300", 26.3),
        ("dsod300", 14.7),
        ("ion_csp_n", 3.0),
        ("ion_vgg16", 138.8),
    ],
)
def test_numbers_of_parameters(name: str, millions: float) -> None:
    """SSD300 of PASCAL VOC has 26.3 million, DSOD300 14.8 million with its scales (papers).

    ION on VGG-16, in millions: 14.7 of the body, 1.2 of the proposals, 2.4 of the context, 0.9 of the joined features,
    102.8 + 16.8 of the fully connected layers, 0.1 of the outputs."""
    with torch.device("meta"):
        model = build(name, classes=20)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_ssd300_has_the_priors_of_the_paper() -> None:
    with torch.device("meta"):
        found = build("ssd300").eval()(torch.empty(1, 3, 300, 300))
    assert found["boxes"].shape[1] == 8732
    shapes = [(300 * one).round().tolist() for one in prior_shapes(SCALES_300, RATIOS_300)]
    assert shapes[0] == [[30, 30], [42, 42], [42, 21], [21, 42]]
    assert len(shapes[1]) == 6 and shapes[5][0] == [264, 264]


@pytest.mark.slow
@pytest.mark.parametrize(
    "made", [lambda: AnchorFreeDetector(0.125, 0.33, classes=2), lambda: SSDOnCSP(0.125, classes=2)]
)
def test_a_detector_learns_two_boxes_by_heart(made: Any) -> None:
    torch.manual_seed(0)
    model = made().train()
    x = torch.rand(1, 3, 64, 64).repeat(2, 1, 1, 1)
    target = {k: v.repeat_interleave(2, 0) for k, v in target_of((4.0, 4, 28, 28), (24.0, 30, 60, 62)).items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(detection_loss(model, (x, target)))
        optimizer.step()
    model.eval()
    for module in model.modules():  # statistics of one image say nothing
        module.training = isinstance(module, torch.nn.BatchNorm2d)
    with torch.no_grad():
        found = model(x)
    for label in (0, 1):
        best = int(found["scores"][0, :, label].argmax())
        assert float(pairwise_iou(found["boxes"][0, best : best + 1], target["boxes"][0, label : label + 1])) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "made", [lambda: AnchorFreeDetector(0.125, 0.33, classes=3), lambda: SSDOnCSP(0.125, classes=3)]
)
def test_body_and_neck_are_cut_with_proof_and_outputs_stay(made: Any) -> None:
    torch.manual_seed(0)
    model, x = made().eval(), torch.rand(2, 3, 64, 64)
    result = prune_channels(model, x, 0.5)
    small = result.model
    assert not result.skipped
    before, after = model(x), small(x)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    given = model.train()(x)
    assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in small.train()(x).items()}
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    assert parameters[1] < 0.6 * parameters[0]


def test_a_csp_block_without_bottlenecks_joins_both_halves() -> None:
    block = CSPBlock(4, 6, 0).eval()
    x = torch.rand(1, 4, 5, 5)
    expected = block.join(torch.cat([block.inner(x), block.past(x)], 1))
    torch.testing.assert_close(block(x), expected)


def test_classifiers_and_detectors_are_not_taken_for_one_another() -> None:
    with pytest.raises(BadInput, match="csp_pan_n: tiny needs a network that gives classes"):
        build_for("csp_pan_n", tiny_task())
