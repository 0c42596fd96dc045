"""A detector through a whole job: train and eval outputs that differ, a teacher, int8, files, the metric of boxes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gossamer
from gossamer.core.context import Context
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Quiet
from gossamer.core.task import Task
from gossamer.data.arrays import DataSplit
from gossamer.data.composed import ComposedScenes
from gossamer.data.objects import BatchChoices, SceneSplits, detection_task
from gossamer.detection.metrics import CocoAP
from gossamer.errors import BadInput
from gossamer.methods.distill.cwd import CWD
from gossamer.methods.distill.kd import KD
from gossamer.models.anchor_free import AnchorFreeDetector
from gossamer.models.layers import conv_bn
from gossamer.models.lenet import LeNet300
from gossamer.models.ssd import PriorHeads, SSDOnCSP, prior_shapes
from gossamer.task import check
from gossamer.train import Training, fit
from gossamer.train.train_mode import teacher_terms


def scenes_task() -> Task:
    """16 training and 8 test scenes of bars of three classes."""
    images = torch.zeros(12, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 8:20] = 220
    split = DataSplit(images=images, labels=torch.arange(12) % 3)
    return detection_task(
        "scenes",
        SceneSplits(train=ComposedScenes(split, 18, 1), test=ComposedScenes(split, 8, 2)),
        classes=("a", "b", "c"),
        metric=CocoAP(),
        preprocessing=Preprocessing(size=96, channels=1, mean=(0.16,), std=(0.25,)),
        choices=BatchChoices(batch_size=8),
    )


def detector(kind: type[AnchorFreeDetector] | type[SSDOnCSP]) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(0.125, 0.33, in_channels=1, classes=3)


@pytest.mark.parametrize("kind", [AnchorFreeDetector, SSDOnCSP])
def test_a_detector_learns_from_its_teacher_in_train_mode(kind: type[AnchorFreeDetector] | type[SSDOnCSP]) -> None:
    task, model, context = scenes_task(), detector(kind), Context(progress=Quiet())
    check(task, model)
    [term] = teacher_terms(model, model, task, context, temperature=2.0, alpha=0.5)
    x, target = next(iter(task.train))
    model.train()
    for module in model.modules():
        module.training = module.training and not isinstance(module, torch.nn.BatchNorm2d)
    given = model(x)
    assert abs(term((x,), given, target).item()) < 1e-4 and term.mode == ", in train mode"
    moved = {**given, "logits": given["logits"] + torch.arange(given["logits"].shape[2])}
    assert term((x,), moved, target).item() > 0.1


@pytest.mark.parametrize("method", [KD(epochs=1), CWD(epochs=1)])
def test_a_teacher_that_was_given_is_asked_as_the_detector_trains(
    method: KD | CWD, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = list[torch.Tensor]()

    def first_batch(self: object, terms: Any, student: torch.nn.Module, task: Task, *rest: Any, **options: Any) -> None:
        x, target = next(iter(task.train))
        losses.extend(term((x,), student.train()(x), target) for term in terms)

    monkeypatch.setattr(type(method), "train_with", first_batch)
    monkeypatch.setattr(type(method), "noted", lambda *given, **options: SimpleNamespace(model=given[0]))
    wider = AnchorFreeDetector(0.25, 0.33, in_channels=1, classes=3)
    method.apply(detector(AnchorFreeDetector), scenes_task(), Context(progress=Quiet(), teacher=wider))
    [loss] = losses
    assert loss.item() > 0.01 and loss.requires_grad


def test_a_classifier_on_data_with_boxes_is_refused_before_the_work_begins() -> None:
    with pytest.raises(BadInput, match="a detector gives a dict of distances, logits, points, strides or"):
        check(scenes_task(), LeNet300(in_channels=1, classes=3, input_size=96))


class SmallSSD(torch.nn.Module):
    """Two maps with the heads of SSD. The body of the zoo's detectors is cut, stored and exported by other tests:
    `models/test_detectors.py`, `models/test_ion.py` and `runtime/test_onnx_suppression.py`."""

    def __init__(self) -> None:
        super().__init__()
        layers = (conv_bn(1, 8, 3, 2), conv_bn(8, 16, 3, 2), conv_bn(16, 16, 3, 2))
        self.body, self.extra = torch.nn.Sequential(*layers), conv_bn(16, 16, 3, 2)
        self.heads = PriorHeads((16, 16), prior_shapes((0.2, 0.4, 0.8), ((2,), (2,))), classes=3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.body(x)
        found: dict[str, torch.Tensor] = self.heads([fine, self.extra(fine)], x.shape[2], x.shape[3])
        return found


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return SmallSSD()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_detector_goes_through_training_cutting_recovery_and_int8(tmp_path: Path) -> None:
    task, context = scenes_task(), Context(progress=Quiet(), seed=0)
    trained = fit(small(), task, Training(epochs=1, lr=0.02), context).model
    steps = (
        gossamer.methods.prune.ChannelPruning(sparsity=0.5),
        gossamer.methods.distill.RecoveryDistillation(epochs=1, lr=0.01),
    )
    recipe = gossamer.Recipe(name="half", steps=steps, int8=True)
    result = gossamer.compress(trained, task, recipe=recipe, out=tmp_path / "out", context=context, verbose=False)
    x = task.example_inputs[0]
    before, after = trained.eval()(x), result.model.eval()(x)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert sum(p.numel() for p in result.model.parameters()) < 0.5 * sum(p.numel() for p in trained.parameters())
    shown = result.document.detectors
    assert shown is not None and {one.subject for one in shown.curves} == set(shown.numbers["AP"]) and shown.images
    assert "Precision and recall" in (tmp_path / "out" / "report.html").read_text("utf-8")
    session = gossamer.open_runner("onnxruntime", tmp_path / "out" / "model.onnx")
    assert {k: v.shape for k, v in session(x).items()} == {k: v.shape for k, v in before.items()}
    loaded = gossamer.load(tmp_path / "out" / "model.gsr", small())
    torch.testing.assert_close(loaded.eval()(x)["scores"], after["scores"], rtol=0.2, atol=0.05)
