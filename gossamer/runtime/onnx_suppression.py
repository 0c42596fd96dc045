"""Non-maximum suppression as a part of an `.onnx` file, for programs that have none of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gossamer.errors import BadInput
from gossamer.runtime.metadata import STRUCTURE, read_structure

SELECTED = "selected"


def with_suppression(
    path: Path | str,
    out: Path | str,
    *,
    min_score: float = 0.01,
    max_overlap: float = 0.6,
    max_detections: int = 100,
) -> Path:
    """Write a detector's file again with ONNX's `NonMaxSuppression` behind its boxes and scores.

    The new file has one more output, `selected`: image, class and place of each detection, int64, shape (M, 3). The
    boxes and scores stay as they are. The operation may not run on every runtime.

    Args:
        path: of a detector that `export_onnx` wrote, with outputs `boxes` (N, A, 4) and `scores` (N, A, classes).
        out: where the new file is written.
        min_score: detections have more.
        max_overlap: boxes of one class that overlap a better one by more are dropped.
        max_detections: of one class in an image.

    Returns:
        The path of the new file.

    Raises:
        BadInput: the file has no such outputs.

    Example:
        >>> import tempfile, torch, gossamer
        >>> model = gossamer.build("csp_pan_n", classes=2, input_size=64)
        >>> folder = Path(tempfile.mkdtemp())
        >>> file = gossamer.export_onnx(model, torch.zeros(1, 3, 64, 64), folder / "detector.onnx")
        >>> with_suppression(file, folder / "whole.onnx").name
        'whole.onnx'
    """
    model = onnx.load(path)
    graph = model.graph
    names = [value.name for value in graph.output]
    text = next((entry.value for entry in model.metadata_props if entry.key == STRUCTURE), "null")
    said = read_structure(text, len(names), Path(path))
    places = said if isinstance(said, dict) else {}
    found = {kind: names[places[kind]] for kind in ("boxes", "scores") if isinstance(places.get(kind), int)}
    if len(found) < 2:
        raise BadInput(f"{path} has the outputs {', '.join(names)}; suppression needs boxes and scores")
    constants: dict[str, NDArray[Any]] = {
        "nms_most": np.array([max_detections], dtype=np.int64),
        "nms_overlap": np.array([max_overlap], dtype=np.float32),
        "nms_score": np.array([min_score], dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Transpose", [found["scores"]], ["nms_scores"], name="nms_scores", perm=[0, 2, 1]),
            helper.make_node(
                "NonMaxSuppression",
                [found["boxes"], "nms_scores", *constants],
                [SELECTED],
                name="nms",
                center_point_box=0,
            ),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(SELECTED, TensorProto.INT64, ["detections", 3]))
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return Path(out)
