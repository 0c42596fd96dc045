"""Detectors as `.onnx`: the same boxes, and suppression in the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.detection.suppression import select_detections
from gossamer.errors import BadInput
from gossamer.models.anchor_free import AnchorFreeDetector
from gossamer.models.lenet import LeNet300
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.onnx_suppression import with_suppression
from gossamer.runtime.runners import open_runner

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_a_detector_runs_as_onnx_and_its_suppression_is_that_of_the_metric(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AnchorFreeDetector(0.125, classes=3).eval()
    for head in model.heads:
        torch.nn.init.normal_(head.logits.weight, std=2.0)  # type: ignore[union-attr, arg-type]
        torch.nn.init.zeros_(head.logits.bias)  # type: ignore[union-attr, arg-type]
    x = torch.rand(2, 3, 64, 64)
    file = export_onnx(model, x, tmp_path / "detector.onnx")
    expected, given = model(x), open_runner("onnxruntime", file)(x)
    for name in ("boxes", "scores"):
        torch.testing.assert_close(given[name], expected[name], rtol=1e-4, atol=1e-3)
    whole = with_suppression(file, tmp_path / "whole.onnx", min_score=0.5, max_overlap=0.4)
    session = onnxruntime.InferenceSession(whole.read_bytes(), providers=["CPUExecutionProvider"])
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {session.get_inputs()[0].name: x.numpy()}))
    )
    kept = select_detections(
        given["boxes"], given["scores"], min_score=0.5, max_overlap=0.4, candidates=10_000, max_detections=10_000
    )
    for image in range(2):
        rows = found["selected"][found["selected"][:, 0] == image]
        scores = np.sort(given["scores"][image, rows[:, 2], rows[:, 1]].numpy())[::-1]
        mine = kept.scores[image][kept.labels[image] >= 0].numpy()
        assert len(rows) and np.allclose(scores, mine)


def test_files_without_boxes_are_refused(tmp_path: Path) -> None:
    file = export_onnx(
        LeNet300(in_channels=1, classes=3, input_size=4).eval(), torch.zeros(1, 1, 4, 4), tmp_path / "a.onnx"
    )
    with pytest.raises(BadInput, match="suppression needs boxes and scores"):
        with_suppression(file, tmp_path / "b.onnx")
