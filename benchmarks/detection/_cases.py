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

    def by_image(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = [[] for _ in range(images)]
        for row in rows:
            found[row["image_id"]].append(row)
        return found

    def table(rows: list[list[dict[str, Any]]], key: str, fill: float) -> Tensor:
        per_image = [[row[key] for row in one] for one in rows]
        longest = max(map(len, per_image))
        empty = [fill] * 4 if key == "bbox" else fill
        filled = torch.tensor([one + [empty] * (longest - len(one)) for one in per_image])
        return filled.double().reshape(images, longest, *([4] if key == "bbox" else []))

    def corners(boxes: Tensor) -> Tensor:
        return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)

    objects, detections = by_image(annotations), by_image(sorted(results, key=lambda row: -row["score"]))  # stable
    found = Detections(
        boxes=corners(table(detections, "bbox", 0)),
        scores=table(detections, "score", 0),
        labels=table(detections, "category_id", -1).long(),
        classes=CLASSES,
    )
    target = {
        "boxes": corners(table(objects, "bbox", 0)),
        "labels": table(objects, "category_id", -1).long(),
        "crowd": table(objects, "iscrowd", 0).bool(),
        "area": table(objects, "area", 0),
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
