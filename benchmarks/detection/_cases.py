"""Random cases for the metric of boxes, and what pycocotools says of them."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.core.metric import Evidence
from gossamer.detection.metrics import CocoAP, box_evidence
from gossamer.detection.suppression import Detections

CLASSES = 3


def random_boxes(random: np.random.Generator, n: int) -> np.ndarray:
    """On a coarse grid, so that overlaps are often equal, of all three ranges of areas; (n, 4) of x, y, w, h."""
    unit = random.choice([2.0, 8.0, 40.0], (n, 1))
    return np.concatenate([random.integers(0, 4, (n, 2)) * unit, random.integers(1, 5, (n, 2)) * unit], 1)


def random_case(seed: int, images: int = 6, most: int = 12) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotations and results as COCO has them: ties, crowds, images without objects and without detections. Besides
    four near objects, an image has fewer than `most` detections."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        truth = random_boxes(random, int(random.integers(0, 6)))
        for box in truth:
            crowd = int(random.random() < 0.2)
            row = {"image_id": image, "category_id": int(random.integers(CLASSES)), "bbox": box.tolist()}
            area = float(box[2] * box[3] * random.choice([1.0, 0.5]))
            annotations.append({**row, "iscrowd": crowd, "area": area, "id": len(annotations) + 1})
        near = truth[random.integers(0, len(truth), 4)] if len(truth) else truth
        moved = near + random.integers(-1, 2, near.shape) * near[:, 2:3] / 4
        moved[:, 2:] = moved[:, 2:].clip(1)
        for box in np.concatenate([random_boxes(random, int(random.integers(0, most))), moved]):
            row = {"image_id": image, "category_id": int(random.integers(CLASSES)), "bbox": box.tolist()}
            results.append({**row, "score": float(random.integers(1, 6) / 8)})
    return annotations, results


def evidence_of(annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int = 6) -> Evidence:
    """The same case as the metric sees it."""

    def table(rows: list[dict[str, Any]], key: str, fill: float) -> Tensor:
        image = np.array([row["image_id"] for row in rows], dtype=np.int64)
        counts = np.bincount(image, minlength=images)
        order = image.argsort(kind="stable")
        place = np.arange(len(rows)) - (counts.cumsum() - counts)[image[order]]
        size = [4] if key == "bbox" else []
        filled = np.full([images, counts.max(initial=0), *size], fill, dtype=np.float64)
        filled[image[order], place] = np.array([row[key] for row in rows], dtype=np.float64).reshape(-1, *size)[order]
        return torch.from_numpy(filled)

    def corners(boxes: Tensor) -> Tensor:
        return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)

    detections = sorted(results, key=lambda row: -row["score"])  # stable
    found = Detections(
        boxes=corners(table(detections, "bbox", 0)),
        scores=table(detections, "score", 0),
        labels=table(detections, "category_id", -1).long(),
        classes=CLASSES,
    )
    target = {
        "boxes": corners(table(annotations, "bbox", 0)),
        "labels": table(annotations, "category_id", -1).long(),
        "crowd": table(annotations, "iscrowd", 0).bool(),
        "area": table(annotations, "area", 0),
    }
    return box_evidence(found, target, CocoAP().outcomes)


def pycocotools_numbers(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int = 6
) -> list[float]:
    """COCO's own twelve."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _judged(COCO, COCOeval, annotations, results, images)


def faster_numbers(annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int = 6) -> list[float]:
    """The same by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _judged(COCO, COCOeval_faster, annotations, results, images)


def _judged(
    data: Any, judge: Any, annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int
) -> list[float]:
    """By a package with the classes of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = data()
        truth.dataset = {
            "images": [{"id": i} for i in range(images)],
            "annotations": [dict(row) for row in annotations],
            "categories": [{"id": i} for i in range(CLASSES)],
        }
        truth.createIndex()
        judged = judge(truth, truth.loadRes([dict(row) for row in results]), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return [float(x) for x in judged.stats[:12]]
